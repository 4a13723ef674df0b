"""Tactics and lemmas read from proofs."""

from __future__ import annotations

from fd_async.analysis.tactics import Discovery, read_proof

PROOF = """by
  -- nlinarith would do, Nat.not_here
  have h_pos : 0 < π := Real.pi_pos
  obtain ⟨x₁, hx₁⟩ := exists_nat_gt (2 : ℝ)
  rw [Nat.add_comm, ← mul_assoc, hx₁] at h_pos
  constructor
  · exact le_of_lt (lt_trans h_pos hx₁.le)
  · simp only [Finset.sum_range_succ, h₀] <;> try linarith [sq_nonneg (a - b)]
  /- block /- nested Nat.never -/ omega -/
  refine ⟨?_, Or.inl h_given⟩
  all_goals (first | ring | exact absurd h_pos (not_lt.mpr hx₁))
"""


def test_tactics_are_found_wherever_one_may_stand() -> None:
    """On a line, after a bullet, `<;>`, `try`, `first |`; not in comments."""
    found = read_proof(PROOF).tactics
    assert sorted(found) == [
        "all_goals",
        "constructor",
        "exact",
        "first",
        "have",
        "linarith",
        "obtain",
        "refine",
        "ring",
        "rw",
        "simp",
        "try",
    ]


def test_lemmas_are_cited_names_that_the_proof_did_not_bind() -> None:
    """Hypotheses, types and comments are no lemmas."""
    found = read_proof(PROOF, "theorem t (a b : ℝ) (h₀ : a = b) (h_given : a < b) : P := by").lemmas
    assert found == {
        "Real.pi_pos",
        "exists_nat_gt",
        "Nat.add_comm",
        "mul_assoc",
        "le_of_lt",
        "lt_trans",
        "Finset.sum_range_succ",
        "sq_nonneg",
        "Or.inl",
    }


def test_unicode_names_are_whole_names() -> None:
    """Greek letters, subscripts, primes and quoted parts belong to the name; λ does not."""
    found = read_proof("by\n  exact Foo.εδ_bound₀' (λ y => Bar.«odd name».of_x y)").lemmas
    assert found == {"Foo.εδ_bound₀'", "Bar.«odd name».of_x"}


def test_a_term_proof_cites_without_tactics() -> None:
    """`fun h => And.intro h.2 h.1` uses no tactic."""
    use = read_proof("fun h_both => And.intro h_both.2 h_both.1")
    assert use.tactics == frozenset()
    assert "h_both" not in use.lemmas


def test_discovery_is_cumulative_and_continues_from_what_was_known() -> None:
    """A resume brings the earlier names along."""
    known = Discovery(lemmas=["Nat.add_comm"])
    known.add(read_proof("by\n  rw [Nat.add_comm]\n  omega"))
    known.add(read_proof("by\n  exact Nat.le_refl _"))
    assert known.tactics == {"rw", "omega", "exact"}
    assert known.lemmas == {"Nat.add_comm", "Nat.le_refl"}
