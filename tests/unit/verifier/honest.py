"""Honest proofs of varied style, each for the statement `foo`; the gate must let every one through."""

from __future__ import annotations

HEAD = "theorem foo (p q : Prop) (hp : p) : p ∨ q := "

HONEST: dict[str, str] = {
    "term": f"{HEAD}Or.inl hp",
    "tactics": f"{HEAD}by\n  left\n  exact hp",
    "tactics on the line of by, aligned": f"{HEAD}by left\n{' ' * len(HEAD)}   exact hp",
    "by in the first column": f"{HEAD}\nby\n  exact Or.inl hp",
    "another layout of the statement": "theorem foo\n    (p q : Prop)\n    (hp : p) :\n    p ∨ q :=\n  Or.inl hp",
    "the keyword lemma": HEAD.replace("theorem", "lemma") + "Or.inl hp",
    "have and show": f"{HEAD}by\n  have h : p := hp\n  show p ∨ q\n  exact Or.inl h",
    "calc": f"theorem aux (a b : ℕ) : a + b = b + a := calc\n  a + b = b + a := Nat.add_comm a b\n\n{HEAD}Or.inl hp",
    "a helper lemma": f"lemma helper {{a b : Prop}} (ha : a) : a ∨ b := Or.inl ha\n\n{HEAD}helper hp",
    "a private helper": f"private theorem helper {{a b : Prop}} (ha : a) : a ∨ b := Or.inl ha\n\n{HEAD}helper hp",
    "a helper for simp": f"@[simp] theorem helper (a : Prop) : (a ∧ a) = a := and_self a\n\n{HEAD}by simp [hp]",
    "a helper after the theorem": f"{HEAD}Or.inl hp\n\ntheorem later : True := trivial",
    "helpers with dotted and primed names": (
        f"theorem Aux.h₁' : True := trivial\ntheorem h! : True := trivial\n{HEAD}Or.inl hp"
    ),
    "unicode names": f"theorem αβ_γ₀ (ε₁ δ' : ℝ) (𝓕 : Set ℝ) : True := trivial\n{HEAD}Or.inl hp",
    "forbidden words in a comment": f"-- axiom, sorry, #eval and native_decide are not used\n{HEAD}Or.inl hp",
    "forbidden words in a block comment": (
        f"/- def x := 1 /- instance -/ macro -/\n{HEAD}by\n  /- sorry -/ exact Or.inl hp"
    ),
    "a doc comment": f"/-- The attribute of an `axiom`. -/\n{HEAD}Or.inl hp",
    "a module comment": f"/-! # import everything -/\n{HEAD}Or.inl hp",
    "forbidden words inside names": f"theorem axiom_of_choice' : True := trivial\n{HEAD}(Or.inl hp : p ∨ q)",
    "components that are keywords": f"theorem h (l : List ℕ) : l.prefix = l.prefix := rfl\n{HEAD}Or.inl hp",
    "the imports again": f"import Mathlib\nimport Aesop\n\n{HEAD}Or.inl hp",
    "options that only cost time": f"set_option maxHeartbeats 400000\nset_option maxRecDepth 1000 in\n{HEAD}Or.inl hp",
    "an open inside the proof": f"{HEAD}by\n  open Classical in\n  exact Or.inl hp",
    "an open for a helper": f"open Nat in\ntheorem helper : True := trivial\n\n{HEAD}Or.inl hp",
    "an example": f"example : 1 + 1 = 2 := rfl\n{HEAD}Or.inl hp",
    "looking something up": f"#check Or.inl\n#print axioms Or.inl\n{HEAD}Or.inl hp",
    "focus dots, bullets and combinators": f"{HEAD}by\n  constructor <;> first\n  | exact hp\n  · exact hp",
    "anonymous constructors and lambdas": f"{HEAD}(fun (h : p) ↦ .inl h) hp",
    "cardinality and set notation": (
        f"theorem c (s : Finset ℕ) : #s = #s ∧ (∑ x ∈ s, x) = ∑ x in s, x := ⟨rfl, rfl⟩\n{HEAD}Or.inl hp"
    ),
    "pattern matching": f"theorem m : ∀ n : ℕ, n = n\n  | 0 => rfl\n  | n + 1 => rfl\n{HEAD}Or.inl hp",
    "induction": (
        f"theorem i (n : ℕ) : n = n := by\n  induction n with\n  | zero => rfl\n  | succ n ih => rfl\n{HEAD}Or.inl hp"
    ),
    "rcases and obtain": f"{HEAD}by\n  obtain ⟨h, -⟩ : p ∧ True := ⟨hp, trivial⟩\n  exact Or.inl h",
    "arrows and primes": f"theorem a (h : 1 = 2) (s : Set ℕ) : True := by rw [← h] at *; trivial\n{HEAD}Or.inl hp",
    "windows line ends": f"{HEAD}by\r\n  exact Or.inl hp\r\n",
    "a string": f'theorem s : "a b" = "a b" := rfl\n{HEAD}Or.inl hp',
}
