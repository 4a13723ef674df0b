"""The honest proofs through the whole judge: none refused for its style."""

from __future__ import annotations

import pytest

from fd_async.types import Verdict
from fd_async.verifier.judge import Judge, prepare
from tests.unit.verifier.conftest import AXIOMS, STATEMENT
from tests.unit.verifier.exploits_lean import Script, ScriptedAnswer, SmallLean
from tests.unit.verifier.honest import HONEST

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("code", HONEST.values(), ids=HONEST.keys())
async def test_an_honest_proof_is_proved_when_lean_accepts_it(code: str) -> None:
    """Varied style, comments and names are no reason to refuse; our statement stands in what Lean reads."""
    result = prepare(code, STATEMENT, "")
    assert not isinstance(result, Verdict), result
    assert "theorem foo (p q : Prop) (hp : p) : p ∨ q :=" in result.rebuilt.body
    judge = Judge(ScriptedAnswer(Script(axioms="propext, Classical.choice, Quot.sound")), "", frozenset(AXIOMS), 2400)
    assert (await judge.judge(code, STATEMENT)).kind == "proved"


async def test_the_small_checker_proves_those_within_its_fragment() -> None:
    """What it cannot judge it calls unsupported or failed, by words about Lean, never by words about style."""
    kinds = []
    for code in HONEST.values():
        verdict = await Judge(SmallLean(), "", frozenset(AXIOMS), 2400).judge(code, STATEMENT)
        assert verdict.kind in ("proved", "unsupported", "failed"), verdict
        kinds.append(verdict.kind)
    assert kinds.count("proved") >= 25
    assert len(kinds) >= 90
