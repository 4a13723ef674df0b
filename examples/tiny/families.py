"""The families of the tiny world: what a statement looks like, and the one-line recipe that proves it.

A recipe is tactic text in which `$1`, `$2`, `$3` stand for the hypotheses in the order of the statement. It is the
same for every member of a family, so that proving means recognising the family and copying names. All recipes use
core Lean 4 only (`Init`), and hardly any proves a second family.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

PROPS = list("pqruvwABCDPQR")
NATS = list("abcdijmn")
INTS = list("xyzXYZ")
HYPOTHESES = ["h", "k", "g", "e", "h1", "h2", "h3", "hp", "hq", "ha", "hb"]
_HOLE = re.compile(r"\$(\d)")


@dataclass(frozen=True)
class Body:
    """A theorem without names: variables by kind, hypotheses in order, goal."""

    variables: dict[str, list[str]]
    hypotheses: list[str]
    goal: str


@dataclass(frozen=True)
class Family:
    """Statements of one shape."""

    name: str
    recipe: str
    make: Callable[[random.Random], Body]


def fill(recipe: str, hypotheses: list[str]) -> str:
    """Put hypothesis names into a recipe, also one of another family: too few names are used again."""
    names = hypotheses or ["h"]
    return _HOLE.sub(lambda hole: names[(int(hole[1]) - 1) % len(names)], recipe)


def _put(scheme: str, table: dict[str, str]) -> str:
    """Replace the metavariables of a scheme; a formula that stands alone needs no parentheses."""
    if scheme in table and table[scheme].startswith("("):
        return table[scheme][1:-1]
    return re.sub(r"\b[FGHK]\b", lambda hole: table[hole[0]], scheme)


def _used(pool: list[str], *texts: str) -> list[str]:
    words = set(re.findall(r"[A-Za-z]\w*", " ".join(texts)))
    return [name for name in pool if name in words]


def _formulas(rng: random.Random, count: int) -> tuple[list[str], list[str]]:
    """`count` different formulas over two to four letters, ready to stand beside any connective."""
    letters = rng.sample(PROPS, rng.choice([2, 3, 3, 4]) if count < 3 else rng.choice([3, 4]))
    found: list[str] = []
    while len(found) < count:
        first, second = rng.sample(letters, 2)
        connective = rng.choice(["→", "∧", "∨", "↔"])
        formula = rng.choices([first, f"¬{first}", f"({first} {connective} {second})"], [5, 2, 3])[0]
        if formula not in found:
            found.append(formula)
    return letters, found


@dataclass(frozen=True)
class Scheme:
    """Makes the statements of a family that differ only in the formulas or terms put for F, G, H, K."""

    kind: str
    count: int
    hypotheses: list[str]
    goal: str

    def __call__(self, rng: random.Random) -> Body:
        if self.kind == "Prop":
            pool, terms = _formulas(rng, self.count)
        else:
            pool = NATS if self.kind == "Nat" else INTS
            terms = _terms(rng, pool, self.count)
        put = [_put(text, dict(zip("FGHK", terms, strict=False))) for text in (*self.hypotheses, self.goal)]
        return Body(variables={self.kind: _used(pool, *put)}, hypotheses=put[:-1], goal=put[-1])


def _logic(count: int, hypotheses: list[str], goal: str) -> Scheme:
    return Scheme("Prop", count, hypotheses, goal)


def _terms(rng: random.Random, pool: list[str], count: int) -> list[str]:
    """`count` different terms, each a variable, a shifted variable, a sum or a product."""
    letters = rng.sample(pool, rng.choice([2, 3, 3, 4]))
    found: list[str] = []
    while len(found) < count:
        first, second = rng.sample(letters, 2)
        term = rng.choices([first, f"({first} + {rng.randint(2, 9)})", f"({first} * {second})"], [5, 3, 3])[0]
        if term not in found:
            found.append(term)
    return found


def _linear(kind: str) -> Callable[[random.Random], Body]:
    """Build a maker of linear problems with constants that need both hypotheses, or one and a rearrangement."""
    pool = NATS if kind == "Nat" else INTS

    def make(rng: random.Random) -> Body:
        a, b, c = rng.sample(pool, 3)
        m, n = rng.randint(2, 9), rng.randint(2, 9)
        less = rng.randint(1, m + n - 1)
        hypotheses, goal = rng.choice(
            [
                ([f"{a} + {m} ≤ {b}", f"{b} + {n} ≤ {c}"], f"{a} + {less} < {c}"),
                ([f"{a} + {m} < {b}", f"{b} < {c} + {n}"], f"{a} + {m} < {c} + {n}"),
                ([f"{a} = {b} + {m}", f"{c} < {b}"], f"{c} + {rng.randint(1, m)} < {a}"),
                ([f"{a} + {b} = {m}", f"{b} = {c} + {n}"], f"{a} + {c} + {n} = {m}"),
                ([f"{a} + {m} = {b} + {n}", f"{b} < {c}"], f"{a} + {m} < {c} + {n}"),
                ([f"2 * {a} + {m} < 2 * {b}", f"{b} ≤ {c}"], f"{a} < {c}"),
            ]
        )
        return Body(variables={kind: _used(pool, goal, *hypotheses)}, hypotheses=hypotheses, goal=goal)

    return make


def _closed(rng: random.Random) -> Body:
    """Make a true fact about numerals."""
    a, b, c = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 9)
    value = a * b + c
    other = value + rng.choice([-2, -1, 1, 2, 3])
    goal = rng.choice(
        [
            f"{a} * {b} + {c} = {value}",
            f"¬ {a} * {b} + {c} = {other}",
            f"{a} * {b} < {a * b + c}",
            f"{a} + {b} ≤ {a + b + c} ∧ {b} < {b + c}",
            f"{a} * {b} = {value} ∨ {a} * {b} + {c} = {value}",
        ]
    )
    return Body(variables={}, hypotheses=[], goal=goal)


FAMILIES: list[Family] = [
    Family("and_swap", "exact ⟨$1.2, $1.1⟩", _logic(2, ["F ∧ G"], "G ∧ F")),
    Family("and_regroup", "exact ⟨$1.1.1, $1.1.2, $1.2⟩", _logic(3, ["(F ∧ G) ∧ H"], "F ∧ G ∧ H")),
    Family("or_swap", "exact Or.symm $1", _logic(2, ["F ∨ G"], "G ∨ F")),
    Family("or_left", "left; exact $1", _logic(2, ["F"], "F ∨ G")),
    Family("or_right", "right; exact $1", _logic(2, ["F"], "G ∨ F")),
    Family("or_cases", "exact Or.elim $1 $2 $3", _logic(3, ["F ∨ G", "F → H", "G → H"], "H")),
    Family("chain", "intro t; exact $2 ($1 t)", _logic(3, ["F → G", "G → H"], "F → H")),
    Family("modus_ponens", "exact $1 $2", _logic(2, ["F → G", "F"], "G")),
    Family("ex_falso", "exact absurd $1 $2", _logic(2, ["F", "¬F"], "G")),
    Family("iff_intro", "constructor; exact $1; exact $2", _logic(2, ["F → G", "G → F"], "F ↔ G")),
    Family("iff_forward", "exact $1.mp $2", _logic(2, ["F ↔ G", "F"], "G")),
    Family("iff_backward", "exact $1.mpr $2", _logic(2, ["F ↔ G", "G"], "F")),
    Family("curry", "exact fun s t => $1 ⟨s, t⟩", _logic(3, ["F ∧ G → H"], "F → G → H")),
    Family("uncurry", "exact fun t => $1 t.1 t.2", _logic(3, ["F → G → H"], "F ∧ G → H")),
    Family("not_or", "intro t; exact $1 (Or.inl t)", _logic(2, ["¬(F ∨ G)"], "¬F")),
    Family("constant", "exact fun _ => $1", _logic(2, ["F"], "G → F")),
    Family("linear_nat", "omega", _linear("Nat")),
    Family("linear_int", "omega", _linear("Int")),
    Family("closed", "decide", _closed),
    Family("nat_mul_comm", "exact Nat.mul_comm _ _", Scheme("Nat", 2, [], "F * G = G * F")),
    Family("int_mul_comm", "exact Int.mul_comm _ _", Scheme("Int", 2, [], "F * G = G * F")),
    Family("nat_mul_add", "exact Nat.mul_add _ _ _", Scheme("Nat", 3, [], "F * (G + H) = F * G + F * H")),
    Family("nat_le_trans", "exact Nat.le_trans $1 $2", Scheme("Nat", 3, ["F ≤ G", "G ≤ H"], "F ≤ H")),
    Family("nat_mul_le", "exact Nat.mul_le_mul $1 $2", Scheme("Nat", 4, ["F ≤ G", "H ≤ K"], "F * H ≤ G * K")),
]
RECIPES: list[str] = list(dict.fromkeys(family.recipe for family in FAMILIES))
