"""Every verdict says what judged it, under which header, which file, and how long that took."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
import structlog

from fd_async.errors import VerifierError
from fd_async.types import Statement, Verdict, VerdictKind
from fd_async.verifier.audit.audits import Audits, LadderAuditor
from fd_async.verifier.audit.cold import FreshBackend
from fd_async.verifier.backend import CheckCrash, CheckOutOfMemory, CheckTimeout, LeanAnswer, LeanRequest
from fd_async.verifier.judge import MAX_CODE_CHARS, Judge, sha256
from fd_async.verifier.messages import UNSUPPORTED, Message, Position
from tests.unit.verifier.conftest import AXIOMS, STATEMENT, ScriptedLean, proof

pytestmark = pytest.mark.anyio

HEADER = "open Nat"


class Lean(ScriptedLean):
    """The scripted Lean, which can also break, and whose fresh processes refuse everything."""

    name = "minilean"  # the only one that may call a feature unsupported

    async def run(self, request: LeanRequest) -> LeanAnswer:
        for word, error in {
            "break_time": CheckTimeout("slow"),
            "break_memory": CheckOutOfMemory("full"),
            "break_crash": CheckCrash("crashed"),
            "break_lean": VerifierError("no worker"),
        }.items():
            if word in request.body:
                raise error
        if "break_known" in request.body:
            return LeanAnswer([Message(f"{UNSUPPORTED} `simp`", "error", Position(2, 0))], 0, 0.5)
        return msgspec.structs.replace(await super().run(request), seconds=0.5)

    def distrust(self) -> None:
        """Nothing of it is warm."""

    async def run_fresh(self, request: LeanRequest) -> LeanAnswer:
        return LeanAnswer([Message("unknown identifier", "error", Position(2, 0))], 0, 0.5)


UNREADABLE = Statement(name="foo", formal_statement="def foo := 1")
CASES: list[tuple[VerdictKind, str, Statement]] = [
    ("proved", proof("exact Or.inl hp"), STATEMENT),
    ("failed", proof("exact fake_error"), STATEMENT),
    ("sorry", proof("sorry"), STATEMENT),
    ("sorry", proof("exact fake_hidden_sorry"), STATEMENT),
    ("axiom", proof("exact fake_axiom"), STATEMENT),
    ("statement_changed", "theorem foo : True := trivial", STATEMENT),
    ("statement_changed", proof("exact fake_changed"), STATEMENT),
    ("statement_changed", "theorem other : True := trivial", STATEMENT),
    ("forbidden", f"axiom a : False\n{proof('exact a.elim')}", STATEMENT),
    ("forbidden", proof("exact «hp»") + '"', STATEMENT),
    ("forbidden", " " * (MAX_CODE_CHARS + 1), STATEMENT),
    ("unsupported", proof("exact break_known"), STATEMENT),
    ("timeout", proof("exact break_time"), STATEMENT),
    ("out_of_memory", proof("exact break_memory"), STATEMENT),
    ("crash", proof("exact break_crash"), STATEMENT),
    ("infrastructure", proof("exact break_lean"), STATEMENT),
    ("bad_statement", proof("exact hp"), UNREADABLE),
]


def complete(verdict: Verdict, code: str) -> bool:
    """Say whether a verdict carries all that is promised."""
    assert (verdict.backend, verdict.toolchain) == ("minilean", "none")
    assert (verdict.header_hash, verdict.file_hash) == (sha256(HEADER), sha256(code))
    assert verdict.seconds > 0.0
    assert (verdict.reason == "") == verdict.is_proved
    assert "\n" not in verdict.reason
    return True


async def test_every_kind_of_verdict_has_its_whole_provenance() -> None:
    """Also the kinds that are decided before any Lean runs, and the one that comes after it."""
    lean = Lean()
    judge = Judge(lean, HEADER, frozenset(AXIOMS), 400)
    seen: set[str] = {"missing"}  # no file, so nothing was judged
    for kind, code, statement in CASES:
        verdict = await judge.judge(code, statement)
        assert verdict.kind == kind, (code, verdict)
        assert complete(verdict, code)
        seen.add(kind)
    auditor = LadderAuditor("fresh", same_rules(judge, FreshBackend(lean)))
    audits = Audits(judge, auditor, share=1.0, workers=1, timeout_s=5.0, log=structlog.get_logger("test"))
    kind, code, statement = CASES[0]
    revoked = await audits.audit(code, statement, await judge.judge(code, statement))
    assert complete(revoked, code)
    assert (revoked.kind, revoked.audit) == ("revoked", "fresh")
    assert seen | {revoked.kind} == set(get_args(VerdictKind))


def same_rules(judge: Judge, backend: FreshBackend) -> Judge:
    """The same rules over another backend."""
    return Judge(backend, judge.header, judge.allowed_axioms, judge.output_chars)
