"""Lean through local REPL processes: retries what was not the input's fault, and finds out what was.

A worker that dies, hangs without computing or loses step gets its input tried once more, alone in a fresh process.
Only what happens twice is held against the input.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from anyio import current_time

from fd_async.errors import VerifierError
from fd_async.verifier.backend import CheckCrash, CheckOutOfMemory, CheckTimeout, LeanAnswer, LeanRequest
from fd_async.verifier.messages import Answer
from fd_async.verifier.pool import ReplPool, open_pool
from fd_async.verifier.repl import (
    HeaderRejected,
    ReplDesync,
    ReplExited,
    ReplFailure,
    ReplProcess,
    ReplSpec,
    ReplTimeout,
)

_IDLE_SHARE = 0.5
_log = structlog.get_logger("fd_async.verifier")
_FOREIGN_SIGNALS = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGQUIT)


class ReplBackend:
    """A LeanBackend over a pool of REPL processes."""

    def __init__(self, pool: ReplPool, *, name: str, toolchain: str, check_timeout_s: float) -> None:
        self.name = name
        self.root = "" if name == "minilean" else "_root_."
        self.toolchain = toolchain
        self._pool = pool
        self._check_timeout_s = check_timeout_s

    def statistics(self) -> Mapping[str, float]:
        return self._pool.statistics()

    async def run(self, request: LeanRequest) -> LeanAnswer:
        """Compile on a worker; once more, alone, when the worker broke."""
        try:
            async with self._pool.lease(request.header) as repl:
                return await self._compile(repl, request)
        except ReplFailure as error:
            _log.info("a check broke its worker; it is tried once more in a fresh one", cause=str(error))
        try:
            async with self._pool.fresh(request.header) as repl:
                return await self._compile(repl, request, is_second=True)
        except HeaderRejected:
            raise
        except ReplTimeout as error:
            raise VerifierError(f"a fresh verifier worker did not start: {error}") from error
        except ReplExited as error:
            if error.returncode in _FOREIGN_SIGNALS:
                raise VerifierError(f"the verifier worker was stopped from outside: {error}") from error
            if error.is_out_of_memory or error.returncode == -signal.SIGKILL:
                raise CheckOutOfMemory(f"out of memory, twice: {error}") from error
            raise CheckCrash(f"Lean crashed on it twice: {error}") from error
        except ReplDesync as error:
            raise CheckCrash(f"it broke the protocol of two workers: {error}") from error

    async def run_fresh(self, request: LeanRequest) -> LeanAnswer:
        """Compile in a process that nobody used before and nobody uses afterwards; for audits."""
        async with self._pool.fresh(request.header) as repl:
            return await self._compile(repl, request, is_second=True)

    async def _compile(self, repl: ReplProcess, request: LeanRequest, *, is_second: bool = False) -> LeanAnswer:
        """Run body and probe within one deadline; a timeout counts when the worker really computed."""
        started, cpu_before = current_time(), cpu_seconds(repl.pid)
        try:
            body = await self._command(repl, request.body, repl.header_env, started)
            probe: Answer | None = None
            if request.probe and not body.errors and (request.probe_always or not body.sorries):
                probe = await self._command(repl, request.probe, body.env, started)
        except ReplTimeout as error:
            cpu_after = cpu_seconds(repl.pid)
            computed = None if cpu_before is None or cpu_after is None else cpu_after - cpu_before
            if computed is not None and computed < _IDLE_SHARE * self._check_timeout_s and not is_second:
                raise
            raise CheckTimeout(f"not finished within verifier.check_timeout_s = {self._check_timeout_s:g}") from error
        return LeanAnswer(
            messages=body.messages,
            num_sorries=len(body.sorries),
            seconds=current_time() - started,
            probe=None if probe is None else probe.messages,
        )

    async def _command(self, repl: ReplProcess, text: str, env: int | None, started: float) -> Answer:
        left = max(0.001, started + self._check_timeout_s - current_time())
        answer = await repl.command(text, env=env, timeout_s=left)
        if answer.message is not None:
            repl.broken = True
            raise ReplDesync(f"the REPL refused the request: {answer.message[:300]}")
        return answer


@asynccontextmanager
async def open_repl_backend(
    spec: ReplSpec,
    *,
    name: str,
    toolchain: str,
    header: str,
    workers: int,
    max_uses: int,
    queue_timeout_s: float,
    check_timeout_s: float,
) -> AsyncIterator[ReplBackend]:
    """Start a pool and wrap it."""
    async with open_pool(
        spec, workers=workers, max_uses=max_uses, queue_timeout_s=queue_timeout_s, default_header=header
    ) as pool:
        yield ReplBackend(pool, name=name, toolchain=toolchain, check_timeout_s=check_timeout_s)


def cpu_seconds(pid: int) -> float | None:
    """Return the processor time that a process has used, or None where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None
