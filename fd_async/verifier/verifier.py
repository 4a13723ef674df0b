"""The verifier as the rest of the project sees it: `open_verifier` and `Verifier.check`.

Owns the choice of the backend and the cache of verdicts by content. The same file for the same statement under the
same header is judged once, also when several rollouts ask at the same time. Infrastructure verdicts are never kept.
Nothing falls back from one backend to another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

import structlog
from anyio import Event, to_thread

from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import PreflightError, VerifierError
from fd_async.types import Statement, Verdict
from fd_async.verifier.audit.auditors import find_auditors, first_that_works
from fd_async.verifier.audit.audits import Audits
from fd_async.verifier.audit.cold import AuditableBackend
from fd_async.verifier.canaries import Canary, first_wrong, run_canaries
from fd_async.verifier.judge import Judge, content_key
from fd_async.verifier.locate import locate_minilean, locate_repl, lock_in
from fd_async.verifier.repl.backend import open_repl_backend
from fd_async.verifier.repl.process import ReplSpec

_CACHE_SIZE = 20_000
_log = structlog.get_logger("fd_async.verifier")


class Verifier:
    """Judges files. Made by `open_verifier`."""

    def __init__(
        self, judge: Judge, audits: Audits | None = None, on_revoked: Callable[[], None] = lambda: None
    ) -> None:
        self._judge = judge
        self._on_revoked = on_revoked
        self._audits = audits
        self._canaries = 0
        self._cache: OrderedDict[str, Verdict] = OrderedDict()
        self._running: dict[str, Event] = {}
        self._revoked: set[str] = set()
        self._examined: OrderedDict[str, Verdict] = OrderedDict()
        """By statement: what it is worth alone."""
        self._checks = 0
        self._infra_errors = 0
        self._cache_hits = 0

    @property
    def toolchain(self) -> str:
        """What judges, for logs and reports."""
        return self._judge.backend.toolchain

    @property
    def audit_kind(self) -> str:
        """What audits accepted proofs: `fresh`, `leanchecker`, `comparator`, or `off`."""
        return self._audits.kind if self._audits else "off"

    async def check(self, code: str, statement: Statement, *, caller: str = "") -> Verdict:
        """Judge `code` for `statement`; never raises for anything that the file or Lean does.

        Args:
            code: The file.
            statement: What it is to prove.
            caller: Who asks (the rollout's id); waiting checks are served fairly between callers.
        """
        self._checks += 1
        key = self._key(code, statement)
        known = await self._known(self._cache, key)
        if known is not None:
            self._cache_hits += 1
            return known
        with self._only_one(key):
            verdict = await self._judge.judge(code, statement, caller=caller)
        if verdict.is_infrastructure:
            self._infra_errors += 1
        else:
            self._remember(key, verdict)
        if verdict.is_bad_statement or verdict.is_proved:
            self._keep(self._examined, self._key("", statement), verdict)
        return verdict

    async def examine(self, statement: Statement, *, caller: str = "") -> Verdict:
        """Find out whether a statement compiles by itself; asks Lean once for each.

        Returns:
            A verdict of kind `bad_statement` with Lean's words; `sorry` or `proved` of a sound statement; else how it
            was not found out: `infrastructure`, which is asked again, or Lean's `timeout`, `out_of_memory` or `crash`.
        """
        key = self._key("", statement)
        known = await self._known(self._examined, key)
        if known is not None:
            return known
        with self._only_one(key):
            verdict = await self._judge.examine(statement, caller=caller)
        if not verdict.is_infrastructure:
            self._keep(self._examined, key, verdict)
        return verdict

    def known_fault(self, statement: Statement) -> Verdict | None:
        """Return the verdict on a statement that was found not to compile, without asking anybody."""
        known = self._examined.get(self._key("", statement))
        return known if known is not None and known.is_bad_statement else None

    async def _known(self, cache: OrderedDict[str, Verdict], key: str) -> Verdict | None:
        """Return a verdict that is kept, or that somebody who asks for the same just gets; else None."""
        while key not in cache:
            running = self._running.get(key)
            if running is None:
                return None
            await running.wait()
        cache.move_to_end(key)
        return cache[key]

    @contextmanager
    def _only_one(self, key: str) -> Iterator[None]:
        """Let others that ask for the same wait."""
        done = self._running[key] = Event()
        try:
            yield
        finally:
            del self._running[key]
            done.set()

    async def audit(self, code: str, statement: Statement, verdict: Verdict) -> Verdict:
        """Judge an accepted proof once more, from nothing.

        Args:
            code: The file that was accepted.
            statement: What it proves.
            verdict: As `check` gave it.

        Returns:
            The verdict with `audit` set to what confirmed it, or one of kind `revoked`. The verdict as it was where
            there is nothing to audit, and where the audit could not be carried out, which is counted and logged.
        """
        if self._audits is None:
            return verdict
        audited = await self._audits.audit(code, statement, verdict)
        if audited is verdict:
            return verdict
        key = self._key(code, statement)
        if audited.kind == "revoked" and key not in self._revoked:
            # Whoever accepted it may have accepted more: neither its processes nor its verdicts are used again.
            self._revoked.add(key)
            self._cache = OrderedDict((name, known) for name, known in self._cache.items() if known.audit)
            self._on_revoked()
        self._remember(key, audited)
        return audited

    async def canaries(self) -> None:
        """Judge every check whose answer is known; one that the infrastructure did not answer is only logged.

        Raises:
            VerifierError: The judge got one wrong; no verdict of it can be trusted.
        """
        results = await run_canaries(self._judge)
        self._canaries += len(results)
        wrong = first_wrong(results)
        if wrong:
            raise VerifierError(f"{wrong}; no verdict can be trusted ({self._judge.backend.name}, {self.toolchain})")
        for result in results:
            if not result.is_answered:
                _log.warning("a canary got no answer", canary=result.canary.name, reason=result.verdict.reason)

    async def judge_canary(self, canary: Canary) -> Verdict:
        """Judge one check whose answer is known, past the cache."""
        return await self._judge.judge_canary(canary)

    def _key(self, code: str, statement: Statement) -> str:
        return content_key(self._judge.header_of(statement), statement, code)

    def _remember(self, key: str, verdict: Verdict) -> None:
        self._keep(self._cache, key, verdict)

    @staticmethod
    def _keep(cache: OrderedDict[str, Verdict], key: str, verdict: Verdict) -> None:
        cache[key] = verdict
        if len(cache) > _CACHE_SIZE:
            cache.popitem(last=False)

    def statistics(self) -> dict[str, float]:
        """Counters since the start (`checks`, `infra_errors`, `cache_hits`, `restarts`, `desyncs`, ...) and gauges."""
        own = {"checks": self._checks, "infra_errors": self._infra_errors, "cache_hits": self._cache_hits}
        own |= {"audits": 0, "revoked": 0, "audit_unfinished": 0, "canaries": self._canaries}
        own |= self._audits.statistics() if self._audits else {}
        own |= self._judge.accountant.counts
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
    opening, spec = await _open_backend(config, log)
    async with opening as backend:
        judge = Judge(backend, config.header, frozenset(config.allowed_axioms), output_chars)
        await _demand_canaries(judge)
        auditors = await to_thread.run_sync(find_auditors, config, judge, backend, spec)
        auditor = await first_that_works(auditors, config.audit, log)
        audits = Audits(
            judge,
            auditor,
            share=config.audit_share,
            workers=config.audit_workers,
            timeout_s=config.audit_timeout_s,
            log=log,
        )
        log.info("accepted proofs are audited", auditor=audits.kind, share=config.audit_share)
        yield Verifier(judge, audits, on_revoked=backend.distrust)


async def _demand_canaries(judge: Judge) -> None:
    """Start with a judge that is right.

    Raises:
        PreflightError: It is wrong, or does not answer.
    """
    for result in await run_canaries(judge):
        wrong = first_wrong([result])
        if wrong:
            raise PreflightError(
                f"{wrong}; no verdict can be trusted ({judge.backend.name}, {judge.backend.toolchain})"
            )
        if not result.is_answered:
            raise PreflightError(f"the verifier does not judge {result.canary.name}: {result.verdict.reason}")


async def _open_backend(
    config: VerifierTable, log: Any
) -> tuple[AbstractAsyncContextManager[AuditableBackend], ReplSpec | None]:
    """Return the backend to open, and how its workers start where they are ours."""
    if config.backend == "kimina":
        from fd_async.verifier.kimina.backend import open_kimina  # aiohttp is only needed here

        return open_kimina(config), None
    if config.backend == "minilean":
        log.warning("minilean judges proofs, not Lean: the tiny world's small checker of a fragment of core Lean 4")
        from fd_async.verifier.minilean.parser import warm_up  # the other backends do not need the parser

        await to_thread.run_sync(warm_up)  # leaves its tables on disk, which workers in the sandbox can only read
        spec, toolchain = locate_minilean(config)
    else:
        spec, toolchain = await to_thread.run_sync(locate_repl, config)
        log.info("Lean judges proofs", toolchain=toolchain, command=" ".join(spec.argv), workers=config.workers)
    spec = await to_thread.run_sync(lock_in, spec, config, log)
    opening = open_repl_backend(
        spec,
        name=config.backend,
        toolchain=toolchain,
        header=config.header.replace("\r\n", "\n").strip(),
        workers=config.workers,
        max_uses=config.max_uses,
        queue_timeout_s=config.queue_timeout_s,
        check_timeout_s=config.check_timeout_s,
        spares=config.workers if config.spares < 0 else config.spares,
        first_budget_s=config.first_budget_s,
        starts_at_once=config.starts_at_once,
        max_age_s=config.max_age_s,
        recycle_gib=config.recycle_gib,
        resident_limit_gib=config.resident_limit_gib,
        audit_workers=config.audit_workers,
    )
    return opening, spec
