"""Proofs that core Lean 4 accepts, in varied style; minilean must accept every one."""

from __future__ import annotations

PROPOSITIONAL = """
theorem t (p q : Prop) (h : p ∧ q) : q ∧ p := ⟨h.2, h.1⟩

theorem t (p q : Prop) (h : p ∧ q) : q ∧ p := And.intro h.right h.left

theorem t (p q : Prop) (h : p ∧ q) : q ∧ p := h.symm

theorem t (p q : Prop) : p ∧ q → q ∧ p := fun ⟨hp, hq⟩ => ⟨hq, hp⟩

theorem t (p q : Prop) : p ∧ q → q ∧ p := fun h ↦ ⟨h.right, h.left⟩

theorem t (p q : Prop) : p ∧ q → q ∧ p := λ h => And.intro (And.right h) (And.left h)

theorem t (p q : Prop) : p ∧ q ↔ q ∧ p := by
  constructor
  · intro h
    exact ⟨h.2, h.1⟩
  · intro h
    exact ⟨h.2, h.1⟩

theorem t (p q : Prop) : p ∧ q ↔ q ∧ p := ⟨And.symm, And.symm⟩

theorem t (p q : Prop) : p ∧ q ↔ q ∧ p := and_comm

theorem t (p q : Prop) : p ∧ q ↔ q ∧ p := by
  apply Iff.intro <;> intro ⟨a, b⟩ <;> exact ⟨b, a⟩

theorem t (p q r : Prop) (h : p ∧ q ∧ r) : r ∧ p := by
  obtain ⟨hp, _, hr⟩ := h
  exact ⟨hr, hp⟩

theorem t (p q r : Prop) : (p ∧ q) ∧ r → p ∧ q ∧ r := by
  rintro ⟨⟨hp, hq⟩, hr⟩
  exact ⟨hp, hq, hr⟩

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  cases h with
  | inl hp => exact Or.inr hp
  | inr hq => exact Or.inl hq

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  cases h
  case inl hp => right; exact hp
  case inr hq => left; exact hq

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  cases h
  · right
    assumption
  · left
    assumption

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  rcases h with hp | hq
  · exact .inr hp
  · exact .inl hq

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  apply Or.elim h
  · intro hp
    apply Or.inr
    exact hp
  · intro hq
    apply Or.inl
    exact hq

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := Or.elim h Or.inr Or.inl

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := h.elim (fun a => .inr a) (fun b => .inl b)

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  exact h.elim Or.inr Or.inl

theorem t (p q r : Prop) : p ∧ (q ∨ r) ↔ (p ∧ q) ∨ (p ∧ r) := by
  constructor
  · intro h
    cases h.2 with
    | inl hq => exact Or.inl ⟨h.1, hq⟩
    | inr hr => exact Or.inr ⟨h.1, hr⟩
  · intro h
    cases h with
    | inl h => exact ⟨h.1, Or.inl h.2⟩
    | inr h => exact ⟨h.1, Or.inr h.2⟩

theorem t (p q r : Prop) : p ∧ (q ∨ r) ↔ (p ∧ q) ∨ (p ∧ r) := and_or_left

theorem t (p q : Prop) (h : p → q) : ¬q → ¬p := by
  intro hnq hp
  exact hnq (h hp)

theorem t (p q : Prop) (h : p → q) : ¬q → ¬p := fun hnq hp => hnq (h hp)

theorem t (p q : Prop) (h : p → q) (hnq : ¬q) : ¬p := mt h hnq

theorem t (p q : Prop) (h : p → q) : ¬q → ¬p := by
  intro hnq
  intro hp
  apply hnq
  apply h
  assumption

theorem t (p : Prop) : ¬(p ∧ ¬p) := by
  intro h
  exact h.2 h.1

theorem t (p : Prop) : ¬(p ∧ ¬p) := fun h => absurd h.1 h.2

theorem t (p : Prop) : ¬(p ∧ ¬p) := by
  rintro ⟨h1, h2⟩
  contradiction

theorem t (p q : Prop) (hp : p) (hnp : ¬p) : q := absurd hp hnp

theorem t (p q : Prop) (hp : p) (hnp : ¬p) : q := by
  exfalso
  exact hnp hp

theorem t (p q : Prop) (hp : p) (hnp : ¬p) : q := by contradiction

theorem t (p q : Prop) (hp : p) (hnp : ¬p) : q := (hnp hp).elim

theorem t (p q : Prop) (hp : p) (hnp : ¬p) : q := False.elim (hnp hp)

theorem t (p q : Prop) (hp : p) (hnp : ¬p) : q := hnp.elim hp

theorem t (p q : Prop) (hp : p) (hnp : ¬p) : q := by
  apply absurd hp
  exact hnp

theorem t (p : Prop) (h : False) : p := h.elim

theorem t (p : Prop) (h : False) : p := by cases h

theorem t (p : Prop) : p → True := fun _ => trivial

theorem t (p : Prop) : p → True := by
  intro _
  trivial

theorem t : True := by constructor

theorem t : True ∧ True := by trivial

theorem t (p : Prop) (hp : p) : p ∧ True := by
  refine ⟨?_, ?_⟩
  · exact hp
  · exact True.intro

theorem t (p q r : Prop) (h1 : p → q) (h2 : q → r) : p → r := by
  intro hp
  have hq : q := h1 hp
  exact h2 hq

theorem t (p q r : Prop) (h1 : p → q) (h2 : q → r) : p → r := fun hp =>
  have hq : q := h1 hp
  h2 hq

theorem t (p q r : Prop) (h1 : p → q) (h2 : q → r) : p → r := fun hp =>
  have hq : q := by
    apply h1
    exact hp
  show r from h2 hq

theorem t (p q r : Prop) (h1 : p → q) (h2 : q → r) : p → r := by
  intro hp
  suffices hq : q from h2 hq
  exact h1 hp

theorem t (p q r : Prop) (h1 : p → q) (h2 : q → r) : p → r := by
  intro hp
  show r
  apply h2
  apply h1
  exact hp

theorem t (p q r : Prop) (h1 : p → q) (h2 : q → r) (hp : p) : r := h2 <| h1 <| hp

theorem t (p q r : Prop) (h : p → q → r) (hp : p) (hq : q) : r := by
  specialize h hp hq
  exact h

theorem t (p q r : Prop) (h : p → q → r) : p ∧ q → r := fun ⟨hp, hq⟩ => h hp hq

theorem t (p q r : Prop) (h : p ∧ q → r) : p → q → r := by
  intros hp hq
  exact h ⟨hp, hq⟩

theorem t (p q r : Prop) (h : p → q → r) : p ∧ q → r := by
  intro hpq
  apply h
  · exact hpq.left
  · exact hpq.right

theorem t (p q : Prop) (h : p ↔ q) (hp : p) : q := h.mp hp

theorem t (p q : Prop) (h : p ↔ q) (hq : q) : p := h.2 hq

theorem t (p q : Prop) (h : p ↔ q) : q ↔ p := h.symm

theorem t (p q : Prop) (h : p ↔ q) : ¬p ↔ ¬q := by
  constructor
  · intro hnp hq
    exact hnp (h.mpr hq)
  · intro hnq hp
    exact hnq (h.mp hp)

theorem t (p q r : Prop) (h1 : p ↔ q) (h2 : q ↔ r) : p ↔ r := h1.trans h2

theorem t (p q r : Prop) (h1 : p ↔ q) (h2 : q ↔ r) : p ↔ r := by
  obtain ⟨a, b⟩ := h1
  obtain ⟨c, d⟩ := h2
  exact ⟨fun x => c (a x), fun x => b (d x)⟩

theorem t (p : Prop) : p ↔ p := Iff.rfl

theorem t (p : Prop) : p ↔ p := by rfl

theorem t (p q : Prop) : ¬(p ∨ q) ↔ ¬p ∧ ¬q := by
  constructor
  · intro h
    constructor
    · intro hp
      exact h (Or.inl hp)
    · intro hq
      exact h (Or.inr hq)
  · intro h hpq
    cases hpq with
    | inl hp => exact h.1 hp
    | inr hq => exact h.2 hq

theorem t (p q : Prop) : ¬(p ∨ q) ↔ ¬p ∧ ¬q := not_or

theorem t (p : Prop) : p ∨ ¬p := Classical.em p

theorem t (p : Prop) : p ∨ ¬p := by
  by_cases h : p
  · exact Or.inl h
  · exact Or.inr h

theorem t (p : Prop) (h : ¬¬p) : p := Classical.byContradiction h

theorem t (p : Prop) (h : ¬¬p) : p := by
  cases Classical.em p with
  | inl hp => exact hp
  | inr hnp => exact absurd hnp h

theorem t (p : Prop) (h : ¬¬p) : p := by
  apply Classical.byContradiction
  intro hnp
  exact h hnp

theorem t (p q : Prop) (h : ¬(p ∧ q)) (hp : p) : ¬q := fun hq => h ⟨hp, hq⟩

theorem t (p : Prop) : p → ¬¬p := fun hp hnp => hnp hp

theorem t (p : Prop) : ¬¬¬p → ¬p := fun h hp => h (fun hnp => hnp hp)

theorem t (p q r : Prop) (h : (p ∨ q) → r) : (p → r) ∧ (q → r) :=
  ⟨fun hp => h (.inl hp), fun hq => h (.inr hq)⟩

theorem t (p q r : Prop) (hpr : p → r) (hqr : q → r) (h : p ∨ q) : r := by
  first
  | exact hpr h
  | exact h.elim hpr hqr

theorem t (p q : Prop) (hp : p) (hq : q) : p ∧ q ∧ p := by
  constructor
  assumption
  constructor
  assumption
  assumption

theorem t (p q : Prop) (hp : p) (hq : q) : p ∧ q ∧ p := by
  refine ⟨hp, ?_⟩
  exact ⟨hq, hp⟩

theorem t (p q : Prop) (hp : p) (hq : q) : p ∧ q := by
  constructor <;> assumption

theorem t (p q : Prop) (hp : p) (hq : q) : p ∧ q := by
  constructor <;>
  assumption

theorem t (p q : Prop) (hp : p) (hq : q) : p ∧ q := by
  constructor
  <;> assumption

theorem t (p q : Prop) (hp : p) : q → p := by
  intro hq;
  exact hp

theorem t (p q : Prop) (hp : p) (hq : q) : p ∧ q := by
  { constructor
    { exact hp }
    { exact hq } }

theorem t (p q : Prop) (hp : p) : p ∨ q := by
  try contradiction
  left
  exact hp

theorem t (p q r s : Prop) (h : (p ∧ q) ∧ (r ∧ s)) : s := h.2.2

theorem t (p q : Prop) : p → q → p ∧ q := by
  intro hp hq; constructor; exact hp; exact hq

theorem t : ∀ p : Prop, p → p := fun _ hp => hp

theorem t : ∀ {p : Prop}, p → p := fun hp => hp

theorem t {p q : Prop} (h : p ∧ q) : p := by
  cases h with
  | intro hp hq => exact hp

theorem t {p q r : Prop} (h : p ∨ q ∨ r) : r ∨ q ∨ p := by
  rcases h with h | h | h
  · exact Or.inr (Or.inr h)
  · exact Or.inr (Or.inl h)
  · exact Or.inl h

theorem t (p q : Prop) (h : p = q) (hp : p) : q := by
  subst h
  exact hp

theorem t (p q : Prop) (hp : p) (hq : q) : p ∧ q :=
  And.intro
    hp
    hq

theorem t (p q : Prop) (hpq : p → q) (hnq : ¬q) : ¬p := by
  intro hp
  have := hpq hp
  exact hnq this

theorem t (p q r : Prop) (h : p → q ∧ r) : (p → q) ∧ (p → r) := by
  constructor <;> intro hp <;> have hqr := h hp
  · exact hqr.1
  · exact hqr.2

-- a comment
/- another /- nested -/ one -/
/-- documentation -/
theorem t (p : Prop) (hp : p) : p := by
  -- the obvious
  exact hp -- done
"""

ARITHMETIC = """
theorem t (a b : Nat) (h : a < b) : a + 1 ≤ b := h

theorem t (a b : Nat) (h : a < b) : a ≤ b := by omega

theorem t (a b : Nat) (h : a < b) : a ≤ b := Nat.le_of_lt h

theorem t (a b c : Nat) (h1 : a ≤ b) (h2 : b ≤ c) : a ≤ c := Nat.le_trans h1 h2

theorem t (a b c : Nat) (h1 : a ≤ b) (h2 : b ≤ c) : a ≤ c := by
  apply Nat.le_trans
  · exact h1
  · exact h2

theorem t (a b c : Nat) (h1 : a ≤ b) (h2 : b ≤ c) : a ≤ c := by
  apply Nat.le_trans h1
  exact h2

theorem t (a b c d : Nat) (h1 : a ≤ b) (h2 : c ≤ d) : a + c ≤ b + d := Nat.add_le_add h1 h2

theorem t (a b : Nat) : a + b = b + a := Nat.add_comm a b

theorem t (a b : Nat) : a + b = b + a := by exact Nat.add_comm _ _

theorem t (a b : Nat) : a + b = b + a := by omega

theorem t (a b : Nat) : a + b = b + a := by apply Nat.add_comm

theorem t (a b c : Nat) : a * (b + c) = a * b + a * c := Nat.mul_add a b c

theorem t (x y : Int) (h : x + y = 3) (h2 : x - y = 1) : x = 2 := by omega

theorem t (x y : Int) (h : x < y) : ¬(y ≤ x) := by omega

theorem t (x y : Int) (h1 : 2 * x + 3 * y ≥ 1) (h2 : 3 * x + 2 * y ≤ 1) (h3 : x ≥ 0) : x = 0 := by omega

theorem t (x : Int) (h : 2 * x + 1 = 0) : False := by omega

theorem t (x y : Int) (h : 2 * x = 2 * y + 1) : False := by omega

theorem t (x y : Nat) (h : x - y = 0) : x ≤ y := by omega

theorem t (x y : Nat) (h : y ≤ x) : x - y + y = x := by omega

theorem t (x y : Nat) : x - y ≤ x := by omega

theorem t (x y : Nat) (h : x ≠ y) : x < y ∨ y < x := by omega

theorem t (x y : Nat) : x < y ∨ x = y ∨ y < x := by omega

theorem t (x y : Nat) (h : x < 3 → y < 2) (hx : x = 0) : y ≤ 1 := by omega

theorem t (x y : Int) (h : x = 3 ↔ y = 2) (hx : x = 3) : y < 3 := by omega

theorem t (x y : Int) (h : ¬(x < y ∧ y < 10)) (hy : y = 5) : x ≥ 5 := by omega

theorem t (x y : Nat) (h : x < y ∨ x < y - 1) : x < y := by omega

theorem t (p : Prop) (x : Nat) (h : x < 0) : p := by omega

theorem t (f : Nat → Nat) (x : Nat) (h : f x < 3) : f x ≤ 2 := by omega

theorem t : ∀ x : Nat, 0 ≤ x := by
  intro x
  omega

theorem t (x y : Nat) : x < y → x ≤ y ∧ x ≠ y := by
  intro h
  constructor
  · omega
  · omega

theorem t (x y : Nat) : x < y → x ≤ y ∧ x ≠ y := by
  intro h
  constructor <;> omega

theorem t : 2 + 2 = 4 := rfl

theorem t : 2 + 2 = 4 := by rfl

theorem t : 2 + 2 = 4 := by decide

theorem t : ¬ 3 * 5 + 2 = 18 ∧ 3 < 4 := by decide

theorem t : (3 : Int) - 5 < 0 := by decide

theorem t : 3 - 5 = 0 := by decide

theorem t : 5 ≤ 3 → 1 = 2 := by decide

theorem t (n : Nat) : n + 0 = n := rfl

theorem t (n : Nat) : n + 1 + 1 = n + 2 := rfl

theorem t (n : Nat) : n = n := by rfl

theorem t (n : Nat) : 0 ≤ n := Nat.zero_le n

theorem t (n : Nat) : n ≤ n := Nat.le_refl n

theorem t (n : Nat) : n < n + 1 := Nat.lt_succ_self n

theorem t (n : Nat) : n < n + 1 := Nat.le_refl (n + 1)

theorem t (n : Nat) (h : n < n) : False := Nat.lt_irrefl n h

theorem t (n : Nat) (h : n < n) : False := absurd h (Nat.lt_irrefl _)

theorem t (a b : Nat) (h : a = b) : b = a := h.symm

theorem t (a b c : Nat) (h1 : a = b) (h2 : b = c) : a = c := h1.trans h2

theorem t (a b c : Nat) (h1 : a = b) (h2 : b = c) : a = c := Eq.trans h1 h2

theorem t (a b c : Nat) (h1 : a = b) (h2 : b = c) : a = c := by
  subst h1
  exact h2

theorem t (f : Nat → Nat) (a b : Nat) (h : a = b) : f a = f b := congrArg f h

theorem t (a b : Nat) (h : a ≠ b) : b ≠ a := h.symm

theorem t (a b : Nat) (h : a ≠ b) (e : a = b) : False := h e

theorem t : ∃ n : Nat, n > 3 := ⟨4, by decide⟩

theorem t : ∃ n : Nat, n + 2 = 5 := Exists.intro 3 rfl

theorem t (p : Nat → Prop) (h : ∃ n, p n) (g : ∀ n, p n → 0 = 1) : False := by
  obtain ⟨n, hn⟩ := h
  have := g n hn
  omega

theorem t (p q : Nat → Prop) (h : ∃ n, p n ∧ q n) : ∃ n, q n := by
  cases h with
  | intro n hn => exact ⟨n, hn.2⟩

theorem t (p q : Nat → Prop) (h : ∃ n, p n ∧ q n) : ∃ n, q n :=
  Exists.elim h (fun n hn => ⟨n, hn.2⟩)

theorem t (p : Nat → Prop) (h : ∀ n, p n) : p 3 := h 3

theorem t (p : Nat → Prop) (h : ∀ n, p n → p (n + 1)) (h0 : p 0) : p 2 := h 1 (h 0 h0)

theorem t (x y z : Int) (h1 : x ≤ y) (h2 : y < z) : x < z := Int.lt_of_le_of_lt h1 h2

theorem t (x y : Int) : x * y = y * x := Int.mul_comm x y

theorem t (x : Int) (h : 0 ≤ x) : -x ≤ 0 := by omega

theorem t (a b : Nat) (h : a ≤ b) : a ≤ b + 1 := Nat.le_succ_of_le h

theorem t (a b : Nat) (h : a + 1 ≤ b) : a < b := Nat.lt_of_succ_le h

theorem t (a b : Nat) : a ≤ b ∨ b ≤ a := Nat.le_total a b

theorem t (a b : Nat) (h : ¬a ≤ b) : b < a := Nat.not_le.mp h

theorem t (a b c : Nat) (h : a ≤ b) : c + a ≤ c + b := Nat.add_le_add_left h c

theorem t (α : Type) (x y : α) (h : x = y) : y = x := h.symm

theorem aux (a b : Nat) (h : a < b) : a ≤ b := Nat.le_of_lt h
theorem t (a b c : Nat) (h : a < b) (g : b < c) : a ≤ c := Nat.le_trans (aux a b h) (aux b c g)
"""


PROOFS = [text for part in (PROPOSITIONAL, ARITHMETIC) for text in part.strip("\n").split("\n\n")]
