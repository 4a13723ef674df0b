"""What minilean accepts and refuses."""

from __future__ import annotations

import pytest

from fd_async.verifier.minilean.commands import Environment, Result, Runner
from tests.unit.verifier.minilean_proofs import PROOFS
from tests.unit.verifier.minilean_refusals import OUTSIDE, REFUSED, UNPROVED, blocks


def run(text: str, environment: Environment | None = None) -> Result:
    return Runner(environment or Environment(), text).run()


def errors(result: Result) -> list[str]:
    return [message.data for message in result.messages if message.severity == "error"]


def test_the_lists_are_long_enough_to_mean_something() -> None:
    """At least 80 proofs and 120 refusals, no text twice."""
    assert len(set(PROOFS)) == len(PROOFS) >= 150
    assert len(set(REFUSED)) == len(REFUSED) >= 290


@pytest.mark.parametrize("text", PROOFS)
def test_ordinary_proofs_are_accepted(text: str) -> None:
    """No message at all, and the theorem does not rest on `sorry`."""
    result = run(text)
    assert result.messages == []
    assert result.sorries == []
    assert "sorryAx" not in result.environment.theorems["t"].axioms


@pytest.mark.parametrize("text", REFUSED)
def test_what_lean_rejects_or_minilean_does_not_know_is_refused(text: str) -> None:
    """At least one error, none of them a fault of the checker, and no proved theorem comes out of the broken part."""
    found = errors(run(text))
    assert found
    assert not [data for data in found if "internal error" in data or "refused by the kernel" in data]


@pytest.mark.parametrize("text", UNPROVED)
def test_sorry_is_never_a_proof(text: str) -> None:
    """A warning instead of an error, and the axiom `sorryAx`, also through another theorem."""
    result = run(text)
    assert errors(result) == []
    assert [m.severity for m in result.messages if m.data == "declaration uses `sorry`"]
    assert "sorryAx" in result.environment.theorems["t"].axioms


@pytest.mark.parametrize(
    "text", [t for t in blocks(OUTSIDE) if not t.startswith("theorem") or "linarith" in t or "simp" in t]
)
def test_features_outside_the_fragment_are_called_unsupported(text: str) -> None:
    """The first error says that it is minilean that gives up, in words that Lean never uses."""
    assert errors(run(text))[0].startswith("minilean: unsupported: ")


def test_a_failed_theorem_can_be_used_but_stays_unproved() -> None:
    """Lean keeps the name of a theorem whose proof failed; what uses it rests on `sorryAx`."""
    result = run("theorem a : 1 = 2 := by decide\ntheorem b : 2 = 1 := a.symm")
    assert len(errors(result)) == 1
    assert "sorryAx" in result.environment.theorems["b"].axioms


def test_an_inaccessible_name_cannot_be_written() -> None:
    """Neither by the name that Lean shows nor by the name without the dagger."""
    for name in ("h✝", "h"):
        assert errors(run(f"theorem t (p q : Prop) (g : p ∨ q) : q ∨ p := by\n  cases g\n  · exact Or.inr {name}"))


def test_errors_of_several_bullets_are_all_reported() -> None:
    """As Lean does, the second bullet is checked although the first one failed."""
    result = run("theorem t (p q : Prop) : p ∧ q := by\n  constructor\n  · assumption\n  · exact foo")
    assert len(errors(result)) == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "example (p q : Prop) (h : p) : q := h",
            "Type mismatch\n  h\nhas type\n  p\nbut is expected to have type\n  q",
        ),
        ("example : 1 = 1 := foo", "Unknown identifier `foo`"),
        (
            "example (p : Prop) (h : p) : p ∧ p := by\n  constructor\n  exact h",
            "unsolved goals\ncase right\np : Prop\nh : p\n⊢ p",
        ),
        ("example (p : Prop) (h : p) : p := by\n  exact h\n  exact h", "No goals to be solved"),
        (
            "example (p q r : Prop) : p → q ∧ r := by assumption",
            "Tactic `assumption` failed\n\np q r : Prop\n⊢ p → q ∧ r",
        ),
        ("example : 2 = 3 := by decide", "Tactic `decide` proved that the proposition\n  2 = 3\nis false"),
        ("example (p : Prop) (f : Nat → Prop) : f := by skip", "type expected, got\n  (f : Nat → Prop)"),
        ("example (x y : Nat) : x - (y + 1) * 2 ≤ x := by skip", "unsolved goals\nx y : Nat\n⊢ x - (y + 1) * 2 ≤ x"),
        (
            "example (p q r : Prop) : (p → q) → ¬(p ∧ q) ↔ r ∨ p := by skip",
            "unsolved goals\np q r : Prop\n⊢ (p → q) → ¬(p ∧ q) ↔ r ∨ p",
        ),
        (
            "example (x : Int) (h : x ≥ -3) : ∃ y : Int, x + y = 0 := by skip",
            "unsolved goals\nx : Int\nh : x ≥ -3\n⊢ ∃ y, x + y = 0",
        ),
    ],
)
def test_messages_are_worded_like_leans(text: str, wanted: str) -> None:
    """Goals with hypotheses, names and precedences as Lean prints them."""
    assert errors(run(text))[0] == wanted


def test_no_input_exhausts_the_checker() -> None:
    """Deep nesting, exponential types, endless loops and long files end in an error."""
    double = "theorem d (p : Prop) (h : p) : p ∧ p := ⟨h, h⟩\n"
    for text in (
        "example : True := " + "(" * 3000 + "trivial" + ")" * 3000,
        "example (p : Prop) : " + "¬" * 3000 + "p := by skip",
        double + "example (p : Prop) (h : p) : True := by\n  have x := " + "d _ (" * 60 + "h" + ")" * 60 + "\n  omega",
        "example : True := by\n" + "  repeat skip\n" * 50,
        "#check foo\n" * 3000,
    ):
        assert errors(run(text))


def test_axioms_are_reported_like_lean() -> None:
    """Nothing for plain logic, the three standard ones for `omega` and classical reasoning."""
    result = run(
        "theorem a (p : Prop) (h : p) : p := h\ntheorem b (p : Prop) : p ∨ ¬p := Classical.em p\n"
        "#print axioms a\n#print axioms _root_.b\n#print axioms c"
    )
    assert [message.data for message in result.messages] == [
        "'a' does not depend on any axioms",
        "'b' depends on axioms: [propext, Classical.choice, Quot.sound]",
        "Unknown constant `c`",
    ]
