"""The cold audit: a second judgement of accepted proofs, by processes that nobody used before.

A warm worker has compiled other people's files; whatever one of them left behind, in the process or in our handling of
it, can make it accept what is not a proof. So what it accepted is judged once more from nothing, before the learner
hears of it. Three answers: confirmed, revoked, or not finished. An audit that could not be carried out says nothing
about the proof: the verdict stands, is not called audited, and is counted.

Owns the choice of the auditor, the number of audits at a time, their deadline, and the memory of their outcomes: the
same file for the same statement is audited once.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from anyio import CapacityLimiter, Event, current_time, fail_after

from fd_async.errors import VerifierError
from fd_async.types import Statement, Verdict, VerdictKind
from fd_async.verifier.judge import Judge, content_key, sha256

_UNFINISHED: frozenset[VerdictKind] = frozenset(
    {"infrastructure", "bad_statement", "timeout", "out_of_memory", "crash"}
)
"""Kinds that mean, of a file that Lean has accepted before, that the audit failed and not the proof."""
_KEPT_OUTCOMES = 20_000


class AuditRefused(Exception):
    """The proof does not stand; `args[0]` names the rung and why, in one line."""


class Auditor(Protocol):
    """One way to judge a proof from nothing."""

    @property
    def kind(self) -> str:
        """As in `verifier.audit`."""
        ...

    async def confirm(self, code: str, statement: Statement) -> None:
        """Return if the proof stands.

        Raises:
            AuditRefused: It does not.
            VerifierError: No judgement was possible.
        """
        ...


@dataclass(frozen=True)
class LadderAuditor:
    """Climbs the whole ladder again: gate, reconstruction, compilation, a probe with a new nonce."""

    kind: str
    judge: Judge
    """Over a backend whose every request has a process of its own."""

    async def confirm(self, code: str, statement: Statement) -> None:
        verdict = await self.judge.rejudge(code, statement)
        if verdict.is_proved:
            return
        line = f"{verdict.kind}: {verdict.reason}"
        if verdict.kind in _UNFINISHED:
            raise VerifierError(line)
        raise AuditRefused(line)


class _Job:
    """An audit under way, and whether it came to its end; one that was cancelled did not."""

    def __init__(self) -> None:
        self.ended = Event()
        self.is_over = False


class Audits:
    """Bounded, deduplicated audits. `auditor` None audits nothing."""

    def __init__(
        self, judge: Judge, auditor: Auditor | None, *, share: float, workers: int, timeout_s: float, log: Any
    ) -> None:
        self._judge = judge
        self._auditor = auditor
        self._share = share
        self._turn = CapacityLimiter(workers)
        self._timeout_s = timeout_s
        self._log = log
        self._outcomes: OrderedDict[str, str | None] = OrderedDict()
        """Content -> why it was revoked, or None where it was confirmed."""
        self._running: dict[str, _Job] = {}
        self._counts: Counter[str] = Counter()

    @property
    def kind(self) -> str:
        """What audits, `off` when nothing does."""
        return self._auditor.kind if self._auditor else "off"

    def statistics(self) -> dict[str, float]:
        """Counters since the start: `audits` finished, `revoked` among them, `audit_unfinished`; gauge `auditing`."""
        names = ("audits", "revoked", "audit_unfinished")
        return {**{name: self._counts[name] for name in names}, "auditing": self._turn.borrowed_tokens}

    def is_chosen(self, key: str) -> bool:
        """Say whether a file is in the audited share; the same file always gives the same answer."""
        return int(key[:13], 16) < self._share * 16**13

    async def audit(self, code: str, statement: Statement, verdict: Verdict) -> Verdict:
        """Return the verdict as confirmed, as revoked, or as it was when there is nothing to audit or no answer."""
        if self._auditor is None or not verdict.is_proved or verdict.audit:
            return verdict
        key = content_key(self._judge.header_of(statement), statement, code)
        if not self.is_chosen(key):
            return verdict
        while key not in self._outcomes:
            job = self._running.get(key)
            if job is None:
                job = self._running[key] = _Job()
                try:
                    await self._carry_out(key, code, statement, verdict)
                    job.is_over = True
                finally:
                    del self._running[key]
                    job.ended.set()
            else:
                await job.ended.wait()
            if job.is_over and key not in self._outcomes:
                return verdict
        refused = self._outcomes[key]
        if refused is None:
            return msgspec.structs.replace(verdict, audit=self._auditor.kind)
        return _revoked(verdict, self._auditor.kind, refused)

    async def _carry_out(self, key: str, code: str, statement: Statement, verdict: Verdict) -> None:
        """Run one audit and keep its outcome, if it has one."""
        assert self._auditor is not None
        started = current_time()
        refused: str | None = None
        try:
            if verdict.file_hash and verdict.file_hash != sha256(code):
                raise VerifierError("the file is not the one that the verdict judged")
            async with self._turn:
                with fail_after(self._timeout_s):
                    await self._auditor.confirm(code, statement)
        except AuditRefused as error:
            refused = str(error)
            self._counts["revoked"] += 1
            self._log.error(
                "a cold audit revoked an accepted proof: a warm worker or the judge was deceived",
                statement=statement.name, file_hash=verdict.file_hash, auditor=self.kind, reason=refused,
            )  # fmt: skip
        except (VerifierError, TimeoutError) as error:
            self._counts["audit_unfinished"] += 1
            reason = str(error) or f"not done within verifier.audit_timeout_s = {self._timeout_s:g}"
            self._log.warning("an audit was not finished", statement=statement.name, auditor=self.kind, reason=reason)
            return
        self._counts["audits"] += 1
        self._log.debug("audited", statement=statement.name, seconds=round(current_time() - started, 3))
        self._outcomes[key] = refused
        if len(self._outcomes) > _KEPT_OUTCOMES:
            self._outcomes.popitem(last=False)


def _revoked(verdict: Verdict, kind: str, refused: str) -> Verdict:
    """Turn an accepting verdict into its opposite; it keeps where it came from."""
    reason = f"the cold audit ({kind}) refused it: {refused}"
    return msgspec.structs.replace(
        verdict, kind="revoked", reason=reason, output=f"error: {reason}", audit=kind, lemmas=[], tactics=[]
    )
