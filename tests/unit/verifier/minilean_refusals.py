"""Texts that core Lean 4 rejects, or that lie outside the fragment; minilean must refuse every one."""

from __future__ import annotations

WRONG_PROOFS = """
theorem t (p q : Prop) (h : p) : q := h

theorem t (p q : Prop) (h : p) : q := by exact h

theorem t (p q : Prop) (h : p) : q := by assumption

theorem t (p q : Prop) (h : p ∨ q) : p := h.1

theorem t (p q : Prop) (h : p ∨ q) : p := h.left

theorem t (p q : Prop) (h : p ∨ q) : p ∧ q := ⟨h, h⟩

theorem t (p q : Prop) (h : p → q) : q → p := h

theorem t (p q : Prop) (h : p → q) : p := h.1

theorem t (p q : Prop) (h : ¬p) : p := by contradiction

theorem t (p q : Prop) (hp : p) : p ∧ q := by
  constructor
  · exact hp
  · exact hp

theorem t (p q : Prop) (hp : p) : p ∧ q := by
  constructor
  · exact hp

theorem t (p q : Prop) (hp : p) : p ∧ q := by
  constructor
  exact hp

theorem t (p q : Prop) (hp : p) : p ∨ q := by
  right
  exact hp

theorem t (p q : Prop) (hp : p) : p ∨ q := by
  left

theorem t (p q : Prop) (hp : p) : p ∨ q := ⟨hp⟩

theorem t (p q : Prop) (hp : p) (hq : q) : p ∧ q := by
  left
  exact hp

theorem t (p : Prop) (hp : p) : p := by
  exact hp
  exact hp

theorem t (p : Prop) (hp : p) : p := by
  exact hp
  skip
  assumption

theorem t (p : Prop) (hp : p) : p := by
  exact hp
  trivial

theorem t (p q : Prop) (h : p → q) (hp : p) : q := by
  apply h

theorem t (p q : Prop) (h : p → q) : q := by
  apply h
  assumption

theorem t (p q r : Prop) (h : p → q → r) (hp : p) : r := by
  apply h
  exact hp

theorem t (p q r : Prop) (h : p → q → r) (hp : p) : r := h hp

theorem t (p q : Prop) (h : p → q) (hq : q) : q := h hq

theorem t (p q : Prop) (h : p) : q := h h

theorem t (p : Prop) : p := by trivial

theorem t (p : Prop) : p := by decide

theorem t (p : Prop) : p ∨ ¬p := by decide

theorem t (p : Prop) : p ∨ ¬p := by
  left
  assumption

theorem t (p : Prop) : p ∨ ¬p := by constructor

theorem t (p : Prop) : p := by rfl

theorem t (p q : Prop) : p ↔ q := Iff.rfl

theorem t (p q : Prop) : p ↔ q := by rfl

theorem t (p q : Prop) (h : p ↔ q) : p := h.mp

theorem t (p q : Prop) (h : p ↔ q) (hp : p) : q := h.mpr hp

theorem t (p q : Prop) (h : p ↔ q) : q ↔ p := h

theorem t (p q : Prop) (h : p ∧ q) : q ∧ p := h

theorem t (p q : Prop) (h : p ∧ q) : q ∧ p := ⟨h.1, h.2⟩

theorem t (p q r : Prop) (h : (p ∧ q) ∧ r) : p ∧ q ∧ r := h

theorem t (p q r : Prop) (h : (p ∧ q) ∧ r) : p ∧ q ∧ r := ⟨h.1, h.2.1, h.2.2⟩

theorem t (p : Prop) (h : ¬¬p) : p := h

theorem t (p : Prop) (h : ¬¬p) : p := by
  intro hnp
  exact h hnp

theorem t (p : Prop) (h : ¬¬p) : p := by
  apply h
  intro hp
  exact hp

theorem t (p q : Prop) (h : ¬(p ∧ q)) : ¬p ∨ ¬q := ⟨fun hp => h hp, fun hq => h hq⟩

theorem t (p q : Prop) (h : ¬(p ∧ q)) : ¬p := fun hp => h ⟨hp, hp⟩

theorem t (p q : Prop) : p ∨ q → p := fun h => h.elim id id

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := Or.elim h Or.inl Or.inr

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := h.elim (fun a => .inl a) (fun b => .inr b)

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  cases h with
  | inl hp => exact Or.inr hp

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  cases h with
  | inl hp => exact Or.inr hp
  | inl hp => exact Or.inr hp

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  cases h with
  | inl hp => exact Or.inr hp
  | right hq => exact Or.inl hq

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  cases h with
  | inl hp hq => exact Or.inr hp
  | inr hq => exact Or.inl hq

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  cases h with
  | inl hp => exact Or.inr hp
  | inr hq => exact Or.inl hp

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  cases h with
  | inl hp => exact Or.inr hp
  | inr hq => exact h

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  cases h
  · exact Or.inr h
  · exact Or.inl h

theorem t (p q : Prop) (h : p ∧ q) : p := by
  cases h
  exact left

theorem t (p q : Prop) (h : p ∧ q) : p := by
  cases h
  exact h.1

theorem t (p q : Prop) : p → q → p := by
  intro
  intro
  exact a

theorem t (p q : Prop) : p → q → p := by
  intro _ hq
  exact hq

theorem t (p : Prop) : p → p := by
  intro h h2
  exact h

theorem t (p : Prop) (hp : p) : p := by
  intro h
  exact h

theorem t (p : Prop) (hp : p) : p := by
  have hq : p := hq
  exact hq

theorem t (p q : Prop) (hp : p) : q := by
  have hq : q := by
    exact hp
  exact hq

theorem t (p q : Prop) (hp : p) : p := by
  have h : q := by assumption
  exact hp

theorem t (p q : Prop) (hp : p) (hq : q) : p := by
  clear hp
  exact hp

theorem t (p q : Prop) (hp : p) (h : p → q) : p → q := by
  specialize h hp
  exact h

theorem t (p q : Prop) (hp : p) : q := by
  show p
  exact hp

theorem t (p q : Prop) (hp : p) : q := by
  suffices h : p from h
  exact hp

theorem t (p q : Prop) (hp : p) : q := show q from hp

theorem t (p q : Prop) (hp : p) : q := (hp : q)

theorem t (p q : Prop) (hp : p) : q := by
  refine ?_

theorem t (p q : Prop) (hp : p) : p ∧ q := by
  refine ⟨hp, ?_⟩

theorem t (p q : Prop) (hp : p) : p ∧ q := by
  exact ⟨hp, ?_⟩

theorem t (p q : Prop) (hp : p) : p ∧ q := by
  exact ⟨hp, _⟩

theorem t (p q : Prop) (hp : p) : p ∧ q := ⟨hp⟩

theorem t (p q : Prop) (hp : p) : p ∧ p := ⟨hp, hp, hp⟩

theorem t (p q : Prop) (h : False → p) : p := by
  apply h
  exfalso
  trivial

theorem t (p q : Prop) (hp : p) : q := by
  exfalso
  exact hp

theorem t (p q : Prop) (hp : p) (hq : ¬q) : q := absurd hp hq

theorem t (p q : Prop) (h : p) : p ∧ q := by
  constructor <;> assumption

theorem t (p q : Prop) (h : p) : q := by
  first
  | exact h
  | assumption

theorem t (p q : Prop) (h : p) : q := by
  try exact h

theorem t (p q : Prop) (h : p) : q := by
  repeat assumption

theorem t (p : Prop) (h : p) : p := by
  repeat skip
  exact h

theorem t (p q : Prop) (h : p) : p ∧ q := by
  any_goals constructor
  all_goals assumption

theorem t (p q : Prop) (h1 : p) (h2 : q) : p ∧ q := by
  constructor
  case right => exact h1
  case left => exact h2

theorem t (p q : Prop) (h1 : p) (h2 : q) : p ∧ q := by
  constructor
  case inl => exact h1
  case inr => exact h2

theorem t (p q : Prop) (h1 : p) (h2 : q) : p ∧ q := by
  constructor
  · exact h1
    exact h2

theorem t (p q : Prop) (h1 : p) (h2 : q) : p ∧ q := by
  constructor
  · exact h1
  · exact h2
  · exact h2

theorem t : False := by trivial

theorem t : False := by decide

theorem t : False := by constructor

theorem t : False := by omega

theorem t : False := t

theorem t : False := by exact t

theorem t : False := by apply t

theorem t (p : Prop) : p := t p

theorem t (h : False → False) : False := h

theorem t : True → False := fun h => h

theorem t : ¬True := by
  intro h
  exact h

theorem t : ¬True := fun h => h.elim

theorem t (p : Prop) (h : p = True) : p := h

theorem t (p q : Prop) (h : p ∨ q) (hp : p) : q := h.resolve_left hp

theorem t (p q : Prop) (h : p ∨ q) : q := by
  rcases h with hp | hq
  · exact hp
  · exact hq

theorem t (p q : Prop) (h : p ∧ q) : q := by
  obtain ⟨hq, hp⟩ := h
  exact hq

theorem t (p q : Prop) (h : p ∧ q) : q := by
  obtain ⟨hp, hq⟩ := h
  exact h.2

theorem t (p q : Prop) : p ∧ q → q := fun ⟨hq, hp⟩ => hq

theorem t (p : Nat → Prop) (h : ∃ n, p n) : p 0 := by
  obtain ⟨n, hn⟩ := h
  exact hn

theorem t (p : Nat → Prop) (h : ∃ n, p n) : ∀ n, p n := by
  intro n
  obtain ⟨m, hm⟩ := h
  exact hm

theorem t (p : Nat → Prop) (h : p 3) : ∃ n, p n := ⟨4, h⟩

theorem t (p : Nat → Prop) (h : p 3) : ∀ n, p n := fun n => h

theorem t (p : Nat → Prop) (h : ∀ n, p n → p (n + 1)) (h0 : p 0) : p 3 := h 1 (h 0 h0)

theorem t (p : Nat → Nat → Prop) (h : ∀ x, ∃ y, p x y) : ∃ y, ∀ x, p x y := by
  obtain ⟨y, hy⟩ := h 0
  exact ⟨y, fun x => hy⟩

theorem t (a b : Nat) (p : Nat → Prop) (h : p a) (e : a = b) : p b := h
"""

WRONG_ARITHMETIC = """
theorem t : 2 + 2 = 5 := rfl

theorem t : 2 + 2 = 5 := by decide

theorem t : 2 + 2 = 5 := by omega

theorem t : 3 - 5 = 2 := by decide

theorem t : (3 : Int) - 5 = 0 := by decide

theorem t : ¬ 3 * 5 + 2 = 17 := by decide

theorem t : 5 < 5 := by decide

theorem t (n : Nat) : n = n + 1 := by omega

theorem t (n : Nat) : n < 5 := by omega

theorem t (n : Nat) : n - 1 + 1 = n := by omega

theorem t (a b : Nat) : a - b + b = a := by omega

theorem t (a b : Nat) : a - b = b - a := by omega

theorem t (a b : Nat) (h : a ≤ b) : a < b := by omega

theorem t (a b : Nat) (h : a < b) : a + 2 ≤ b := by omega

theorem t (a b : Nat) (h : a ≤ b) : b ≤ a := h

theorem t (a b : Nat) (h : a ≤ b) : a < b := h

theorem t (a b : Nat) (h : a < b) : a ≤ b := h

theorem t (x y : Int) (h : 2 * x ≤ 2 * y + 1) : x < y := by omega

theorem t (x : Int) : x ≥ 0 := by omega

theorem t (x : Int) (h : x * x = 4) : x = 2 ∨ x = -2 := by omega

theorem t (x : Nat) (h : x * x = 4) : x = 2 := by omega

theorem t (x y : Nat) : x * y = y * x := by omega

theorem t (x y : Nat) (h : x * y = 0) : x = 0 ∨ y = 0 := by omega

theorem t (x y z : Int) (h : 3 * x + 5 * y = 4 * z) (g : 0 < x) : x < z := by omega

theorem t (a b : Nat) : a + b = b + a := rfl

theorem t (n : Nat) : 0 + n = n := rfl

theorem t (n : Nat) : 0 + n = n := by rfl

theorem t (a b : Nat) (h : a ≤ b) : a * a ≤ b * b := by omega

theorem t (n : Nat) : n * 1 = n := rfl

theorem t (n : Nat) : n = n + 0 - 0 + 1 := rfl

theorem t (n : Nat) : n ≤ n + 1 := Nat.le_refl n

theorem t (n : Nat) : n < n := Nat.lt_succ_self n

theorem t (a b : Nat) : a + b = b + a := Nat.add_comm b a

theorem t (a b : Nat) : a + b = b + a := Nat.add_comm

theorem t (a b c : Nat) : a + b + c = a + (b + c) := (Nat.add_assoc a b c).symm

theorem t (a b c : Nat) (h1 : a ≤ b) (h2 : b ≤ c) : a ≤ c := Nat.le_trans h2 h1

theorem t (a b c : Nat) (h1 : a ≤ b) (h2 : b ≤ c) : a ≤ c := Nat.le_trans a b h1 h2

theorem t (a b c : Nat) (h1 : a ≤ b) (h2 : b ≤ c) : a ≤ c := by
  apply Nat.le_trans
  · exact h2
  · exact h1

theorem t (n : Nat) : 0 ≤ n := Nat.zero_le

theorem t (a b : Int) (h : a ≤ b) : a ≤ b := Nat.le_of_lt h

theorem t (a b : Int) : a + b = b + a := Nat.add_comm a b

theorem t (a b : Nat) (h : a = b) : b = a := h

theorem t (a b c : Nat) (h1 : a = b) (h2 : c = b) : a = c := h1.trans h2

theorem t (a b : Nat) (h : a ≠ b) : a < b := by omega

theorem t (x y : Nat) (h : x < 3 → y < 2) : y < 2 := by omega

theorem t (x y : Nat) (h : x < 3 ∨ y < 2) : y < 2 := by omega

theorem t (p : Prop) (x : Nat) (h : p → x < 0) : ¬p := by omega

theorem t (p : Prop) (x : Nat) (h : p ∨ x < 0) : p := by omega

theorem t (p : Prop) (h : p) : p := by omega

theorem t (h : False) : 1 = 2 := by omega

theorem t (f : Nat → Nat) (x y : Nat) (h : x = y) : f x = f y := by omega

theorem t (f : Nat → Nat) (x : Nat) (h : f x < 3) : x < 3 := by omega

theorem t (x y : Nat) (h : ∃ z, x = y + z) : y ≤ x := by omega

theorem t : ∃ x : Nat, x > 3 := by omega

theorem t : ∃ n : Nat, n > 3 := ⟨3, by decide⟩

theorem t : ∃ n : Nat, n > 3 := ⟨4, by omega, by omega⟩

theorem t (n : Nat) : -n ≤ 0 := by omega

theorem t (n : Nat) (x : Int) (h : x = n) : 0 ≤ x := by omega

theorem t (x : Nat) : x / 2 ≤ x := by omega

theorem t (x : Nat) : x % 2 < 2 := by omega

theorem t (x : Nat) (h : x ^ 2 = 4) : x = 2 := by omega

theorem t : 10000001 < 10000002 := by decide

theorem t (x : Nat) : 1 < 2 ∨ x = 0 := by decide

theorem t : ∀ x : Nat, x = x := by decide

theorem t (x y : Int) (h : x < y) (h2 : y < x + 1) (h3 : x * x = 2) : x * x = 3 := by exact h3
"""

STATEMENTS = """
theorem t (p q r : Prop) (h : p ∧ q ∨ r) : p ∧ (q ∨ r) := h

theorem t (p q r : Prop) (h : p ∨ q ∧ r) : (p ∨ q) ∧ r := h

theorem t (p q r : Prop) (h : p → q → r) : (p → q) → r := h

theorem t (p q r : Prop) (h : (p → q) → r) : p → q → r := h

theorem t (p q : Prop) (h : ¬p ∧ q) : ¬(p ∧ q) := h

theorem t (p q : Prop) (h : ¬(p ∧ q)) : ¬p ∧ q := h

theorem t (p q : Prop) (h : ¬p → q) : ¬(p → q) := h

theorem t (p q r : Prop) (h : p ∧ q → r) : p ∧ (q → r) := h

theorem t (p q r : Prop) (h : p → q ↔ r) : p → (q ↔ r) := h

theorem t (p q r : Prop) : p ↔ q ↔ r := Iff.rfl

theorem t (a b c : Nat) : a < b < c := sorry

theorem t (a b c : Nat) (h : a - b - c = 0) : a - (b - c) = 0 := h

theorem t (a b c : Nat) (h : a + b * c = 0) : (a + b) * c = 0 := h

theorem t (a b : Int) (h : -a + b = 0) : -(a + b) = 0 := h

theorem t (p : Nat → Prop) (h : ∀ x, p x ∧ p 0) : (∀ x, p x) ∧ p 0 := h

theorem t (p q : Nat → Prop) (h : (∃ x, p x) ∧ q 0) : ∃ x, p x ∧ q 0 := h

theorem t (h : p) : p := h

theorem t (p : Prop) : q := by trivial

theorem t (x : Foo) : x = x := rfl

theorem t (p : Prop) (h : p + 1 = 2) : p := h

theorem t (p : Prop) (h : p < p) : p := h

theorem t (n : Nat) : n := n

theorem t (n : Nat) (h : n ∧ n = n) : n = n := h.2

theorem t (n : Nat) (h : ¬n) : n = n := rfl

theorem t (n : Nat) (x : Int) : n = x := rfl

theorem t : 1 = 1

theorem t : 1 = 1 :=

theorem t := rfl

theorem : 1 = 1 := rfl

theorem t (p : Prop : p → p := fun h => h

theorem t (p : Prop)) : p → p := fun h => h

theorem t (p) : p → p := fun h => h

theorem t [p : Prop] : p → p := fun h => h

theorem t (p.q : Prop) : p.q → p.q := fun h => h

theorem t (fun : Prop) (h : fun) : fun := h

theorem t (at : Prop) (h : at) : at := h

theorem t (from : Prop) (h : from) : from := h

theorem and_comm (p q : Prop) : p ∧ q → q ∧ p := fun h => h.symm

theorem absurd : True := trivial

theorem Nat.add_comm : True := trivial

theorem Nat.foo : True := trivial

theorem t : True := trivial
theorem t : 1 = 1 := rfl

lemma t (p : Prop) (h : p) : p := h

theorem t {p q : Prop} (h : p ∧ q) : q ∧ p := h.symm
example : ∀ (p q : Prop), p ∧ q → q ∧ p := t

theorem t (p q : Prop) (h : p ∧ q) : q ∧ p := h.symm
example (p q : Prop) (h : p ∧ q) : q ∧ p := t h

theorem t (p q : Prop) (h : p ∧ q) : q ∧ p := h.symm
example : ∀ (p q : Prop), p ∧ q → p ∧ q := @t

theorem t (p q : Prop) (h : p ∧ q) : q ∧ p := h.symm
example : ∀ (q p : Prop), p ∧ q → p ∧ q := @t

theorem t (p q : Prop) (h : p) : p := h
example : ∀ (p : Prop), p → p := @t

theorem t (n : Nat) : n = n := rfl
example : ∀ (n : Int), n = n := @t

theorem t (a b : Nat) (h : a < b) : a ≤ b := Nat.le_of_lt h
example : ∀ (a b : Nat), a ≤ b → a ≤ b := @t

theorem t (p : Prop) (h : p) : p := h
example : ∀ (p : Prop), p → p := @_root_.s

theorem t : 1 = 2 := by sorry
example : 1 = 2 := by omega
"""

LAYOUT = """
theorem t (p q : Prop) (hp : p) (hq : q) : p ∧ q := by
  constructor
  · exact hp
 · exact hq

theorem t (p q : Prop) (hp : p) (hq : q) : p ∧ q := by
  constructor
    exact hp
    exact hq

theorem t (p q : Prop) (hp : p) (hq : q) : p ∧ q := by
  constructor
  · exact hp
    · exact hq

theorem t (p : Prop) (hp : p) : p := by
exact hp

theorem t (p : Prop) (hp : p) : p := by

theorem t (p : Prop) (hp : p) : p := by
  have h : p := by
  exact hp
  exact h

theorem t (p q : Prop) (h : p → q) (hp : p) : q := by
  exact h
  hp

theorem t (p q : Prop) (hp : p) (hq : q) : p ∧ q := by
  constructor exact hp exact hq

theorem t (p q : Prop) (hp : p) (hq : q) : p ∧ q := by
  constructor;; exact hp; exact hq

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  cases h with
  | inl a => exact Or.inr a
  exact Or.inl a

theorem t (p : Prop) (hp : p) : p := by
  exact hp)

theorem t (p : Prop) (hp : p) : p := by
  exact (hp

theorem t (p : Prop) (hp : p) : p := hp hp2 :=

theorem t (p : Prop) (hp : p) : p := hp; hp

theorem t (p q : Prop) (f : p → q) (hp : p) : q := f(hp)

theorem t (p q : Prop) (f : p → q) (hp : p) : q := f ⟨hp⟩

theorem t (p : Prop) (hp : p) : p := /- unterminated hp

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := by
  cases h with
  | inl a ↦ exact Or.inr a
  | inr a ↦ exact Or.inl a

theorem t (x y : Int) (h : x = -y) : x<-y ∨ x = -y := Or.inr h

theorem t (p : Prop) (hp : p) : p := by
  exact (hp /-! module -/)

theorem t (p : Prop) (hp : p) : p := by
\texact hp
"""

OUTSIDE = """
axiom cheat : False
theorem t : False := cheat

def f : Nat := 1
theorem t : f = 1 := rfl

abbrev P := True
theorem t : P := trivial

instance : Add Nat := ⟨Nat.mul⟩
theorem t : 1 + 1 = 1 := rfl

notation "⊥⊥" => True
theorem t : ⊥⊥ := trivial

macro "qed" : tactic => `(tactic| sorry)
theorem t : False := by qed

#eval 1

variable (h : False)
theorem t : False := h

namespace A
theorem t : True := trivial
end A

section
theorem t : True := trivial
end

open Foo
theorem t : True := trivial

open Classical in
theorem t : True := trivial

set_option warn.sorry false
theorem t : False := sorry

set_option maxRecDepth 10 in
theorem t : True := trivial

set_option maxRecDepth 10
theorem t : True := trivial

set_option foo.bar true
theorem t : True := trivial

@[simp] theorem t : True := trivial

private theorem t : True := trivial

universe u
theorem t (α : Type u) (x : α) : x = x := rfl

theorem t (α : Sort 3) (x : α) : x = x := rfl

opaque v : False
theorem t : False := v

unsafe theorem t : True := trivial

theorem t : True := by native_decide

theorem t : False := sorryAx False

theorem t : False := by exact?

theorem t (p : Prop) : p → p := by simp

theorem t (p : Prop) : p → p := by tauto

theorem t (x : Nat) (h : x < 3) : x < 4 := by linarith

theorem t (a b : Nat) : a + b = b + a := by ring

theorem t (a b : Nat) : a + b = b + a := by rw [Nat.add_comm]

theorem t (n : Nat) : 0 ≤ n := by
  induction n with
  | zero => trivial
  | succ n ih => omega

theorem t (n : Nat) : 0 ≤ n := by
  cases n
  · omega
  · omega

theorem t (p q : Prop) (h : p ∨ q) : q ∨ p := match h with
  | .inl a => .inr a
  | .inr b => .inl b

theorem t (p : Prop) (h : p ∧ p) : p := by
  let x := h
  exact x.1

theorem t (p : Prop) (hp : p) : p := by
  · case x => exact hp

theorem t (p : Prop) (hp : p) : p := if True then hp else hp

theorem t (p : Prop) (hp : p) : p := do hp

theorem t : "a" = "a" := rfl

theorem t : 'a' = 'a' := rfl

theorem t : (1, 2) = (1, 2) := rfl

theorem t : 1.5 = 1.5 := rfl

theorem «t» : True := trivial

theorem t (p : Prop) (hp : p) : p := by
  stop
  exact hp

theorem t (p : Prop) (hp : p) : p := by
  foo
  exact hp

theorem t (h : ∀ p : Prop, p) : False := h _ _

theorem t (p : Prop) (hp : p) : p := id (α := p) hp

import Mathlib
"""

SORRY = """
theorem t : False := sorry

theorem t : False := by sorry

theorem t : False := by admit

theorem t (p q : Prop) : p ∧ q := ⟨sorry, sorry⟩

theorem t (p : Prop) : p := by
  have h : p := sorry
  exact h

theorem t (p q : Prop) (h : p) : p ∧ q := by
  constructor
  · exact h
  · sorry

theorem s : 1 = 2 := sorry
theorem t : 2 = 1 := s.symm
"""


def blocks(*parts: str) -> list[str]:
    """Texts that are separated by blank lines."""
    return [text for part in parts for text in part.strip("\n").split("\n\n")]


REFUSED = blocks(WRONG_PROOFS, WRONG_ARITHMETIC, STATEMENTS, LAYOUT, OUTSIDE)
UNPROVED = blocks(SORRY)
