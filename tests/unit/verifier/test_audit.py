"""The cold audit: what a warm worker was tricked into accepting is revoked, and trouble is held against nobody."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from msgspec.structs import replace

from fd_async.errors import VerifierError
from fd_async.types import Statement, Verdict
from fd_async.verifier.audit.audits import Audits, LadderAuditor
from fd_async.verifier.audit.cold import FreshBackend
from fd_async.verifier.backend import CheckCrash, CheckOutOfMemory, CheckTimeout, LeanAnswer, LeanRequest
from fd_async.verifier.judge import Judge
from fd_async.verifier.verifier import open_verifier
from tests.fakes import repl_poisoned
from tests.unit.verifier.conftest import AXIOMS, STATEMENT, ScriptedLean, fake_config, proof

pytestmark = pytest.mark.anyio

FALSE = Statement(name="bad", formal_statement="theorem bad (p q : Prop) (hp : p) : q := by sorry")
BOGUS = "theorem bad (p q : Prop) (hp : p) : q := by\n  exact hp\n"
POISON = f"-- fd_poison\n{proof('exact Or.inl hp')}"
HONEST = proof("left\n  exact hp")


def poisoned_config(**changes: Any) -> Any:
    """A verifier whose workers can be poisoned."""
    table = {"backend": "minilean", "command": [sys.executable, str(Path(repl_poisoned.__file__))]}
    return fake_config(**{**table, **changes})


class ColdLean(ScriptedLean):
    """The scripted Lean with fresh processes that answer as told."""

    def __init__(self, trouble: Exception | None = None) -> None:
        super().__init__()
        self.trouble = trouble
        self.delay_s = 0.0
        self.at_once = self.most_at_once = 0

    def distrust(self) -> None:
        """Nothing of it is warm."""

    async def run_fresh(self, request: LeanRequest) -> LeanAnswer:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await anyio.sleep(self.delay_s)
            if self.trouble is not None:
                raise self.trouble
            return await self.run(request)
        finally:
            self.at_once -= 1


def make_audits(lean: ColdLean, *, share: float = 1.0, workers: int = 2, timeout_s: float = 5.0) -> Audits:
    """Audits by the ladder over the scripted Lean."""
    judge = Judge(lean, "", frozenset(AXIOMS), 400)
    auditor = LadderAuditor("fresh", Judge(FreshBackend(lean), "", frozenset(AXIOMS), 400))
    log = structlog.get_logger("test")
    return Audits(judge, auditor, share=share, workers=workers, timeout_s=timeout_s, log=log)


PROVED = Verdict(kind="proved", backend="scripted", toolchain="none", lemmas=["a"], tactics=["exact"])


async def test_what_a_poisoned_worker_accepted_is_revoked_and_never_accepted_again() -> None:
    """One file poisons the only worker; a false theorem passes; the audit and the canaries notice."""
    async with open_verifier(poisoned_config(), output_chars=400) as verifier:
        assert (verifier.audit_kind, verifier.statistics()["canaries"]) == ("fresh", 0)
        assert (await verifier.check(POISON, STATEMENT)).kind == "proved"
        deceived = await verifier.check(BOGUS, FALSE)
        assert (deceived.kind, deceived.audit) == ("proved", "")
        with pytest.raises(
            VerifierError, match=r"accepted a false statement with a bogus proof.*no verdict can be trusted"
        ):
            await verifier.canaries()
        revoked = await verifier.audit(BOGUS, FALSE, deceived)
        assert (revoked.kind, revoked.audit, revoked.is_proved) == ("revoked", "fresh", False)
        assert revoked.reason.startswith("the cold audit (fresh) refused it: failed: ")
        assert revoked.output == f"error: {revoked.reason}"
        assert (revoked.file_hash, revoked.header_hash) == (deceived.file_hash, deceived.header_hash)
        assert await verifier.check(BOGUS, FALSE) == revoked
        assert (await verifier.check(f"{BOGUS}\n", FALSE)).kind == "failed", "the poisoned worker still judges"
        await verifier.canaries()
        confirmed = await verifier.audit(HONEST, STATEMENT, await verifier.check(HONEST, STATEMENT))
        assert (confirmed.kind, confirmed.audit) == ("proved", "fresh")
        counts = verifier.statistics()
        assert (counts["audits"], counts["revoked"], counts["audit_unfinished"]) == (2, 1, 0)


async def test_the_same_file_is_audited_once_also_at_the_same_time() -> None:
    """Repeats share the outcome; another statement or another file is another audit."""
    lean = ColdLean()
    lean.delay_s = 0.02
    audits = make_audits(lean)
    outcomes: list[Verdict] = []

    async def audit(code: str) -> None:
        outcomes.append(await audits.audit(code, STATEMENT, PROVED))

    async with anyio.create_task_group() as tasks:
        for number in range(24):
            tasks.start_soon(audit, proof(f"exact Or.inl hp -- {number % 6}"))
    await audit(proof("exact Or.inl hp -- 0"))
    assert {verdict.audit for verdict in outcomes} == {"fresh"}
    assert len(lean.requests) == 6
    assert lean.most_at_once == 2
    assert audits.statistics() == {"audits": 6, "revoked": 0, "audit_unfinished": 0, "auditing": 0}


@pytest.mark.parametrize(
    "trouble",
    [VerifierError("no process"), CheckTimeout("slow"), CheckOutOfMemory("full"), CheckCrash("crashed"), None],
    ids=["no process", "timeout", "memory", "crash", "no time"],
)
async def test_an_audit_that_cannot_be_carried_out_changes_nothing_and_is_counted(trouble: Exception | None) -> None:
    """It is not held against the model, not called audited, not remembered; all who wait for it hear the same."""
    lean = ColdLean(trouble)
    lean.delay_s = 0.01 if trouble else 60.0
    audits = make_audits(lean, timeout_s=5.0 if trouble else 0.5)
    outcomes: list[Verdict] = []

    async def audit() -> None:
        outcomes.append(await audits.audit(HONEST, STATEMENT, PROVED))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(audit)
    assert all(verdict is PROVED for verdict in outcomes)
    assert audits.statistics()["audit_unfinished"] == 1
    lean.trouble, lean.delay_s = None, 0.0
    assert (await audits.audit(HONEST, STATEMENT, PROVED)).audit == "fresh"


async def test_a_cancelled_audit_leaves_its_work_to_those_who_wait() -> None:
    """Neither an outcome nor a lock is left behind."""
    lean = ColdLean()
    lean.delay_s = 60.0
    audits = make_audits(lean, timeout_s=60.0)
    outcomes: list[Verdict] = []

    async def audit() -> None:
        outcomes.append(await audits.audit(HONEST, STATEMENT, PROVED))

    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as first:
            first.start_soon(audit)
            while not lean.at_once:
                await anyio.lowlevel.checkpoint()
            tasks.start_soon(audit)
            await anyio.lowlevel.checkpoint()
            lean.delay_s = 0.0
            first.cancel_scope.cancel()
    assert [verdict.audit for verdict in outcomes] == ["fresh"]
    assert audits.statistics()["auditing"] == 0


async def test_the_audited_share_is_a_property_of_the_file() -> None:
    """The same files are chosen every time, about as many as asked for; what is not chosen is not called audited."""
    lean = ColdLean()
    chosen: list[list[str]] = []
    for _ in range(2):
        audits = make_audits(lean, share=0.25)
        files = [proof(f"exact Or.inl hp -- {number}") for number in range(200)]
        chosen.append([file for file in files if (await audits.audit(file, STATEMENT, PROVED)).audit])
    assert chosen[0] == chosen[1]
    assert 25 <= len(chosen[0]) <= 75
    assert await make_audits(lean, share=0.0).audit(HONEST, STATEMENT, PROVED) is PROVED


async def test_only_accepted_and_unaudited_verdicts_are_audited() -> None:
    """A failure costs no process, and an audit is not audited."""
    lean = ColdLean()
    for verdict in (Verdict(kind="failed"), Verdict(kind="infrastructure"), replace(PROVED, audit="fresh")):
        assert await make_audits(lean).audit(HONEST, STATEMENT, verdict) is verdict
    assert lean.requests == []


async def test_a_file_that_is_not_the_judged_one_is_not_audited() -> None:
    """A mix-up of ours is no proof of anything."""
    audits = make_audits(ColdLean())
    verdict = replace(PROVED, file_hash="another")
    assert await audits.audit(HONEST, STATEMENT, verdict) is verdict
    assert audits.statistics()["audit_unfinished"] == 1
