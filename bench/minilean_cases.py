"""Statements with proofs for minilean: valid by construction, nearly right, and random.

`Maker` builds a statement and its proof together, rule by rule, in every style of the fragment; names shadow each
other, hypotheses are named like lemmas. What is nearly right is made from these by `minilean_mutations`.
"""

# ruff: noqa: E501 - tables of proofs read better unbroken

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

Kind = Literal["valid", "nearly_right", "random"]
_TRICKY = ["h", "h", "g", "k", "ih", "hp", "mt", "not_or", "and_comm", "absurd", "this₁", "h'", "hα", "p'"]
"""Names of hypotheses: few, so that they shadow each other, and some are lemmas."""


class Case(NamedTuple):
    """A text that proves theorem `t`, or does not."""

    text: str
    kind: Kind


class Maker:
    """Makes one theorem. Every method returns (goal, tactic lines) that prove it from the named facts `known`."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.props = rng.sample(["p", "q", "r", "s", "Q"], rng.randint(2, 4))
        self.sort = rng.choice(["Nat", "Nat", "Int"])
        self.numbers = rng.sample(["x", "y", "z", "n", "m"], 3)

    def theorem(self) -> str:
        """A whole theorem, sometimes with a helper before it."""
        known: list[tuple[str, str]] = []
        for _ in range(self.rng.randint(0, 3)):
            self._add(known, self.formula(2))
        goal, lines = self.prove(known, self.rng.randint(1, 4))
        binders = f"({' '.join(self.props)} : Prop) ({' '.join(self.numbers)} : {self.sort})"
        if self.rng.random() < 0.2:
            binders = binders.replace("(", "{", 1).replace(")", "}", 1)
        facts = "".join(f" ({name} : {fact})" for name, fact in known)
        helper = ""
        if self.rng.random() < 0.25:
            a, b = self.rng.sample(self.props, 2)
            helper = "theorem help (a b : Prop) (h : a ∧ b) : b ∧ a := ⟨h.2, h.1⟩\n\n"
            goal, lines = f"({a} ∧ {b}) → ({goal}) ∧ {b} ∧ {a}", [
                "intro hc", "constructor", *_bullet(lines), f"· exact help {a} {b} hc"
            ]  # fmt: skip
        return f"{helper}theorem t {binders}{facts} : {goal} := by\n" + "\n".join(f"  {line}" for line in lines)

    def formula(self, depth: int) -> str:
        """A random proposition, true or not."""
        if depth == 0 or self.rng.random() < 0.3:
            return self.rng.choice([*self.props, *self.props, self.fact(), "True", "False"])
        inner = self.formula(depth - 1)
        operator = self.rng.choice("¬∧∨→↔")
        return f"(¬{inner})" if operator == "¬" else f"({inner} {operator} {self.formula(depth - 1)})"

    def fact(self) -> str:
        """A random fact about numbers."""
        relation = self.rng.choice("=≠<≤>≥")
        return f"({self.number()} {relation} {self.number()})"

    def number(self) -> str:
        """A random linear term."""
        x, y = self.rng.sample(self.numbers, 2)
        value = self.rng.randint(0, 5)
        return self.rng.choice(
            [x, y, x, str(value), f"({x} + {y})", f"({x} - {y})", f"{value} * {x}", f"({x} + {value})"]
        )

    def prove(self, known: Sequence[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        """Choose a rule."""
        rules = [self.hypothesis, self.arithmetic, self.closed, self.law] if depth == 0 else [
            self.hypothesis, self.conjunction, self.disjunction, self.implication, self.implication, self.contradiction,
            self.law, self.quantified, self.witness, self.step, self.cases, self.arithmetic, self.closed, self.wrapped,
            self.excluded_middle, self.equation, self.destructed,
        ]  # fmt: skip
        return self.rng.choice(rules)(list(known), depth)

    def hypothesis(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        visible = _visible(known)
        if not visible:
            return self.closed(known, depth)
        name, fact = self.rng.choice(visible)
        styles = [
            [f"exact {name}"], ["assumption"], [f"apply {name}"] if "→" not in fact and "¬" not in fact else ["assumption"],
            [f"refine {name}"], [f"show {fact}", f"exact {name}"], [f"show {fact} from {name}"],
            ["first", "| done", f"| exact {name}"], [f"exact (id {name})"], [f"exact ({name} : {fact})"],
            [f"have hz := {name}", "exact hz"], [f"revert {name}", "intro hz", "exact hz"] if known[-1][0] == name else ["assumption"],
            [f"suffices hz : {fact} by exact hz", "assumption"], ["skip", f"exact {name}", "done"],
            [f"exact (fun hz => hz) {name}"], [f"exact show {fact} from {name}"], [f"exact by exact {name}"],
            [f"exact have hz : {fact} := {name}; hz"],
        ]  # fmt: skip
        return fact, self.rng.choice(styles)

    def conjunction(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        (a, first), (b, second) = self.prove(known, depth - 1), self.prove(known, depth - 1)
        opening = self.rng.choice(["constructor", "refine ⟨?_, ?_⟩", "apply And.intro", "refine And.intro ?_ ?_"])
        if self.rng.random() < 0.2 and opening in ("constructor", "apply And.intro"):
            parts = ["case left =>", *_indent(first), "case right =>", *_indent(second)]
        elif self.rng.random() < 0.2:
            parts = [*_wrap("{ ", first, " }"), *_wrap("next => ", second, "")]
        else:
            parts = [*_bullet(first), *_bullet(second)]
        return f"({a} ∧ {b})", [opening, *parts]

    def disjunction(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        (a, lines), b = self.prove(known, depth - 1), self.formula(1)
        if self.rng.random() < 0.5:
            return f"({a} ∨ {b})", [
                self.rng.choice(["left", "apply Or.inl", "refine Or.inl ?_", "refine .inl ?_"]),
                *lines,
            ]
        return f"({b} ∨ {a})", [self.rng.choice(["right", "apply Or.inr", "refine Or.inr ?_"]), *lines]

    def implication(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        fact = self.formula(2)
        name = self._add(known, fact)
        goal, lines = self.prove(known, depth - 1)
        return f"({fact} → {goal})", [self.rng.choice([f"intro {name}", f"rintro {name}", f"intros {name}"]), *lines]

    def destructed(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        a, b = self.formula(1), self.formula(1)
        one, two = self.rng.sample(["h", "g", "k", "ha", "hb"], 2)
        goal, lines = self.prove([*known, (one, a), (two, b)], depth - 1)
        styles = [
            [f"rintro ⟨{one}, {two}⟩"], [f"intro ⟨{one}, {two}⟩"],
            ["intro hc", f"obtain ⟨{one}, {two}⟩ := hc"], ["intro hc", f"rcases hc with ⟨{one}, {two}⟩"],
            ["intro hc", "cases hc", f"rename_i {one} {two}"], ["intro hc", f"have ⟨{one}, {two}⟩ := hc"],
            ["intro hc", f"have {one} := hc.1", f"have {two} := hc.right", "clear hc"],
        ]  # fmt: skip
        return f"(({a} ∧ {b}) → {goal})", [*self.rng.choice(styles), *lines]

    def contradiction(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        a, goal = self.formula(1), self.formula(1)
        styles = [
            ["contradiction"], ["exact absurd hy hn"], ["exfalso", "exact hn hy"], ["exact (hn hy).elim"], ["exact hn.elim hy"],
            ["exact False.elim (hn hy)"], ["apply absurd hy", "exact hn"], ["apply False.elim", "apply hn", "assumption"],
            ["specialize hn hy", "cases hn"], ["exact Not.elim hn hy"], ["exact absurd hy <| hn"],
        ]  # fmt: skip
        return f"({a} → ¬{a} → {goal})", ["intro hy hn", *self.rng.choice(styles)]

    def law(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        a, b, c = self.formula(1), self.formula(1), self.formula(1)
        laws = [
            (f"{a} ∧ {b} ↔ {b} ∧ {a}", ["exact And.comm"]), (f"{a} ∨ {b} ↔ {b} ∨ {a}", ["exact Or.comm"]),
            (f"{a} ↔ {a}", [self.rng.choice(["rfl", "exact Iff.rfl", "exact ⟨id, id⟩", "constructor <;> intro hc <;> exact hc"])]),
            (f"({a} ↔ {b}) → ({b} ↔ {a})", ["intro hc", self.rng.choice(["exact hc.symm", "exact ⟨hc.mpr, hc.mp⟩"])]),
            (f"({a} → {b}) → ({b} → {c}) → {a} → {c}", ["intro f1 f2 ha", self.rng.choice(["exact f2 (f1 ha)", "exact f2 <| f1 ha"])]),
            (f"({a} → {b}) → ¬{b} → ¬{a}", [self.rng.choice(["exact fun f1 hn ha => hn (f1 ha)", "intro f1 hn ha\n  exact hn (f1 ha)"])]),
            (f"{a} ∧ ({b} ∨ {c}) → ({a} ∧ {b}) ∨ ({a} ∧ {c})",
             ["rintro ⟨ha, hb | hc⟩", "· exact Or.inl ⟨ha, hb⟩", "· exact .inr ⟨ha, hc⟩"]),
            (f"¬({a} ∨ {b}) → ¬{a}", ["exact fun hn ha => hn (Or.inl ha)"]),
            (f"¬¬{a} → {a}", ["intro hn", self.rng.choice(["exact Classical.byContradiction hn", "apply Classical.byContradiction\n  intro hk\n  exact hn hk"])]),
            (f"{a} ∧ {b} → {b}", [self.rng.choice(["exact fun ⟨_, hb⟩ => hb", "exact And.right", "intro hc; exact hc.2", "exact fun hc ↦ hc.right"])]),
            (f"({a} → {b} → {c}) → {a} ∧ {b} → {c}", ["exact fun f1 hc => f1 hc.1 hc.2"]),
            (f"({a} ∨ {a}) → {a}", [self.rng.choice(["exact fun hc => hc.elim id id", "intro hc\n  cases hc <;> assumption"])]),
            (f"{a} → True", [self.rng.choice(["intro _; trivial", "exact fun _ => trivial", "intros\n  trivial"])]),
        ]  # fmt: skip
        goal, lines = self.rng.choice(laws)
        return f"({goal})", [line.replace("\n  ", "\n") for text in lines for line in text.split("\n  ")]

    def quantified(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        name = self.rng.choice([*self.numbers, "w", "v"])  # may shadow a variable of the theorem
        used = [fact for fact in known if not re.search(rf"\b{name}\b", fact[1])]
        kept, self.numbers = self.numbers, list(dict.fromkeys([name, *self.numbers]))
        goal, lines = self.prove(used, depth - 1)
        self.numbers = kept
        form = self.rng.choice([f"∀ {name} : {self.sort}, {goal}", f"∀ ({name} : {self.sort}), {goal}"])
        return f"({form})", [self.rng.choice([f"intro {name}", f"intros {name}"]), *lines]

    def witness(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        x, value = self.rng.choice(self.numbers), self.rng.randint(0, 4)
        forms = [
            (f"∃ w : {self.sort}, w = {x} + {value}", [f"exact ⟨{x} + {value}, rfl⟩"]),
            (f"∃ w, {x} ≤ w", [f"exact ⟨{x} + {value}, by omega⟩"]),
            (f"∃ w : {self.sort}, {x} < w", [f"refine ⟨{x} + {value + 1}, ?_⟩", "omega"]),
            (f"∃ w v : {self.sort}, w + v = {x}", [f"exact ⟨{x}, 0, by omega⟩"]),
            (f"(∃ w : {self.sort}, w > {x} ∧ w = {value}) → {x} < {value}",
             self.rng.choice([["rintro ⟨w, h1, h2⟩", "omega"], ["intro ⟨w, h1, h2⟩", "subst h2", "exact h1"],
                              ["intro hc", "obtain ⟨w, h1, rfl⟩ := hc", "exact h1"],
                              ["intro hc", "cases hc with", "| intro w hw => omega"]])),
            (f"(∀ w : {self.sort}, w ≤ {x}) → False", ["intro hc", f"have h1 := hc ({x} + 1)", "omega"]),
            (f"¬∃ w : {self.sort}, w < {x} ∧ {x} < w", ["rintro ⟨w, h1, h2⟩", "omega"]),
        ]  # fmt: skip
        goal, lines = self.rng.choice(forms)
        return f"({goal})", lines

    def step(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        fact, proof = self.prove(known, depth - 1)
        name = self._add(known, fact)
        goal, lines = self.prove(known, depth - 1)
        opening = [f"have {name} : {fact} := by", *_indent(proof)]
        return goal, [*opening, *lines]

    def cases(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        goal, lines = self.prove(known, depth - 1)
        a, b = self.formula(1), self.formula(1)
        if "hc" in goal or any("hc" in line for line in lines):
            return goal, lines
        styles = [
            ["cases hc with", "| inl h1 =>", *_indent(lines), "| inr h2 =>", *_indent(lines)],
            ["rcases hc with h1 | h2", *_bullet(lines), *_bullet(lines)],
            ["obtain h1 | h2 := hc", *_bullet(lines), *_bullet(lines)],
            ["cases hc <;> rename_i h1", *_bullet(lines), *_bullet(lines)],
            ["apply Or.elim hc", "· intro h1", *_indent(lines), "· intro h2", *_indent(lines)],
            ["cases hc", "case inl h1 =>", *_indent(lines), "case inr h2 =>", *_indent(lines)],
        ]  # fmt: skip
        return f"(({a} ∨ {b}) → {goal})", ["intro hc", *self.rng.choice(styles)]

    def excluded_middle(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        a = self.formula(1)
        styles = [
            [f"exact Classical.em {a}"], [f"by_cases hc : {a}", "· exact Or.inl hc", "· exact Or.inr hc"],
            [f"by_cases hc : {a}", "· left; assumption", "· right", "  assumption"],
            [f"cases Classical.em {a} with", "| inl h1 => exact Or.inl h1", "| inr h1 => exact Or.inr h1"],
        ]  # fmt: skip
        return f"({a} ∨ ¬{a})", self.rng.choice(styles)

    def equation(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        x, y, z = self.numbers[:3]
        forms = [
            (f"{x} = {y} → {y} = {x}", ["intro he", self.rng.choice(["exact he.symm", "omega", "exact Eq.symm he"])]),
            (f"∀ {x} {y} : {self.sort}, {x} = {y} → {y} + 1 = {x} + 1", [f"intro {x} {y} he", "subst he", "rfl"]),
            (f"{x} = {y} → {y} = {z} → {x} = {z}", ["intro he hf", self.rng.choice(["exact he.trans hf", "exact Eq.trans he hf"])]),
            (f"{x} ≠ {y} → {y} ≠ {x}", ["intro he", self.rng.choice(["exact he.symm", "exact Ne.symm he", "omega", "intro hf; exact he hf.symm"])]),
            (f"{x} = {y} → {x} ≠ {y} → False", ["intro he hf", self.rng.choice(["contradiction", "exact hf he"])]),
        ]  # fmt: skip
        goal, lines = self.rng.choice(forms)
        return f"({goal})", lines

    def arithmetic(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        x, y, z = self.numbers[:3]
        n, v = self.sort, self.rng.randint(0, 6)
        laws = [
            (f"{x} < {y} → {x} ≤ {y}", f"{n}.le_of_lt h1"), (f"{x} ≤ {y} → {y} ≤ {z} → {x} ≤ {z}", f"{n}.le_trans h1 h2"),
            (f"{x} < {y} → {y} ≤ {z} → {x} < {z}", f"{n}.lt_of_lt_of_le h1 h2"),
            (f"{x} ≤ {y} → {y} < {z} → {x} < {z}", f"{n}.lt_of_le_of_lt h1 h2"),
            (f"{x} ≤ {y} → {y} ≤ {x} → {x} = {y}", f"{n}.le_antisymm h1 h2"),
            (f"{x} < {y} → {x} + {v} < {y} + {v}", f"{n}.add_lt_add_right h1 {v}"),
            (f"{x} ≤ {y} → {v} + {x} ≤ {v} + {y}", f"{n}.add_le_add_left h1 {v}"),
        ]  # fmt: skip
        if self.rng.random() < 0.5:
            goal, term = self.rng.choice(laws)
            names = ["h1", "h2"][: goal.count("→")]
            style = self.rng.choice(["exact", "refine", "omega"])
            return f"({goal})", [f"intro {' '.join(names)}", "omega" if style == "omega" else f"{style} {term}"]
        free = [
            (f"{x} + {y} = {y} + {x}", f"exact {n}.add_comm {x} {y}"), (f"{x} * {y} = {y} * {x}", f"exact {n}.mul_comm _ _"),
            (f"{x} ≤ {y} ∨ {y} ≤ {x}", f"exact {n}.le_total {x} {y}"), (f"{x} + {v} < {x} + {v + 1}", "omega"),
            (f"{x} * ({y} + {z}) = {x} * {y} + {x} * {z}", f"exact {n}.mul_add {x} {y} {z}"),
            (f"{v} * {x} + {v} * {y} = {v} * ({x} + {y})", "omega"), (f"{x} - {x} = 0", "omega"),
            (f"¬({x} < {x})", self.rng.choice([f"exact {n}.lt_irrefl {x}", "omega"])),
            (f"{x} < {y} ∨ {x} = {y} ∨ {y} < {x}", self.rng.choice(["omega", f"exact {n}.lt_trichotomy {x} {y}"])),
            (f"{x} + 0 = {x}", self.rng.choice(["rfl", f"exact {n}.add_zero _", "omega"])) if n == "Nat" else (f"-(-{x}) = {x}", "omega"),
            (f"{x} - {y} ≤ {x}", "omega") if n == "Nat" else (f"{x} - {y} = {x} + -{y}", "omega"),
            (f"{y} ≤ {x} → {x} - {y} + {y} = {x}", "omega"), (f"2 * {x} ≠ 2 * {y} + 1", "omega"),
            (f"3 * {x} ≤ 3 * {y} + 2 → {x} ≤ {y}", "omega"), (f"{x} > {v} ↔ ¬({x} ≤ {v})", "omega"),
        ]  # fmt: skip
        goal, line = self.rng.choice(free)
        return f"({goal})", [line]

    def closed(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        a, b, n = self.rng.randint(0, 9), self.rng.randint(0, 9), self.sort
        product, gap = a * b, max(0, a - b) if n == "Nat" else a - b
        shown = str(gap) if gap >= 0 else f"-{-gap}"
        forms = [
            (f"({a} : {n}) + {b} = {a + b}", ["decide", "rfl", "omega", "trivial"]), (f"({a} : {n}) * {b} = {product}", ["decide", "rfl"]),
            (f"({a} : {n}) < {a + b + 1}", ["decide", "omega"]), (f"({a} : {n}) - {b} = {shown}", ["decide", "omega"]),
            ("True", ["trivial", "constructor", "exact True.intro", "decide"]), ("True ∧ True", ["trivial", "constructor <;> trivial"]),
            ("¬False", ["decide", "exact not_false", "intro hf; exact hf"]), (f"({a} : {n}) ≠ {a + 1 + b}", ["decide", "omega"]),
            ("False → True", ["decide", "intro hf; exact hf.elim", "exact False.elim"]),
        ]  # fmt: skip
        goal, styles = self.rng.choice(forms)
        return f"({goal})", [self.rng.choice(styles)]

    def wrapped(self, known: list[tuple[str, str]], depth: int) -> tuple[str, list[str]]:
        goal, lines = self.prove(known, depth - 1)
        styles = [
            _wrap("all_goals ", lines, ""), _wrap("any_goals ", lines, ""), ["try contradiction", *lines], ["skip", *lines],
            ["first", "| exfalso; done", *_wrap("| ", lines, "")], [f"show {goal}", *lines], ["all_goals skip", *lines],
            [f"suffices hq : {goal} from hq", *lines], ["(", *_indent(lines), ")"], [f"have hq : {goal} := by", *_indent(lines), "exact hq"],
            ["next =>", *_indent(lines)], ["try omega", *lines],
            ["· skip", *_indent(lines)],
        ]  # fmt: skip
        return goal, self.rng.choice(styles)

    def _add(self, known: list[tuple[str, str]], fact: str) -> str:
        name = self.rng.choice(_TRICKY)
        known.append((name, fact))
        return name


def _visible(known: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(dict(known).items())


def _indent(lines: Sequence[str], by: str = "  ") -> list[str]:
    return [by + line for line in lines]


def _bullet(lines: Sequence[str]) -> list[str]:
    return _wrap("· ", lines, "")


def _wrap(opening: str, lines: Sequence[str], closing: str) -> list[str]:
    made = [opening + lines[0], *_indent(lines[1:], " " * len(opening))]
    return [*made[:-1], made[-1] + closing]


_STEPS = [
    "assumption", "contradiction", "constructor", "left", "right", "intro h", "intro", "trivial", "exfalso", "cases h", "cases g",
    "exact h", "exact g", "exact h g", "apply h", "apply g", "exact ⟨h, g⟩", "exact h.1", "exact g.2", "obtain ⟨h, g⟩ := h",
    "rcases g with g | g", "by_cases h : p", "specialize g h", "omega", "rfl", "decide", "exact absurd h g", "exact h.mp g",
    "exact fun h => g h", "rintro ⟨h, g⟩", "have g := h.2", "apply Classical.byContradiction", "subst h", "revert h", "clear g",
    "repeat constructor", "constructor <;> assumption", "exact Or.elim h g g", "intro x", "exact h x", "refine ⟨x, ?_⟩", "exact ⟨_, h⟩",
    "exact Nat.le_of_lt h", "apply Nat.le_trans h", "exact Int.le_antisymm h g", "induction x", "simp", "exact Nat.div_le_self x 2",
]  # fmt: skip


_SEARCH = "  repeat (first | assumption | contradiction | (intro hc) | constructor | (cases h) | (cases g) | rfl)"


def random_case(rng: random.Random) -> str:
    """A random statement with a random script; division and remainder occur, which the fragment does not have."""
    maker = Maker(rng)
    goal, one, two = maker.formula(2), maker.formula(1), maker.formula(1)
    if rng.random() < 0.1:
        x, y = maker.numbers[:2]
        goal = rng.choice([f"{x} / 0 = 0", f"{x} % 0 = {x}", f"{x} / {y} ≤ {x}", f"{x} % 2 < 2", f"{x} / 2 * 2 = {x}"])
    if rng.random() < 0.5:
        goal = rng.choice(
            [one, f"{one} ∧ {two}", f"({goal}) ∨ {two}", f"({goal}) → {one}", f"{two} ↔ {two}", f"¬¬{one}"]
        )
    script = _SEARCH if rng.random() < 0.5 else "\n".join(f"  {rng.choice(_STEPS)}" for _ in range(rng.randint(1, 5)))
    numbers = f"({' '.join(maker.numbers)} : {maker.sort})"
    return f"theorem t ({' '.join(maker.props)} : Prop) {numbers} (h : {one}) (g : {two}) : {goal} := by\n{script}"
