"""Statements taken apart, our statement spliced in, and lines mapped back."""

from __future__ import annotations

import pytest

from fd_async.types import Statement, Verdict
from fd_async.verifier.judge import prepare
from fd_async.verifier.source.reconstruct import Goal, Rebuilt, StatementError, read_statement
from tests.unit.verifier.conftest import STATEMENT


def goal(text: str) -> Goal:
    return read_statement(Statement(name="s", formal_statement=text))


def rebuilt(code: str, statement: Statement = STATEMENT) -> Rebuilt:
    result = prepare(code, statement, "")
    assert not isinstance(result, Verdict), result
    return result.rebuilt


@pytest.mark.parametrize("ending", [" := by sorry", "  :=  by", ":= sorry", " :=", "", "\n  := by\n  sorry\n"])
def test_a_statement_may_be_cut_anywhere_after_its_conclusion(ending: str) -> None:
    """Data sets end their statements in different places; the parts are the same."""
    found = goal(f"theorem t (x : ℝ) (h : 0 < x) : x ≠ 0{ending}")
    assert (found.name, found.binders, found.conclusion) == ("t", "(x : ℝ) (h : 0 < x)", "x ≠ 0")
    assert found.declaration == "theorem t (x : ℝ) (h : 0 < x) : x ≠ 0 :="


def test_the_probe_states_the_closed_theorem_and_asks_for_its_axioms() -> None:
    """Binders move under a quantifier, universes to the probe's name, and the proof is the constant itself."""
    assert goal("theorem t a : f a = 1 := by").probe("n") == ("theorem n : ∀ a, f a = 1 := @_root_.t\n#print axioms n")
    assert goal("theorem t : 1 = 1 := by").probe("n").startswith("theorem n : 1 = 1 := @_root_.t\n")
    assert (
        goal("theorem t.{u} {α : Type u} (s : α) : s = s := by")
        .probe("n")
        .startswith("theorem n.{u} : ∀ {α : Type u} (s : α), s = s := @_root_.t\n")
    )
    assert goal("theorem t (f : ∀ x : ℕ, x = x) : ∃ y : ℕ, y = 1 := by").conclusion == "∃ y : ℕ, y = 1"


@pytest.mark.parametrize(
    "text", ["", "def t : Nat := 1", "theorem", "theorem t := by sorry", "theorem t (x : Nat)", "theorem t : /- "]
)
def test_what_is_no_statement_is_an_error_of_the_data(text: str) -> None:
    """A broken row of the data set is never the model's failure."""
    with pytest.raises(StatementError, match="statement 's'"):
        goal(text)


def test_the_proof_keeps_its_columns_and_lines_map_back() -> None:
    """Layout decides what a tactic block means, so no column may move."""
    head = "import Mathlib\n\ntheorem h : 1 = 1 := rfl\n\n"
    code = f"{head}theorem foo (p q : Prop)\n    (hp : p) :\n    p ∨ q := by left\n              exact hp\n"
    result = rebuilt(code)
    lines = result.body.split("\n")
    assert lines[0] == " " * len("import Mathlib")
    assert lines[2] == "theorem h : 1 = 1 := rfl"
    assert lines[4] == STATEMENT.formal_statement.removesuffix(" by sorry")
    assert lines[5] == "            by left".rjust(len("    p ∨ q := by left"))
    assert lines[6] == "              exact hp"
    assert [result.model_line(line) for line in (3, 5, 6, 7)] == [3, 5, 7, 8]
    assert [result.is_statement(line) for line in (4, 5, 6)] == [False, True, False]


def test_a_longer_statement_of_ours_shifts_the_other_way() -> None:
    """Our text may have more lines than the model's."""
    statement = Statement(name="foo", formal_statement="theorem foo\n  (p q : Prop)\n  (hp : p)\n  : p ∨ q := by")
    result = rebuilt("theorem foo (p q : Prop) (hp : p) : p ∨ q :=\n  bad", statement)
    assert result.body == "theorem foo\n  (p q : Prop)\n  (hp : p)\n  : p ∨ q :=\n" + " " * 44 + "\n  bad"
    assert [result.model_line(line) for line in (1, 4, 5, 6)] == [1, 1, 1, 2]


def test_the_models_copy_of_the_statement_never_reaches_lean() -> None:
    """Comments inside the model's statement are gone, ours stands in its place."""
    result = rebuilt("theorem foo (p q /- evil -/ : Prop) (hp : p) :\n  p ∨ q := Or.inl hp")
    assert "evil" not in result.body
    assert result.body.startswith("theorem foo (p q : Prop) (hp : p) : p ∨ q :=\n")
