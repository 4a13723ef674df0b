"""Formulas of the tiny world as trees, and whether one is an instance of a scheme."""

from __future__ import annotations

import re

Tree = tuple["str | Tree", ...]
"""(operator, operand, ...); a name or a numeral is (text,)."""
METAVARIABLES = frozenset("FGHK")
_TOKEN = re.compile(r"\s*([A-Za-z_]\w*|\d+|[↔→∧∨¬=≤<+*()])")
_BINDING = {"↔": 20, "→": 25, "∨": 30, "∧": 35, "=": 50, "≤": 50, "<": 50, "+": 65, "*": 70}
"""Lean's binding powers."""
_NOT = 40
_TO_THE_RIGHT = frozenset("→∧∨")


def parse(text: str) -> Tree:
    """Parse a formula or a term.

    Raises:
        ValueError: it is not one of the tiny world.
    """
    tokens: list[str] = []
    end = 0
    while text[end:].strip():
        found = _TOKEN.match(text, end)
        if not found:
            raise ValueError(f"{text!r}: unknown sign at {end}")
        tokens.append(found[1])
        end = found.end()
    tokens.reverse()
    tree = _expression(tokens, 0)
    if tokens:
        raise ValueError(f"{text!r}: {tokens[-1]!r} is left over")
    return tree


def _expression(tokens: list[str], least: int) -> Tree:
    left = _operand(tokens)
    while tokens and _BINDING.get(tokens[-1], -1) >= least:
        operator = tokens.pop()
        binding = _BINDING[operator]
        left = (operator, left, _expression(tokens, binding if operator in _TO_THE_RIGHT else binding + 1))
    return left


def _operand(tokens: list[str]) -> Tree:
    if not tokens:
        raise ValueError("a formula ends too soon")
    token = tokens.pop()
    if token == "(":
        inner = _expression(tokens, 0)
        if not tokens or tokens.pop() != ")":
            raise ValueError("a parenthesis is not closed")
        return inner
    if token == "¬":
        return ("¬", _expression(tokens, _NOT))
    if token in _BINDING or token == ")":
        raise ValueError(f"{token!r} stands where a formula should")
    return (token,)


def is_instance(tree: Tree, scheme: Tree, bound: dict[str, Tree]) -> bool:
    """Say whether putting something for the scheme's metavariables gives the tree; `bound` is extended."""
    if len(scheme) == 1 and scheme[0] in METAVARIABLES:
        return bound.setdefault(str(scheme[0]), tree) == tree
    if len(tree) != len(scheme) or tree[0] != scheme[0]:
        return False
    return all(
        isinstance(part, tuple) and isinstance(pattern, tuple) and is_instance(part, pattern, bound)
        for part, pattern in zip(tree[1:], scheme[1:], strict=True)
    )
