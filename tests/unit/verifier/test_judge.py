"""The ladder above the gate, on a Lean that answers as told."""

from __future__ import annotations

import pytest

from fd_async.errors import VerifierError
from fd_async.types import Statement
from fd_async.verifier.backend import (
    CheckCrash,
    CheckFailed,
    CheckOutOfMemory,
    CheckTimeout,
    HeaderRefused,
    LeanAnswer,
    LeanRequest,
)
from fd_async.verifier.judge import Judge
from fd_async.verifier.messages import Message, Position
from tests.unit.verifier.conftest import AXIOMS, STATEMENT, ScriptedLean, proof

pytestmark = pytest.mark.anyio


async def test_a_proof_is_proved_and_says_where_it_was_judged(judge: Judge, lean: ScriptedLean) -> None:
    """The verdict carries its provenance, and the probe ran on top of the file."""
    verdict = await judge.judge(proof("exact Or.inl hp"), STATEMENT)
    assert (verdict.kind, verdict.backend, verdict.toolchain) == ("proved", "scripted", "none")
    assert len(verdict.file_hash) == len(verdict.header_hash) == 64
    assert lean.requests[0].probe.startswith("theorem fd_probe_")
    assert ": ∀ (p q : Prop) (hp : p), p ∨ q := @_root_.foo" in lean.requests[0].probe


async def test_probe_names_cannot_be_known_beforehand(judge: Judge, lean: ScriptedLean) -> None:
    """Two checks never use the same probe."""
    for text in ("exact Or.inl hp", "left; exact hp"):
        await judge.judge(proof(text), STATEMENT)
    assert lean.requests[0].probe != lean.requests[1].probe


@pytest.mark.parametrize(
    ("tactics", "kind", "reason"),
    [
        ("exact fake_error", "failed", "unknown identifier 'fake_error'"),
        ("sorry", "sorry", "contains `sorry`"),
        ("admit", "sorry", "contains `sorry`"),
        ("exact fake_sorry", "sorry", "contains `sorry`"),
        ("exact fake_hidden_sorry", "sorry", "rests on `sorry`"),
        ("exact fake_axiom", "axiom", "the axiom `cheat`"),
        ("exact fake_changed", "statement_changed", "does not have the given statement"),
        ("native_decide", "forbidden", "`native_decide`"),
    ],
)
async def test_every_rung_refuses_with_its_own_kind(judge: Judge, tactics: str, kind: str, reason: str) -> None:
    """The kind is typed, the reason is one line, and the model gets text to read."""
    verdict = await judge.judge(proof(tactics), STATEMENT)
    assert verdict.kind == kind
    assert reason in verdict.reason
    assert "\n" not in verdict.reason
    assert verdict.output


async def test_a_file_with_sorry_and_errors_failed_and_shows_them(judge: Judge) -> None:
    """A sketch gets the compiler's answer, so that it can be worked out."""
    verdict = await judge.judge(proof("have h : p := sorry\n  exact fake_error"), STATEMENT)
    assert verdict.kind == "failed"
    assert verdict.output == "3:8: error: unknown identifier 'fake_error'"


async def test_a_file_without_the_theorem_is_compiled_but_never_proved(judge: Judge) -> None:
    """Trying out a lemma is answered; it is no proof of the statement."""
    verdict = await judge.judge("theorem bar : True := fake_error", STATEMENT)
    assert verdict.kind == "failed"
    verdict = await judge.judge("theorem bar : True := trivial", STATEMENT)
    assert verdict.kind == "statement_changed"
    assert "does not state `theorem foo`" in verdict.output


async def test_the_header_is_ours(judge: Judge, lean: ScriptedLean) -> None:
    """A statement's own header goes first, the configured one stands in, and the model's is dropped."""
    await judge.judge("import Evil\n" + proof("exact Or.inl hp"), STATEMENT)
    own = Statement(name="foo", formal_statement=STATEMENT.formal_statement, header="open Nat\r\n")
    await judge.judge(proof("exact Or.inl hp"), own)
    assert [request.header for request in lean.requests] == ["", "open Nat"]
    assert "Evil" not in lean.requests[0].body


async def test_a_broken_statement_is_told_from_a_failure(judge: Judge) -> None:
    """A row of the data set that cannot be read, or does not compile, is not the model's failure."""
    broken = Statement(name="foo", formal_statement="def foo := 1")
    assert (await judge.judge(proof("exact Or.inl hp"), broken)).kind == "bad_statement"
    wrong = Statement(name="foo", formal_statement="theorem foo : fake_error_in_the_data := by")
    verdict = await judge.judge("theorem foo : fake_error_in_the_data := trivial", wrong)
    assert verdict.kind == "bad_statement"
    assert "alone does not compile" in verdict.reason


async def test_a_statement_is_examined_alone(judge: Judge) -> None:
    """Lean's words are there for whoever mends the data; a statement that compiles is worth a `sorry`."""
    wrong = Statement(name="foo", formal_statement="theorem foo : fake_error_in_the_data := by")
    verdict = await judge.examine(wrong)
    assert (verdict.kind, "error: " in verdict.output) == ("bad_statement", True)
    assert (await judge.examine(STATEMENT)).kind == "sorry"
    unreadable = Statement(name="foo", formal_statement="def foo := 1")
    assert (await judge.examine(unreadable)).kind == "bad_statement"


async def test_a_refused_header_is_blamed_on_the_statement_that_brings_it() -> None:
    """The configured header cannot be the statement's fault."""

    class Refusing(ScriptedLean):
        async def run(self, request: LeanRequest) -> LeanAnswer:
            raise HeaderRefused("the Lean header was rejected: unknown module")

    judge = Judge(Refusing(), "import Ours", frozenset(AXIOMS), 2400)
    own = Statement(name="foo", formal_statement=STATEMENT.formal_statement, header="import Theirs")
    for statement, kind in ((own, "bad_statement"), (STATEMENT, "infrastructure")):
        assert (await judge.judge(proof("exact Or.inl hp"), statement)).kind == kind
        assert (await judge.examine(statement)).kind == kind


async def test_a_header_that_lean_took_once_is_blamed_on_nobody() -> None:
    """A machine without memory or files refuses headers that are sound."""

    class Tired(ScriptedLean):
        async def run(self, request: LeanRequest) -> LeanAnswer:
            if self.requests:
                raise HeaderRefused("the Lean header was rejected: cannot map a file")
            return await super().run(request)

    judge = Judge(Tired(), "", frozenset(AXIOMS), 2400)
    own = Statement(name="foo", formal_statement=STATEMENT.formal_statement, header="import Theirs")
    assert (await judge.examine(own)).kind == "sorry"
    assert (await judge.examine(own)).kind == "infrastructure"
    assert (await judge.judge(proof("exact Or.inl hp"), own)).kind == "infrastructure"


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (CheckTimeout("slow"), "timeout"),
        (CheckOutOfMemory("big"), "out_of_memory"),
        (CheckCrash("bang"), "crash"),
        (VerifierError("no worker"), "infrastructure"),
    ],
)
async def test_failures_of_the_backend_are_typed(failure: Exception, kind: str) -> None:
    """Only what the input did twice is held against it."""

    class Failing(ScriptedLean):
        async def run(self, request: LeanRequest) -> LeanAnswer:
            raise failure

    verdict = await Judge(Failing(), "", frozenset(AXIOMS), 2400).judge(proof("exact hp"), STATEMENT)
    assert verdict.kind == kind


@pytest.mark.parametrize("probe", [None, [], [Message("'foo' does not depend on any axioms", "info")]])
async def test_without_a_readable_probe_nothing_is_proved(probe: list[Message] | None) -> None:
    """A missing or foreign answer to the probe is the verifier's failure, never a proof."""

    class Mute(ScriptedLean):
        async def run(self, request: LeanRequest) -> LeanAnswer:
            return LeanAnswer(messages=[], num_sorries=0, seconds=0.0, probe=probe)

    verdict = await Judge(Mute(), "", frozenset(AXIOMS), 2400).judge(proof("exact hp"), STATEMENT)
    assert verdict.kind == "infrastructure"


async def test_unsupported_is_a_kind_of_its_own() -> None:
    """The small checker's gaps are not counted as failed proofs, unless there is a real error as well."""

    class Small(ScriptedLean):
        name = "minilean"
        extra: list[Message] = []  # noqa: RUF012  one per test

        async def run(self, request: LeanRequest) -> LeanAnswer:
            gap = Message("minilean: unsupported tactic `simp`", "error", Position(2, 2))
            return LeanAnswer(messages=[gap, *self.extra], num_sorries=0, seconds=0.0)

    backend = Small()
    judge = Judge(backend, "", frozenset(AXIOMS), 2400)
    assert (await judge.judge(proof("simp"), STATEMENT)).kind == "unsupported"
    backend.extra = [Message("unknown identifier 'x'", "error", Position(3, 0))]
    assert (await judge.judge(proof("simp"), STATEMENT)).kind == "failed"
    backend.extra, backend.name = [], "repl"
    assert (await judge.judge(proof("simp"), STATEMENT)).kind == "failed", "on a real Lean a proof can say so itself"


async def test_the_output_never_exceeds_the_models_budget() -> None:
    """Also where the reason is long."""

    class Loud(ScriptedLean):
        async def run(self, request: LeanRequest) -> LeanAnswer:
            return LeanAnswer([Message("x" * 10_000, "error", Position(9, 0))], 0, 0.0)

    verdict = await Judge(Loud(), "", frozenset(AXIOMS), 300).judge(proof("simp"), STATEMENT)
    assert len(verdict.output) == 300
    assert len(verdict.reason) <= 200


@pytest.mark.parametrize(
    ("failure", "kind"),
    [(CheckTimeout("slow"), "timeout"), (CheckOutOfMemory("big"), "out_of_memory"), (CheckCrash("bang"), "crash")],
)
async def test_a_statement_is_blamed_by_leans_words_alone(failure: CheckFailed, kind: str) -> None:
    """Time and memory, which a model's other files can take away, drop no attempt at a good statement."""

    class Starved(ScriptedLean):
        async def run(self, request: LeanRequest) -> LeanAnswer:
            if request.probe_always:
                raise failure
            return LeanAnswer([Message("fake_error", "error", Position(1, 0))], 0, 0.0)

    judge = Judge(Starved(), "", frozenset(AXIOMS), 2400)
    assert (await judge.examine(STATEMENT)).kind == kind
    verdict = await judge.judge(proof("exact Or.inl hp"), STATEMENT)
    assert (verdict.kind, verdict.reason) == ("failed", "fake_error"), "an error in the line of the statement"
