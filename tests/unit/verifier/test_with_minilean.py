"""The whole way, from a tool call to a verdict, with the project's own checker as the worker."""

from __future__ import annotations

import pytest

from fd_async.types import Statement, ToolCall
from fd_async.verifier.tools.search import Search
from fd_async.verifier.tools.toolbox import Toolbox
from fd_async.verifier.verifier import open_verifier
from tests.unit.verifier.conftest import STATEMENT, fake_config, proof

pytestmark = pytest.mark.anyio

ARITHMETIC = Statement(name="bar", formal_statement="theorem bar (x y : Nat) (h : x ≤ y) : x < y + 1 := by sorry")

CASES = {
    "a term": (STATEMENT, proof("exact Or.inl hp"), "proved", ""),
    "tactics": (STATEMENT, proof("left\n  exact hp"), "proved", ""),
    "arithmetic": (ARITHMETIC, "theorem bar (x y : Nat) (h : x ≤ y) : x < y + 1 := by\n  omega", "proved", ""),
    "a helper": (
        STATEMENT,
        f"theorem help (a b : Prop) (ha : a) : a ∨ b := Or.inl ha\n{proof('exact help p q hp')}",
        "proved",
        "",
    ),
    "a wrong tactic": (STATEMENT, proof("right\n  exact hp"), "failed", "3:"),
    "a missing name": (STATEMENT, proof("exact h"), "failed", "2:"),
    "sorry": (STATEMENT, proof("sorry"), "sorry", "sorry"),
    "a helper with sorry": (
        STATEMENT,
        f"theorem help (a b : Prop) (ha : a) : a ∨ b := sorry\n{proof('exact help p q hp')}",
        "sorry",
        "sorry",
    ),
    "an easier statement": (STATEMENT, "theorem foo : True := trivial", "statement_changed", "statement was changed"),
    "an axiom": (STATEMENT, f"axiom a : ∀ p q : Prop, p ∨ q\n{proof('exact a p q')}", "forbidden", "`axiom`"),
    "what the checker does not know": (STATEMENT, proof("simp"), "unsupported", "minilean: unsupported"),
}


async def test_every_kind_of_file_gets_its_verdict() -> None:
    """One pool, all kinds: the words of the tools and the typed verdicts agree."""
    config = fake_config(backend="minilean", command=[])
    async with open_verifier(config, output_chars=400) as verifier:
        for name, (statement, code, kind, words) in CASES.items():
            box = Toolbox(statement, verifier, Search(None), 400)
            await box.call(ToolCall(name="lean_write_file", arguments={"file_name": "a.lean", "code": code}))
            result = await box.call(ToolCall(name="lean_check_file", arguments={"file_name": "a.lean"}))
            verdict = await box.final_verdict()
            assert verdict.kind == kind, (name, verdict)
            assert verdict == result.verdict
            assert words in result.text, (name, result.text)
            assert result.ok == (kind == "proved")
        assert verifier.statistics()["desyncs"] == 0
        assert verifier.statistics()["infra_errors"] == 0
