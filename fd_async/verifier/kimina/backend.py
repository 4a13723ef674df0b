"""Lean through a Kimina Lean Server: the routes of version 2 and of version 1, found out by itself.

The server answers one whole file at a time, so header, body and probe travel as one snippet and the answer is
divided by line. Three things make that as strict as two commands: the gate refuses every way to hide, rename or
modify what comes after the model's text; the probe carries a name that the model cannot know; and the probe's answer
must stand on the very line that asked for it (older servers count lines from after the imports: measured at the
start). What one file cannot show is damage that other clients did to the server's process: `run_fresh` compiles in a
process of its own, which is what audits use. A header without imports is always compiled fresh, because the server
would keep the first such file for everybody that comes after.

Only failures of the server are retried, with a growing pause, until `verifier.queue_timeout_s` has passed.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
import anyio
import structlog
from anyio import current_time, fail_after, to_thread
from msgspec import Raw
from msgspec.structs import replace

from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import PreflightError, VerifierError
from fd_async.verifier.backend import CheckTimeout, HeaderRefused, LeanAnswer, LeanRequest
from fd_async.verifier.kimina.wire import Busy, Check, Desync, Result, Wire
from fd_async.verifier.messages import Message, Position, read_axioms

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_CONNECT_TIMEOUT_S = 10.0
_PATIENCE_AT_START_S = 10.0
_MOST_INTERNAL_ERRORS = 6
"""HTTP 500 is also what a file gets that kills every REPL: it must not be sent for as long as the patience lasts."""
_TIMEOUTS_OF_OLD = 2
"""Version 1 reports a slow import in the same words as a slow proof; the import is over the second time."""
_LINE = re.compile(rb'("line":\s*)(\d+)')
_VERSION = '#eval (Lean.versionString ++ " fd_version")'
_log = structlog.get_logger("fd_async.verifier")


class KiminaBackend:
    """A LeanBackend over HTTP. Made by `open_kimina`."""

    name = "kimina"
    root = "_root_."

    def __init__(self, session: aiohttp.ClientSession, config: VerifierTable) -> None:
        self.toolchain = "unknown"
        self._config = config
        self._wire = Wire(session, config.api_key_env)
        self._slots = anyio.Semaphore(config.workers)
        self._retries = 0
        self._desyncs = 0
        self._counts_from_body = False
        """Whether the server gives lines from after the imports, as all did before October 2025."""

    def statistics(self) -> Mapping[str, float]:
        slots = self._slots.statistics()
        busy = self._config.workers - self._slots.value
        return {"waiting": slots.tasks_waiting, "busy": busy, "restarts": self._retries, "desyncs": self._desyncs}

    async def run(self, request: LeanRequest) -> LeanAnswer:
        """Compile on the server; raises CheckTimeout or VerifierError."""
        return await self._run(request, fresh=False)

    def distrust(self) -> None:
        """Do nothing but say it: the server's processes are not ours to replace."""
        _log.warning("restart the Kimina server: one of its processes accepted what is not a proof")

    async def run_fresh(self, request: LeanRequest) -> LeanAnswer:
        """Compile in a process of the server that nobody used before; raises CheckTimeout or VerifierError."""
        return await self._run(request, fresh=True)

    async def _run(self, request: LeanRequest, *, fresh: bool) -> LeanAnswer:
        answer = await self._compile(request, fresh)
        if answer.probe is not None and not _is_answered(answer.probe, _probe_name(request.probe)):
            # An unfinished body is reported where the next command begins, or swallows it: look at the body alone.
            alone = await self._compile(LeanRequest(request.header, request.body), fresh)
            if alone.errors:
                return alone
        return answer

    async def _compile(self, request: LeanRequest, fresh: bool) -> LeanAnswer:
        started = current_time()
        head = _imports_first(request.header)
        code = f"{head}{request.body}\n\n{request.probe}\n"
        if len(code.splitlines()) != code.count("\n"):
            raise VerifierError("the statement or its header has characters that the Kimina server takes for line ends")
        check = Check(
            code,
            self._config.check_timeout_s,
            self._config.import_timeout_s,
            fresh=fresh or not head.startswith("import "),
            infotree=request.infotree,
        )
        result = await self._ask(check, self._config.queue_timeout_s)
        seconds = result.seconds if result.seconds is not None else current_time() - started
        queue_s = max(0.0, current_time() - started - seconds)
        is_whole = self._wire.is_old and check.fresh  # then version 1 does not take the imports off
        taken = 0 if is_whole else _taken_off(code)
        body_line = head.count("\n")
        answer = _divide(request, body_line, taken if self._counts_from_body else 0, result, seconds, queue_s)
        if result.response is None or not bytes(result.response.infotree):
            return answer
        tree = await to_thread.run_sync(_move_tree, result.response.infotree, body_line - taken)
        return replace(answer, infotree=tree)

    async def probe_version(self) -> None:
        """Ask which Lean answers under the configured header, and how; raises PreflightError when nobody does."""
        place = f"verifier.url = {self._config.url!r}"
        head = _imports_first(self._config.header.replace("\r\n", "\n").strip())
        if not head.startswith("import "):
            head = f"import Init\n{head}"
        code = f"{head}{_VERSION}\n"
        limit = max(self._config.import_timeout_s, self._config.check_timeout_s)
        try:
            result = await self._ask(Check(code, limit, limit), _PATIENCE_AT_START_S)
        except (VerifierError, CheckTimeout) as error:
            raise PreflightError(f"{place}: {error}") from error
        messages = (result.response.messages if result.response else None) or []
        found = [m for m in messages if m.data.rstrip('"').endswith(" fd_version")]
        if not found:
            said = [m.data for m in messages]
            raise PreflightError(f"{place} does not run Lean commands under verifier.header: {str(said)[:500]}")
        self.toolchain = "leanprover/lean4:v" + found[0].data.strip('"').split()[0]
        missing = head.count("\n") + 1 - found[0].pos.line
        if missing not in (0, _taken_off(code)):
            raise PreflightError(f"{place} gives line numbers that are off by {missing}")
        self._counts_from_body = missing != 0

    async def _ask(self, check: Check, patience_s: float) -> Result:
        """Post one check until it is answered or the patience is over."""
        deadline, cause = current_time() + patience_s, "no free slot"
        try:
            with fail_after(patience_s):
                await self._slots.acquire()
        except TimeoutError as error:
            raise VerifierError(f"no place at the Kimina server within {patience_s:g} s") from error
        try:
            pause, internal, timeouts = _FIRST_PAUSE_S, 0, 0
            while True:
                wish_s = 0.0
                try:
                    return await self._wire.post(check)
                except CheckTimeout:
                    timeouts += 1
                    if not self._wire.is_old or timeouts >= _TIMEOUTS_OF_OLD:
                        raise
                except Busy as error:
                    cause, wish_s = str(error), error.retry_after_s
                    internal += error.is_internal
                    self._desyncs += isinstance(error, Desync)
                except (aiohttp.ClientError, OSError) as error:  # OSError includes the deadline of one request
                    cause = f"{type(error).__name__}: {error}"[:300]
                wait_s = max(wish_s, pause * random.uniform(0.5, 1.5))
                if current_time() + wait_s > deadline or internal >= _MOST_INTERNAL_ERRORS:
                    raise VerifierError(
                        f"the Kimina server did not answer within {patience_s:g} s or {_MOST_INTERNAL_ERRORS} "
                        f"internal errors ({cause})"
                    )
                self._retries += 1
                await anyio.sleep(wait_s)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        finally:
            self._slots.release()


@asynccontextmanager
async def open_kimina(config: VerifierTable) -> AsyncIterator[KiminaBackend]:
    """Connect, find out the Lean version, and disconnect at the end.

    Raises:
        PreflightError: The server does not answer.
    """
    key = os.environ.get(config.api_key_env, "")
    headers = {"Accept-Encoding": "identity", **({"Authorization": f"Bearer {key}"} if key else {})}
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)  # each request has its own deadline
    connector = aiohttp.TCPConnector(limit=config.workers)
    async with aiohttp.ClientSession(
        config.url,
        headers=headers,
        timeout=timeout,
        connector=connector,
        trust_env=False,  # proofs and the key go to verifier.url and to no proxy
        auto_decompress=False,
    ) as session:
        backend = KiminaBackend(session, config)
        await backend.probe_version()
        yield backend


def _imports_first(header: str) -> str:
    """Put imports on top, where the server looks for them, and end with an empty line; keeps the number of lines."""
    if not header:
        return ""
    lines = header.split("\n")
    imports = [line.strip() for line in lines if line.strip().startswith("import ")]
    rest = [line for line in lines if not line.strip().startswith("import ")]
    return "\n".join([*imports, *rest]) + "\n\n"


def _taken_off(code: str) -> int:
    """Count the lines that the server takes off before Lean sees the file: imports and empty lines at the top."""
    lines = code.split("\n")
    return next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("import ")), len(lines))


def _probe_name(probe: str) -> str:
    """Return the name after the last `#print axioms`."""
    return probe.rpartition("#print axioms ")[2].strip()


def _is_answered(probe: list[Message], name: str) -> bool:
    return read_axioms(probe, name) is not None and not any(message.is_error for message in probe)


def _divide(
    request: LeanRequest, body_line: int, taken_off: int, result: Result, seconds: float, queue_s: float
) -> LeanAnswer:
    """Divide one answer into body and probe by line.

    Raises:
        VerifierError: An error stands in the header, or the answer to the probe on a line that did not ask for it.
    """
    response = result.response
    messages = [_shift(m, -taken_off) for m in (response.messages if response else None) or ()]
    probe_line = body_line + request.body.count("\n") + 2
    in_header = [m for m in messages if m.is_error and 0 < m.pos.line <= body_line]
    if in_header:
        raise HeaderRefused(f"the Lean header was rejected: {in_header[0].data[:500]}")
    if request.probe:
        name, asking = _probe_name(request.probe), probe_line + request.probe.rstrip().count("\n") + 1
        if any(m.pos.line != asking and read_axioms([m], name) is not None for m in messages):
            raise VerifierError("the Kimina server answers on other lines than those that ask")
    # Without a probe everything is the body's: Lean reports an unfinished one at the end of the file.
    is_body = [not request.probe or m.pos.line <= probe_line for m in messages]
    body = [_shift(m, body_line) for m, mine in zip(messages, is_body, strict=True) if mine]
    probe = [_shift(m, probe_line) for m, mine in zip(messages, is_body, strict=True) if not mine]
    sorries = len((response.sorries if response else None) or ())
    stopped = not request.probe or any(m.is_error for m in body)
    return LeanAnswer(body, sorries, seconds, None if stopped else probe, queue_s=queue_s)


def _move_tree(tree: Raw, lines: int) -> Raw:
    """Count lines from the body's first; no server moves those of the tree. Quotes inside strings are escaped."""
    return Raw(_LINE.sub(lambda found: found[1] + str(int(found[2]) - lines).encode(), bytes(tree)))


def _shift(message: Message, lines: int) -> Message:
    if message.pos.line == 0:
        return message
    return Message(message.data, message.severity, Position(message.pos.line - lines, message.pos.column))
