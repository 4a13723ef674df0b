"""Checks whose answer is known: one honest proof, and one cheat for every rung of the ladder.

They go the way of every other check, past the cache, when a verifier opens and at every evaluation of a run. Two of
them go beneath the gate, so that Lean's own answers about axioms and statements are tested and not only ours. A
cheat that is accepted, or an honest proof that is refused, means that no verdict can be trusted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from fd_async.types import Statement, Verdict, VerdictKind

_STATED = "(p q : Prop) (hp : p) : p ∨ q"


class Canary(Struct, frozen=True, kw_only=True):
    """One check and the kind of verdict that it must get."""

    name: str
    """What it tries, for people."""
    statement: Statement
    code: str
    expected: VerdictKind
    beneath_the_gate: bool = False
    """Compile `code` as it stands and believe the probe alone."""


class CanaryResult(Struct, frozen=True, kw_only=True):
    """What became of one canary."""

    canary: Canary
    verdict: Verdict

    @property
    def is_answered(self) -> bool:
        """False when the infrastructure failed, which says nothing about the judge."""
        return not self.verdict.is_infrastructure

    @property
    def is_right(self) -> bool:
        return self.verdict.kind == self.canary.expected

    @property
    def line(self) -> str:
        """One line for people."""
        if self.is_right:
            return f"{self.canary.name}: {self.verdict.kind}, as it must be"
        got = f"{self.verdict.kind} ({self.verdict.reason})" if self.verdict.reason else self.verdict.kind
        return f"{self.canary.name}: {got}, expected {self.canary.expected}"


class CanaryJudge(Protocol):
    """Who judges canaries."""

    async def judge_canary(self, canary: Canary) -> Verdict:
        """Judge one canary as any other file, or its `code` alone when it goes beneath the gate."""
        ...


def _statement(name: str, stated: str = _STATED) -> Statement:
    return Statement(name=f"fd_canary_{name}", formal_statement=f"theorem fd_canary_{name} {stated} := by sorry")


CANARIES: tuple[Canary, ...] = (
    Canary(
        name="an honest proof",
        statement=_statement("honest"),
        code=f"theorem fd_canary_honest {_STATED} := by\n  exact Or.inl hp\n",
        expected="proved",
    ),
    Canary(
        name="a false statement with a bogus proof",
        statement=_statement("false", "(p q : Prop) (fd_bogus : p) : q"),
        code="theorem fd_canary_false (p q : Prop) (fd_bogus : p) : q := by\n  exact fd_bogus\n",
        expected="failed",
    ),
    Canary(
        name="a proof by `sorry`",
        statement=_statement("sorry"),
        code=f"theorem fd_canary_sorry {_STATED} := by\n  sorry\n",
        expected="sorry",
    ),
    Canary(
        name="an axiom of the model's own",
        statement=_statement("axiom"),
        code=f"axiom cheat (p : Prop) : p\ntheorem fd_canary_axiom {_STATED} := cheat _\n",
        expected="forbidden",
    ),
    Canary(
        name="an easier statement",
        statement=_statement("easier"),
        code="theorem fd_canary_easier : True := trivial\n",
        expected="statement_changed",
    ),
    Canary(
        name="an easier statement that the gate did not see",
        statement=_statement("probe"),
        code="theorem fd_canary_probe (p q : Prop) (fd_easier : p) : p := fd_easier",
        expected="statement_changed",
        beneath_the_gate=True,
    ),
    Canary(
        name="a hidden `sorry` in the list of axioms",
        statement=_statement("hidden"),
        code=f"theorem fd_canary_hidden {_STATED} := by sorry",
        expected="sorry",
        beneath_the_gate=True,
    ),
)


async def run_canaries(judge: CanaryJudge, canaries: Sequence[Canary] = CANARIES) -> list[CanaryResult]:
    """Judge every canary, one after another."""
    return [CanaryResult(canary=canary, verdict=await judge.judge_canary(canary)) for canary in canaries]


def first_wrong(results: Sequence[CanaryResult]) -> str:
    """Say in one line which canary shows that verdicts cannot be trusted; empty when none does."""
    for result in results:
        if result.is_answered and not result.is_right:
            accepted = "the verifier accepted" if result.verdict.is_proved else "the verifier misjudged"
            return f"{accepted} {result.line}"
    return ""
