"""Honest proofs of varied style, each for the statement `foo`; the gate must let every one through."""

from __future__ import annotations

HEAD = "theorem foo (p q : Prop) (hp : p) : p ∨ q := "
GOOD = f"{HEAD}Or.inl hp"

HONEST: dict[str, str] = {
    "term": GOOD,
    "tactics": f"{HEAD}by\n  left\n  exact hp",
    "tactics on the line of by, aligned": f"{HEAD}by left\n{' ' * len(HEAD)}   exact hp",
    "by in the first column": f"{HEAD}\nby\n  exact Or.inl hp",
    "another layout of the statement": "theorem foo\n    (p q : Prop)\n    (hp : p) :\n    p ∨ q :=\n  Or.inl hp",
    "the keyword lemma": HEAD.replace("theorem", "lemma") + "Or.inl hp",
    "have and show": f"{HEAD}by\n  have h : p := hp\n  show p ∨ q\n  exact Or.inl h",
    "calc": f"theorem aux (a b : ℕ) : a + b = b + a := calc\n  a + b = b + a := Nat.add_comm a b\n\n{GOOD}",
    "a helper lemma": f"lemma helper {{a b : Prop}} (ha : a) : a ∨ b := Or.inl ha\n\n{HEAD}helper hp",
    "a private helper": f"private theorem helper {{a b : Prop}} (ha : a) : a ∨ b := Or.inl ha\n\n{HEAD}helper hp",
    "a helper for simp": f"@[simp] theorem helper (a : Prop) : (a ∧ a) = a := and_self a\n\n{HEAD}by simp [hp]",
    "a helper after the theorem": f"{HEAD}Or.inl hp\n\ntheorem later : True := trivial",
    "helpers with dotted and primed names": (
        f"theorem Aux.h₁' : True := trivial\ntheorem h! : True := trivial\n{GOOD}"
    ),
    "unicode names": f"theorem αβ_γ₀ (ε₁ δ' : ℝ) (𝓕 : Set ℝ) : True := trivial\n{GOOD}",
    "forbidden words in a comment": f"-- axiom, sorry, #eval and native_decide are not used\n{GOOD}",
    "forbidden words in a block comment": (
        f"/- def x := 1 /- instance -/ macro -/\n{HEAD}by\n  /- sorry -/ exact Or.inl hp"
    ),
    "a doc comment": f"/-- The attribute of an `axiom`. -/\n{GOOD}",
    "a module comment": f"/-! # import everything -/\n{GOOD}",
    "forbidden words inside names": f"theorem axiom_of_choice' : True := trivial\n{HEAD}(Or.inl hp : p ∨ q)",
    "components that are keywords": f"theorem h (l : List ℕ) : l.prefix = l.prefix := rfl\n{GOOD}",
    "the imports again": f"import Mathlib\nimport Aesop\n\n{GOOD}",
    "options that only cost time": f"set_option maxHeartbeats 400000\nset_option maxRecDepth 1000 in\n{GOOD}",
    "an open inside the proof": f"{HEAD}by\n  open Classical in\n  exact Or.inl hp",
    "an open for a helper": f"open Nat in\ntheorem helper : True := trivial\n\n{GOOD}",
    "an example": f"example : 1 + 1 = 2 := rfl\n{GOOD}",
    "looking something up": f"#check Or.inl\n#print axioms Or.inl\n{GOOD}",
    "focus dots, bullets and combinators": f"{HEAD}by\n  constructor <;> first\n  | exact hp\n  · exact hp",
    "anonymous constructors and lambdas": f"{HEAD}(fun (h : p) ↦ .inl h) hp",
    "cardinality and set notation": (
        f"theorem c (s : Finset ℕ) : #s = #s ∧ (∑ x ∈ s, x) = ∑ x in s, x := ⟨rfl, rfl⟩\n{GOOD}"
    ),
    "pattern matching": f"theorem m : ∀ n : ℕ, n = n\n  | 0 => rfl\n  | n + 1 => rfl\n{GOOD}",
    "induction": (
        f"theorem i (n : ℕ) : n = n := by\n  induction n with\n  | zero => rfl\n  | succ n ih => rfl\n{GOOD}"
    ),
    "rcases and obtain": f"{HEAD}by\n  obtain ⟨h, -⟩ : p ∧ True := ⟨hp, trivial⟩\n  exact Or.inl h",
    "arrows and primes": f"theorem a (h : 1 = 2) (s : Set ℕ) : True := by rw [← h] at *; trivial\n{GOOD}",
    "windows line ends": f"{HEAD}by\r\n  exact Or.inl hp\r\n",
    "a string": f'theorem s : "a b" = "a b" := rfl\n{GOOD}',
    "a calc of several steps": (
        f"theorem c (a b c : ℕ) (h : a = b) (k : b = c) : a = c :=\n  calc a = b := h\n    _ = c := k\n\n{GOOD}"
    ),
    "a function whose body is a tactic block": f"{HEAD}(fun h => by\n  exact Or.inl h) hp",
    "a match in a term": (
        f"theorem m (h : p ∨ q) : q ∨ p := match h with\n  | .inl a => .inr a\n  | .inr b => .inl b\n{GOOD}"
    ),
    "cases with bullets": (
        f"theorem c (h : r ∨ s) : s ∨ r := by\n  rcases h with h | h\n  · right\n    exact h\n  · left\n    exact h\n"
        f"{GOOD}"
    ),
    "nested patterns": f"{HEAD}by\n  rcases (⟨hp, trivial, rfl⟩ : p ∧ True ∧ 1 = 1) with ⟨h, -, _ | _⟩\n  exact .inl h",
    "arithmetic hints": (
        f"theorem s (a b : ℝ) : 2 * a * b ≤ a ^ 2 + b ^ 2 := by\n  nlinarith [sq_nonneg (a - b), sq_nonneg (a + b)]\n"
        f"{GOOD}"
    ),
    "simplification at places": (
        f"{HEAD}by\n  norm_num [hp] at hp ⊢\n  simp_all only [true_or, ne_eq, not_false_eq_true]"
    ),
    "rewriting backwards": f"theorem r (h : 1 = x) : x = 1 := by rw [← h, ←h, h.symm]\n{GOOD}",
    "decide and omega": f"theorem d : 2 + 2 = 4 ∧ 3 < 5 := by constructor <;> first | decide | omega\n{GOOD}",
    "decide in the kernel": f"theorem d : 2 ^ 10 = 1024 := by decide +kernel\n{GOOD}",
    "a configuration": f"theorem d : 1 + 1 = 2 := by simp (config := {{ decide := true }})\n{GOOD}",
    "an open inside a term": f"{HEAD}open Nat in Or.inl hp",
    "two opens for a helper": f"open Finset in\nopen scoped BigOperators in\ntheorem h : True := trivial\n{GOOD}",
    "an option inside the proof": f"{HEAD}by\n  set_option maxRecDepth 4000 in\n  exact Or.inl hp",
    "an option of the linter": f"set_option linter.unusedVariables false in\n{GOOD}",
    "options that change printing": f"set_option pp.all true in\n#check Or.inl\n{GOOD}",
    "a private lemma for simp": (
        f"@[simp] private lemma h (a : Prop) : (a ∨ True) = True := by simp\n{HEAD}by simp [hp]"
    ),
    "a protected helper": f"protected theorem Aux.h : True := trivial\n{GOOD}",
    "a helper that is not recursive": f"nonrec theorem Aux.h : True := trivial\n{GOOD}",
    "deep indentation": f"{HEAD}by\n{' ' * 40}left\n{' ' * 40}exact hp",
    "semicolons": f"{HEAD}by left; exact hp;",
    "trailing white space": f"{HEAD}by   \n  left  \n  exact hp   \n\n\n",
    "many empty lines": f"\n\n\n{HEAD}by\n\n\n  left\n\n  exact hp\n\n",
    "one symbol on each line": "theorem\n foo\n (p\n q\n :\n Prop)\n (hp\n :\n p)\n :\n p\n ∨\n q\n :=\n Or.inl\n hp",
    "no spaces": "theorem foo(p q:Prop)(hp:p):p∨q:=Or.inl hp",
    "comments between the words of the statement": "theorem foo -- name\n"
    "  (p q : Prop) /- types -/ (hp : p) : p ∨ q := Or.inl hp",
    "a tab in a comment": f"{HEAD}by\n  -- first:\tleft\n  exact Or.inl hp",
    "directional marks in a comment": f"/- \u200eA proof\u200f of \u202aOr\u202c. -/\n{GOOD}",
    "a soft hyphen and a no-break space in a comment": f"-- proof\u00adread,\u00a0twice\n{GOOD}",
    "a comment in another script": f"-- Доказательство: 显然 ✓ é ü 😀 𝔸\n{GOOD}",
    "mathematics in a comment": f'/- Let $x \\in \\{{a, b\\}}$; then $\\frac{{1}}{{2}}$ "holds" -- ok - / -/\n{GOOD}',
    "an apostrophe and quotes in a comment": f"-- it's Lean's \"own\" 'way'\n{GOOD}",
    "comments in comments": f"/- /- /- deep -/ -/ axiom -/\n{HEAD}by /- left? -/ exact /- - / -/ Or.inl hp",
    "a comment at the end without a line end": f"{HEAD}Or.inl hp -- done",
    "a line of dashes": f"-----------------\n-- proof\n-----------------\n{GOOD}",
    "a row of stars": f"/-***********-/\n/--------------/\n{GOOD}",
    "forbidden words in a string": f'theorem s : "axiom sorry #eval" = "axiom sorry #eval" := rfl\n{GOOD}',
    "a string with escapes": f'theorem s : "a\\"b\\\\" = "a\\"b\\\\" := rfl\n{GOOD}',
    "characters": f"theorem s : 'a' ≠ 'b' ∧ '\\n' ≠ 'x' := by decide\n{GOOD}",
    "images and preimages": (
        f"theorem s (f : ℕ → ℕ) (s t : Set ℕ) : f '' s = f '' s ∧ f ⁻¹' t = f ⁻¹' t := ⟨rfl, rfl⟩\n{GOOD}"
    ),
    "subscripts and superscripts": (
        f"theorem s (x₁ x₂ : ℝ) (hₐ : x₁⁻¹ = x₂²) (h' h'' : x₁ = x₂) : True := trivial\n{GOOD}"
    ),
    "sums, products, norms and floors": (
        f"theorem s : ∑ i ∈ range 3, (i : ℤ) = 3 ∧ ⌊(1 / 2 : ℝ)⌋ = 0 ∧ ‖(1 : ℂ)‖ = |(-1 : ℝ)| := by norm_num\n{GOOD}"
    ),
    "factorials and remainders": f"theorem s (n : ℕ) : n ! % 2 = n ! % 2 ∧ n ≡ n [MOD 3] := ⟨rfl, rfl⟩\n{GOOD}",
    "numbers of every kind": f"theorem s : (0x1F : ℕ) = 31 ∧ (1.5e3 : ℚ) = 1500 ∧ 0b11 = 3 := by norm_num\n{GOOD}",
    "set-builder and intervals": f"theorem s : {{x : ℕ | x < 2}} = Set.Iio 2 ∧ Set.Icc 0 1 ⊆ Set.univ := x\n{GOOD}",
    "names whose parts are forbidden words": f"theorem s : l.prefix.class.end = x.def.instance := h.axiom\n{GOOD}",
    "names that begin like forbidden words": (
        f"theorem definition_of_axioms (ending defn instances : ℕ) : True := trivial\n{GOOD}"
    ),
    "angle brackets for the assumption": f"{HEAD}Or.inl ‹p›",
    "a pipe and a lambda": f"{HEAD}hp |> fun h => Or.inl <| h",
    "conversions": f"theorem s (a b : ℕ) : a + b = b + a := by\n  conv => lhs; rw [Nat.add_comm]\n{GOOD}",
    "termination": (
        f"theorem t : ∀ n : ℕ, n = n\n  | 0 => rfl\n  | n + 1 => by have := t n; rfl\n"
        f"termination_by n => n\ndecreasing_by omega\n"
        f"{GOOD}"
    ),
    "suffices, refine and holes": f"{HEAD}by\n  suffices h : p from Or.inl h\n  refine ?_\n  exact hp",
    "choice and contradiction": f"{HEAD}by\n  by_contra h\n  push_neg at h\n  exact absurd hp h.1",
    "existence": f"{HEAD}by\n  obtain ⟨x, hx⟩ : ∃ x : ℕ, x = 1 := ⟨1, rfl⟩\n  use hp",
    "a long file": "\n".join(f"theorem aux{n} (x : ℕ) : x + {n} = {n} + x := by omega" for n in range(300))
    + f"\n{GOOD}",
    "a long proof": f"{HEAD}by\n" + "  have h : 1 = 1 := rfl\n" * 500 + "  exact Or.inl hp",
    "brackets of ordinary depth": f"{HEAD}{'(' * 60}Or.inl hp{')' * 60}",
}
