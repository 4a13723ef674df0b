"""Which recipe proves a statement: its shape is compared with those of the families."""

from __future__ import annotations

from dataclasses import dataclass

from examples.tiny.families import FAMILIES, Scheme, fill
from examples.tiny.tutor.formulas import Tree, is_instance, parse

_KINDS = ("Prop", "Nat", "Int")


@dataclass(frozen=True)
class Theorem:
    """A statement taken apart."""

    kinds: frozenset[str]
    names: list[str]
    """Of the hypotheses, in order."""
    hypotheses: list[Tree]
    goal: Tree


def read_statement(text: str) -> Theorem:
    """Take `theorem NAME (p q : Prop) (h : p ∧ q) : q ∧ p :=` apart.

    Raises:
        ValueError: it has another form.
    """
    words = text.strip().split(None, 2)
    if len(words) < 3 or words[0] != "theorem":
        raise ValueError(f"{text[:80]!r} is not a theorem")
    rest = words[2].removesuffix(":=").strip()
    kinds: set[str] = set()
    names: list[str] = []
    hypotheses: list[Tree] = []
    while rest.startswith("("):
        inner, rest = _group(rest)
        label, _, body = inner.partition(" : ")
        if body in _KINDS:
            kinds.add(body)
        else:
            names.append(label)
            hypotheses.append(parse(body))
    if not rest.startswith(": "):
        raise ValueError(f"{text[:80]!r} has no goal")
    return Theorem(kinds=frozenset(kinds), names=names, hypotheses=hypotheses, goal=parse(rest[2:]))


def _group(text: str) -> tuple[str, str]:
    """Split off the leading parenthesis, as (inside, rest)."""
    depth = 0
    for index, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return text[1:index], text[index + 1 :].strip()
    raise ValueError("a parenthesis is not closed")


def recipe_for(statement: str) -> str | None:
    """Return a proof with the statement's names; None for a statement that no family covers."""
    try:
        theorem = read_statement(statement)
    except (ValueError, RecursionError):
        return None
    for family in FAMILIES:
        if isinstance(family.make, Scheme) and _fits(theorem, family.make):
            return fill(family.recipe, theorem.names)
    if not theorem.kinds and not theorem.names:
        return "decide"  # a fact about numerals
    return "omega" if theorem.kinds <= {"Nat", "Int"} else None  # no scheme: linear arithmetic, or nothing known


def _fits(theorem: Theorem, scheme: Scheme) -> bool:
    if theorem.kinds != {scheme.kind} or len(theorem.hypotheses) != len(scheme.hypotheses):
        return False
    bound: dict[str, Tree] = {}
    formulas = zip((*theorem.hypotheses, theorem.goal), (*scheme.hypotheses, scheme.goal), strict=True)
    return all(is_instance(tree, parse(pattern), bound) for tree, pattern in formulas)
