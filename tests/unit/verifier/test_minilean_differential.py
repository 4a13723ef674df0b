"""minilean against a written semantics that reads the statement's text itself; `bench.minilean` runs far more cases."""

from __future__ import annotations

import random

import pytest

from bench.minilean import Tally, all_forms, cases, corpus, forms
from bench.minilean_cases import Case
from bench.minilean_oracle import by_z3, truth
from bench.minilean_statement import Unread, read_statement

TRUE = [
    "(p q : Prop) (h : p → q) : ¬q → ¬p",
    "(p q r : Prop) : p ∧ q ∨ r ↔ (p ∧ q) ∨ r",
    "(p q : Prop) : ¬p ∧ q → q",
    "(x y : Nat) : x - y ≤ x",
    "(x : Nat) : x / 0 = 0 ∧ x % 0 = x",
    "(x : Int) : x % 2 = 0 ∨ x % 2 = 1",
    "(x y : Int) : -x - -y = y - x",
    "(x : Nat) : ∃ y, x < y",
    "(α : Type) (P : α → Prop) (h : ¬∃ a, P a) : ∀ a, ¬P a",
    "(p : Prop) (h : Nat → p) : p",
    "(P : Nat → Prop) (h : ∀ n, P n) : P 3 ∧ P (2 + 2)",
    "(f : Nat → Nat) (h : ∀ n, f n < n + 1) : f 0 = 0",
    "(h : ∀ n : Nat, n = 0) : True ∧ ∃ n : Int, n < n",
]
FALSE = [
    "(p q r : Prop) : p ∧ q ∨ r ↔ p ∧ (q ∨ r)",
    "(p q : Prop) : p → q → p ∧ ¬q",
    "(p q : Prop) : (p → q) → q → p",
    "(x y : Nat) : x - y + y = x",
    "(x y : Int) : x - y ≤ x",
    "(x : Nat) : ∃ y, y < x",
    "(x y : Int) (h : 2 * x ≤ 2 * y + 1) : x < y",
    "(x : Int) : x / 2 * 2 = x",
    "(α : Type) (P : α → Prop) (h : ∀ a, P a) : ∃ a, P a",
    "(α : Type) (p : Prop) (h : α → p) : p",
    "(α : Type) (R : α → α → Prop) (h : ∀ a, ∃ b, R a b) : ∃ b, ∀ a, R a b",
    "(P : Nat → Prop) (h : P 0) : ∀ n, P n",
    "(f : Nat → Nat) (h : f 0 = 0) : ∀ n, f n = n",
    "(x : Nat) : ∀ x : Nat, x = 0",
]


@pytest.mark.parametrize("statement", [*TRUE, *FALSE])
def test_the_semantics_knows_right_from_wrong(statement: str) -> None:
    """Truncated subtraction, division by zero, empty types, precedences, shadowing, quantifiers over numbers."""
    formula = read_statement(f"theorem t {statement} := by")
    expected = "true" if statement in TRUE else "false"
    assert truth(formula) == expected
    assert by_z3(formula) in (expected, "true" if "Type" in statement else expected)  # z3 has no empty type


def test_what_the_semantics_cannot_read_is_no_verdict() -> None:
    """Text outside the language raises; it is never called true."""
    for text in ("theorem t : x = x :=", "theorem t (x : Real) : x = x :=", "theorem t : p ∧ :=", "lemma t : True :="):
        with pytest.raises(Unread):
            read_statement(text)


def test_accepted_cases_are_true_and_most_valid_ones_are_accepted() -> None:
    """A share of the benchmark, another one with every seed of the tests: valid, nearly right and random proofs."""
    tally = Tally()
    for case in cases(random.randrange(10**6), 90, corpus()):
        tally.add(case)
    assert not tally.unsound
    assert not tally.undecided
    assert tally.counts["internal_errors"] == 0
    assert tally.counts["valid_accepted"] > 0.7 * tally.counts["valid"]
    assert tally.counts["nearly_right_accepted"] < tally.counts["nearly_right"]


def test_the_tally_would_see_an_unsound_acceptance(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a checker that accepts everything the same cases are called unsound."""
    from bench import minilean
    from fd_async.verifier.minilean.commands import Environment, Result

    class Gullible:
        def __init__(self, environment: Environment, text: str) -> None:
            self.text = text

        def run(self) -> Result:
            return Result(Environment({"t": None}), [], [])  # type: ignore[dict-item]

    monkeypatch.setattr(minilean, "Runner", Gullible)
    tally = Tally()
    for statement in FALSE[:4]:
        tally.add(Case(f"theorem t {statement} := by\n  omega", "random"))
    assert len(tally.unsound) == 4


def test_the_forms_of_a_text_are_named_as_in_the_list_of_all() -> None:
    """Coverage compares these two."""
    text = "theorem t (p q : Prop) (h : p ∧ q) : q ∨ ¬p := by\n  first\n  | exact Or.inl h.2\n  | skip"
    found = forms(text)
    assert {"Binary AND", "Binary OR", "Unary NOT", "First", "Simple exact", "Simple skip", "Project"} <= found
    assert {"Simple omega", "Binary AND", "Focus cdot"} <= all_forms()
