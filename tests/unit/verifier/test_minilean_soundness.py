"""minilean against an independent oracle: truth by small values."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fd_async.verifier.minilean import arith, prelude
from fd_async.verifier.minilean.commands import Environment, Runner
from fd_async.verifier.minilean.errors import Budget
from fd_async.verifier.minilean.expr import PROP, TYPE, Pi
from tests.unit.verifier.minilean_truth import evaluate, holds

LETTERS = ["p", "q", "r"]
_formulas = st.recursive(
    st.sampled_from([*LETTERS, "True", "False"]),
    lambda inner: st.one_of(
        inner.map(lambda a: f"¬{a}"), st.tuples(inner, st.sampled_from("∧∨→↔"), inner).map(lambda t: f"({' '.join(t)})")
    ),
    max_leaves=5,
)
_steps = [
    "assumption", "contradiction", "constructor", "left", "right", "intro h", "intro", "trivial", "exfalso", "cases h",
    "cases g", "exact h", "exact g", "exact h g", "apply h", "apply g", "exact ⟨h, g⟩", "exact h.1", "exact g.2",
    "obtain ⟨h, g⟩ := h", "rcases g with g | g", "by_cases h : p", "specialize g h", "omega", "rfl", "exact absurd h g",
    "exact h.mp g", "exact fun h => g h", "rintro ⟨h, g⟩", "have g := h.2", "apply Classical.byContradiction",
]  # fmt: skip
_search = "  repeat (first | assumption | contradiction | (intro h) | constructor | (cases h) | (cases g))"
_scripts = st.lists(st.sampled_from(_steps), min_size=1, max_size=5).map(
    lambda steps: "\n".join(f"  {s}" for s in steps)
)
_terms = st.recursive(
    st.sampled_from(["h", "g", "h.1", "h.2", "g.mp", "Iff.rfl", "trivial", "(Classical.em p)", "id"]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: f"⟨{t[0]}, {t[1]}⟩"),
        st.tuples(inner, inner).map(lambda t: f"({t[0]} {t[1]})"),
        inner.map(lambda a: f"(fun x => {a})"),
        inner.map(lambda a: f"(Or.inl {a})"),
        st.tuples(inner, inner, inner).map(lambda t: f"(Or.elim {t[0]} {t[1]} {t[2]})"),
        st.tuples(inner, inner).map(lambda t: f"(absurd {t[0]} {t[1]})"),
    ),
    max_leaves=4,
)


def accepted(text: str) -> bool:
    """Whether minilean proves theorem `t`; if so, its statement must hold in the oracle."""
    result = Runner(Environment(), text).run()
    assert not [m for m in result.messages if "internal" in m.data or "by the kernel" in m.data], text
    if result.messages:
        return False
    assert holds(result.environment.theorems["t"].type), text
    return True


@settings(max_examples=60, deadline=None)
@given(_formulas, _formulas, _formulas, st.one_of(_scripts, st.just(_search)))
def test_accepted_tactic_proofs_are_classically_true(one: str, two: str, goal: str, script: str) -> None:
    """Random hypotheses, goal and tactics: what is accepted has a true statement."""
    accepted(f"theorem t (p q r : Prop) (h : {one}) (g : {two}) : {goal} := by\n{script}")


@settings(max_examples=60, deadline=None)
@given(_formulas, _formulas, _formulas, _terms)
def test_accepted_terms_are_classically_true(one: str, two: str, goal: str, term: str) -> None:
    """Random proof terms: what is accepted has a true statement."""
    accepted(f"theorem t (p q r : Prop) (h : {one}) (g : {two}) : {goal} := {term}")


def test_the_search_script_proves_something() -> None:
    """The properties above are not empty: the script finds real proofs."""
    provable = ["p → p", "p ∧ q → q ∧ p", "¬(p ∧ False)", "(p → q) → p → p", "False → q", "p ∨ q → p ∨ q"]
    for goal in provable:
        script = "  repeat (first | assumption | contradiction | (intro h) | constructor | (cases h))"
        assert accepted(f"theorem t (p q : Prop) : {goal} := by\n{script}"), goal


def _linear() -> st.SearchStrategy[str]:
    atom = st.sampled_from(["x", "y", "0", "1", "3", "2 * x", "3 * y", "(x + y)", "(x - y)", "(y - 2)"])
    side = st.tuples(atom, st.sampled_from("+-"), atom).map(" ".join)
    fact = st.tuples(side, st.sampled_from(["=", "≠", "<", "≤", ">", "≥"]), side).map(" ".join)
    return st.recursive(
        fact,
        lambda inner: st.one_of(
            inner.map(lambda a: f"¬({a})"),
            st.tuples(inner, st.sampled_from("∧∨→↔"), inner).map(lambda t: f"(({t[0]}) {t[1]} ({t[2]}))"),
        ),
        max_leaves=3,
    )


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["Nat", "Int"]), _linear(), _linear(), st.data())
def test_omega_proves_only_truths(kind: str, fact: str, goal: str, data: st.DataObject) -> None:
    """Random linear problems, some made provable: what `omega` accepts holds for small numbers."""
    goal = data.draw(st.sampled_from([goal, fact, f"({goal}) ∨ ¬({goal})"]))
    accepted(f"theorem t (x y : {kind}) (h : {fact}) : {goal} := by omega")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["Nat", "Int"]), st.integers(0, 4), st.integers(0, 4), st.integers(0, 9), st.sampled_from("+-*"),
       st.sampled_from(["=", "≠", "<", "≤", ">", "≥"]), st.sampled_from(["decide", "omega", "rfl"]))  # fmt: skip
def test_closed_arithmetic_agrees_with_the_oracle(
    kind: str, a: int, b: int, c: int, operation: str, relation: str, tactic: str
) -> None:
    """`decide` accepts exactly the true facts, the others only true ones."""
    text = f"theorem t : ({a} : {kind}) {operation} {b} {relation} {c} := by {tactic}"
    result = Runner(Environment(), text).run()
    statement = result.environment.theorems["t"].type
    assert (not result.messages) <= evaluate(statement, {})
    if tactic == "decide":
        assert (not result.messages) == evaluate(statement, {})


def test_every_lemma_of_the_table_is_true_for_small_values() -> None:
    """A wrong line in the table would be a hole; those over arbitrary types and predicates are read by eye."""
    checked = 0
    for name in prelude.lemma_names():
        of = prelude.constant_type(name)
        assert of is not None
        binders, body = [], of
        while isinstance(body, Pi):
            binders.append(body.type)
            body = body.body
        if any(binder == TYPE or (isinstance(binder, Pi) and binder.body == PROP) for binder in binders):
            continue
        assert holds(of), name
        checked += 1
    assert checked > 170


def test_omega_does_not_use_what_holds_only_over_the_integers() -> None:
    """Truths that need cuts or case splits over integers are refused, as brute force over rationals demands."""
    for text in (
        "theorem t (x y : Int) (h : 3 * x + 5 * y = 4) (g : 0 ≤ x) (k : x ≤ 2) : False := by omega",
        "theorem t (x y : Int) (h : 2 * x = 3 * y) (g : y = 1) : False := by omega",
    ):
        assert Runner(Environment(), text).run().messages


def test_decisions_are_deterministic() -> None:
    """The same question gets the same answer from a fresh solver."""
    text = "theorem t (x y : Int) (h : 2 * x + 3 * y ≤ 7) (g : x ≥ 3) : y ≤ 0 := by omega"
    outcomes = set()
    for _ in range(3):
        arith._refute.cache_clear()
        outcomes.add(bool(Runner(Environment(), text).run().messages))
    assert outcomes == {False}
    assert Budget().left > 0
