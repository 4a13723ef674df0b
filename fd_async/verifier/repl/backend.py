"""Lean through local REPL processes: retries what was not the input's fault, and finds out what was.

A worker that dies, hangs without computing or loses step gets its input tried again, alone in a fresh process. Only
what happens in two processes that nobody used before is held against the input.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import structlog
from anyio import current_time

from fd_async.errors import VerifierError
from fd_async.verifier.backend import CheckCrash, CheckFailed, CheckOutOfMemory, CheckTimeout, LeanAnswer, LeanRequest
from fd_async.verifier.messages import Answer
from fd_async.verifier.repl.pool import ReplPool, open_pool
from fd_async.verifier.repl.process import (
    HeaderRejected,
    ReplDesync,
    ReplExited,
    ReplFailure,
    ReplProcess,
    ReplSpec,
    ReplTimeout,
)
from fd_async.verifier.repl.tree import cpu_seconds
from fd_async.verifier.repl.upkeep import PoolSettings

_IDLE_SHARE = 0.5
_RETRIES_AT_ONCE = 2
_INFOTREE = "full"
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
        """Compile on a worker; when the worker broke, alone in fresh ones until the input is cleared or to blame."""
        against, asked = 0, current_time()
        try:
            async with self._pool.lease(request.header, caller=request.caller, cost_key=request.cost_key) as repl:
                against = 1 if repl.uses == 0 else 0  # a used worker may die of what an earlier file left in it
                return await self._compile(repl, request, asked)
        except HeaderRejected:
            raise
        except ReplFailure as error:
            _log.info("a check broke its worker; it is tried again in a fresh one", cause=str(error))
        while True:
            against, asked = against + 1, current_time()
            try:
                async with self._pool.fresh(request.header) as repl:
                    return await self._compile(repl, request, asked, is_last=against == 2)
            except HeaderRejected:
                raise
            except ReplFailure as error:
                if against == 2:
                    raise _held_against_the_input(error) from error
                _log.info("a check broke a fresh worker; it is tried once more", cause=str(error))

    def distrust(self) -> None:
        """Use none of the present processes for another check."""
        self._pool.distrust()

    async def run_fresh(self, request: LeanRequest) -> LeanAnswer:
        """Compile in a process that nobody used before and nobody uses afterwards; for audits.

        Raises:
            CheckTimeout: Not finished within `verifier.check_timeout_s`, the process's start apart.
            VerifierError: It was not judged; a crash (`ReplFailure`) is one too, because it happened only once.
        """
        asked = current_time()
        async with self._pool.fresh(request.header) as repl:
            return await self._compile(repl, request, asked, is_last=True)

    async def _compile(
        self, repl: ReplProcess, request: LeanRequest, asked: float, *, is_last: bool = False
    ) -> LeanAnswer:
        """Run body and probe within one deadline; a timeout counts when the worker really computed.

        Time for which the check was set aside counts as waiting, not as running.
        """
        began, began_s = current_time(), repl.running_s
        cpu_before = cpu_seconds(repl.pid, repl.tree)
        infotree = _INFOTREE if request.infotree and self.name != "minilean" else None
        try:
            body = await self._command(repl, request.body, repl.header_env, began_s, infotree)
            probe: Answer | None = None
            if request.probe and not body.errors and (request.probe_always or not body.sorries):
                probe = await self._command(repl, request.probe, body.env, began_s)
        except ReplTimeout as error:
            cpu_after = cpu_seconds(repl.pid)
            computed = None if cpu_before is None or cpu_after is None else cpu_after - cpu_before
            if computed is not None and computed < _IDLE_SHARE * self._check_timeout_s and not is_last:
                raise
            raise CheckTimeout(f"not finished within verifier.check_timeout_s = {self._check_timeout_s:g}") from error
        seconds = repl.running_s - began_s
        return LeanAnswer(
            messages=body.messages,
            num_sorries=len(body.sorries),
            seconds=seconds,
            probe=None if probe is None else probe.messages,
            infotree=body.infotree if bytes(body.infotree) else None,
            queue_s=max(0.0, began - asked + (current_time() - began - seconds)),
        )

    async def _command(
        self, repl: ReplProcess, text: str, env: int | None, began_s: float, infotree: str | None = None
    ) -> Answer:
        left = max(0.001, self._check_timeout_s - (repl.running_s - began_s))
        answer = await repl.command(text, env=env, timeout_s=left, infotree=infotree)
        if answer.message is not None:
            repl.broken = True
            raise ReplDesync(f"the REPL refused the request: {answer.message[:300]}")
        return answer


def _held_against_the_input(error: ReplFailure) -> CheckFailed | VerifierError:
    """Say what an input did that broke two fresh processes, or that it was not the input."""
    if isinstance(error, ReplExited):
        if error.returncode in _FOREIGN_SIGNALS:
            return VerifierError(f"the verifier worker was stopped from outside: {error}")
        if error.is_out_of_memory or error.returncode == -signal.SIGKILL:
            return CheckOutOfMemory(f"out of memory, twice: {error}")
        return CheckCrash(f"Lean crashed on it twice: {error}")
    if isinstance(error, ReplDesync):
        return CheckCrash(f"it broke the protocol of two workers: {error}")
    return VerifierError(str(error))


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
    spares: int = 0,
    first_budget_s: float = 0.0,
    starts_at_once: int = 4,
    max_age_s: float = 0.0,
    recycle_gib: float = 0.0,
    resident_limit_gib: float = 0.0,
    audit_workers: int = 0,
) -> AsyncIterator[ReplBackend]:
    """Start a pool and wrap it; the arguments are the `[verifier]` keys of the same names."""
    settings = PoolSettings(
        workers=workers,
        max_uses=max_uses,
        queue_timeout_s=queue_timeout_s,
        default_header=header,
        spares=spares,
        first_budget_s=first_budget_s,
        starts_at_once=starts_at_once,
        max_age_s=max_age_s,
        recycle_gib=recycle_gib,
        resident_limit_gib=resident_limit_gib,
        fresh_at_once=_RETRIES_AT_ONCE + audit_workers,
    )
    async with open_pool(spec, settings) as pool:
        yield ReplBackend(pool, name=name, toolchain=toolchain, check_timeout_s=check_timeout_s)
