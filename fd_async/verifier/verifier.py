"""The verifier as the rest of the project sees it: `open_verifier` and `Verifier.check`.

Owns the choice of the backend and the cache of verdicts by content. The same file for the same statement under the
same header is judged once, also when several rollouts ask at the same time. Infrastructure verdicts are never kept.
Nothing falls back from one backend to another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import structlog
from anyio import Event, to_thread

from fd_async.config.schema import Verifier as VerifierTable
from fd_async.types import Statement, Verdict
from fd_async.verifier.backend import LeanBackend
from fd_async.verifier.judge import Judge, sha256
from fd_async.verifier.locate import locate_minilean, locate_repl
from fd_async.verifier.repl_backend import open_repl_backend

_CACHE_SIZE = 20_000


class Verifier:
    """Judges files. Made by `open_verifier`."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._cache: OrderedDict[str, Verdict] = OrderedDict()
        self._running: dict[str, Event] = {}
        self._checks = 0
        self._infra_errors = 0
        self._cache_hits = 0

    @property
    def toolchain(self) -> str:
        """What judges, for logs and reports."""
        return self._judge.backend.toolchain

    async def check(self, code: str, statement: Statement, *, caller: str = "") -> Verdict:
        """Judge `code` for `statement`; never raises for anything that the file or Lean does.

        Args:
            code: The file.
            statement: What it is to prove.
            caller: Who asks (the rollout's id); waiting checks are served fairly between callers.
        """
        self._checks += 1
        key = sha256("\0".join([self._judge.header_of(statement), statement.formal_statement, code]))
        while True:
            known = self._cache.get(key)
            if known is not None:
                self._cache.move_to_end(key)
                self._cache_hits += 1
                return known
            running = self._running.get(key)
            if running is None:
                break
            await running.wait()
        done = self._running[key] = Event()
        try:
            verdict = await self._judge.judge(code, statement, caller=caller)
        finally:
            del self._running[key]
            done.set()
        if verdict.is_infrastructure:
            self._infra_errors += 1
        else:
            self._cache[key] = verdict
            if len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        return verdict

    def statistics(self) -> dict[str, float]:
        """Counters since the start (`checks`, `infra_errors`, `cache_hits`, `restarts`, `desyncs`, ...) and gauges."""
        own = {"checks": self._checks, "infra_errors": self._infra_errors, "cache_hits": self._cache_hits}
        return {"waiting": 0.0, "busy": 0.0, "restarts": 0.0, "desyncs": 0.0, **self._judge.backend.statistics(), **own}


@asynccontextmanager
async def open_verifier(config: VerifierTable, *, output_chars: int, log: Any = None) -> AsyncIterator[Verifier]:
    """Start the configured backend, check that it answers, and stop it at the end.

    Args:
        config: The `[verifier]` table.
        output_chars: Longest compiler output that the model sees.
        log: A structlog-style logger; None takes the verifier's own.

    Raises:
        PreflightError: The backend cannot be used; the message says what is missing and how to get it.
    """
    log = log or structlog.get_logger("fd_async.verifier")
    async with await _open_backend(config, log) as backend:
        yield Verifier(Judge(backend, config.header, frozenset(config.allowed_axioms), output_chars))


async def _open_backend(config: VerifierTable, log: Any) -> AbstractAsyncContextManager[LeanBackend]:
    if config.backend == "kimina":
        from fd_async.verifier.kimina import open_kimina  # aiohttp is only needed here

        return open_kimina(config)
    if config.backend == "minilean":
        log.warning("minilean judges proofs, not Lean: the tiny world's small checker of a fragment of core Lean 4")
        spec, toolchain = locate_minilean(config)
    else:
        spec, toolchain = await to_thread.run_sync(locate_repl, config)
        log.info("Lean judges proofs", toolchain=toolchain, command=" ".join(spec.argv), workers=config.workers)
    return open_repl_backend(
        spec,
        name=config.backend,
        toolchain=toolchain,
        header=config.header.replace("\r\n", "\n").strip(),
        workers=config.workers,
        max_uses=config.max_uses,
        queue_timeout_s=config.queue_timeout_s,
        check_timeout_s=config.check_timeout_s,
    )
