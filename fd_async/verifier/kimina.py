"""Lean through a Kimina Lean Server: `POST /api/check`, or `/verify` of older servers.

The server answers one whole file at a time, so header, body and probe travel as one snippet and the answer is
divided by line. That is as strict as two commands, because the gate refuses every way to hide or rename what comes
after the model's text, and the probe carries a name that the model cannot know. Only failures of the server are
retried, with a growing pause, until `verifier.queue_timeout_s` has passed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio
import msgspec
from anyio import current_time, fail_after
from msgspec import Struct

from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import PreflightError, VerifierError
from fd_async.verifier.backend import CheckTimeout, LeanAnswer, LeanRequest
from fd_async.verifier.messages import Message, Position

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0
_MAX_ANSWER_BYTES = 1 << 24
_PATIENCE_AT_START_S = 10.0
_GRACE_S = 30.0
"""Beyond the check itself: transfer, and the server's own waiting for a worker (60 s there, retried here)."""
_VERSION = '#eval (Lean.versionString ++ " fd_version")'


class _Response(Struct):
    messages: list[Message] = []
    sorries: list[msgspec.Raw] = []
    env: int | None = None
    message: str | None = None


class _Result(Struct):
    error: str | None = None
    response: _Response | None = None
    time: float | None = None


class _Results(Struct):
    results: list[_Result]


class _Busy(Exception):
    """The server cannot answer now; worth another try."""


class KiminaBackend:
    """A LeanBackend over HTTP. Made by `open_kimina`."""

    name = "kimina"
    root = "_root_."

    def __init__(self, session: aiohttp.ClientSession, config: VerifierTable) -> None:
        self.toolchain = "unknown"
        self._session = session
        self._config = config
        self._slots = anyio.Semaphore(config.workers)
        self._route = "/api/check"
        self._retries = 0

    def statistics(self) -> Mapping[str, float]:
        waiting = self._slots.statistics().tasks_waiting
        return {"waiting": waiting, "busy": self._config.workers - self._slots.value, "restarts": self._retries}

    async def run(self, request: LeanRequest) -> LeanAnswer:
        """Compile on the server; raises CheckTimeout or VerifierError."""
        answer = await self._compile(request)
        if answer.probe and any(message.is_error for message in answer.probe):
            # An unfinished proof is reported where the next command begins: look at the body by itself.
            alone = await self._compile(LeanRequest(request.header, request.body))
            if alone.errors:
                return alone
        return answer

    async def _compile(self, request: LeanRequest) -> LeanAnswer:
        head = f"{request.header}\n\n" if request.header else ""
        result, seconds = await self._ask(f"{head}{request.body}\n\n{request.probe}\n")
        response = result.response
        if response is None:
            raise VerifierError("the Kimina server sent neither an answer nor an error")
        body_line = head.count("\n")
        probe_line = body_line + request.body.count("\n") + 2
        in_header = [m for m in response.messages if m.is_error and 0 < m.pos.line <= body_line]
        if in_header:
            raise VerifierError(f"the Lean header was rejected: {in_header[0].data[:500]}")
        body = [_shift(m, body_line) for m in response.messages if m.pos.line <= probe_line]
        probe = [_shift(m, probe_line) for m in response.messages if m.pos.line > probe_line]
        stopped = not request.probe or any(m.is_error for m in body)
        return LeanAnswer(body, len(response.sorries), result.time or seconds, None if stopped else probe)

    async def probe_version(self) -> None:
        """Ask which Lean answers; raises PreflightError when nobody does."""
        try:
            result, _ = await self._ask(_VERSION, patience_s=_PATIENCE_AT_START_S)
        except (VerifierError, CheckTimeout) as error:
            raise PreflightError(f"verifier.url = {self._config.url!r}: {error}") from error
        data = [m.data for m in result.response.messages] if result.response else []
        versions = [text.strip('"').split()[0] for text in data if text.rstrip('"').endswith(" fd_version")]
        if not versions:
            raise PreflightError(
                f"verifier.url = {self._config.url!r} does not run Lean commands: {result.error or data}"
            )
        self.toolchain = f"leanprover/lean4:v{versions[0]}"

    async def _ask(self, code: str, patience_s: float | None = None) -> tuple[_Result, float]:
        """Post one snippet until an answer comes or the patience is over."""
        patience = self._config.queue_timeout_s if patience_s is None else patience_s
        deadline, pause, cause = current_time() + patience, _FIRST_PAUSE_S, "no free slot"
        try:
            with fail_after(patience + self._config.check_timeout_s + _GRACE_S):
                async with self._slots:
                    while True:
                        started = current_time()
                        try:
                            return await self._post(code), current_time() - started
                        except (_Busy, aiohttp.ClientError, TimeoutError) as error:
                            cause = f"{type(error).__name__}: {error}"[:300]
                        if current_time() + pause > deadline:
                            break
                        self._retries += 1
                        await anyio.sleep(pause)
                        pause = min(2 * pause, _LONGEST_PAUSE_S)
        except TimeoutError:
            pass
        raise VerifierError(f"the Kimina server did not answer within {patience:g} s ({cause})")

    async def _post(self, code: str) -> _Result:
        limit = self._config.check_timeout_s
        with fail_after(limit + _GRACE_S):
            async with self._session.post(self._route, json=self._payload(code, limit)) as response:
                if response.status == 404 and self._route == "/api/check":
                    self._route = "/verify"
                    raise _Busy("the server has only the older route")
                if response.status in (401, 403, 422):
                    text = (await response.text())[:200]
                    raise VerifierError(f"the Kimina server refused the request ({response.status}): {text}")
                if response.status != 200:
                    raise _Busy(f"HTTP {response.status}")
                data = bytearray()
                async for chunk in response.content.iter_any():
                    data += chunk
                    if len(data) > _MAX_ANSWER_BYTES:
                        raise VerifierError(f"the Kimina server's answer is longer than {_MAX_ANSWER_BYTES} bytes")
        try:
            (result,) = msgspec.json.decode(data, type=_Results).results
        except (msgspec.DecodeError, ValueError) as error:
            raise _Busy(f"unreadable answer: {error}") from error
        if result.error:
            if "timed out" in result.error:
                raise CheckTimeout(f"not finished within verifier.check_timeout_s = {limit:g}")
            raise _Busy(result.error)
        if result.response is not None and result.response.message:
            raise _Busy(result.response.message)
        return result

    def _payload(self, code: str, limit: float) -> dict[str, Any]:
        name = secrets.token_hex(8)
        seconds = max(1, round(limit))
        if self._route == "/api/check":
            return {"snippets": [{"id": name, "code": code}], "timeout": seconds, "reuse": True}
        return {"codes": [{"custom_id": name, "code": code}], "timeout": seconds}


@asynccontextmanager
async def open_kimina(config: VerifierTable) -> AsyncIterator[KiminaBackend]:
    """Connect, find out the Lean version, and disconnect at the end.

    Raises:
        PreflightError: The server does not answer.
    """
    key = os.environ.get(config.api_key_env, "")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=None)  # deadlines are set around each request
    connector = aiohttp.TCPConnector(limit=config.workers)
    async with aiohttp.ClientSession(config.url, headers=headers, timeout=timeout, connector=connector) as session:
        backend = KiminaBackend(session, config)
        await backend.probe_version()
        yield backend


def _shift(message: Message, lines: int) -> Message:
    if message.pos.line == 0:
        return message
    return Message(message.data, message.severity, Position(message.pos.line - lines, message.pos.column))
