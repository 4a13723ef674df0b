"""Classical truth of closed statements by trying small values: an oracle that shares no code with the checker."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from fd_async.verifier.minilean.expr import INT, NAT, PROP, App, Const, Expr, FVar, Num, Pi

SMALL = {PROP: (False, True), NAT: (0, 1, 2, 3, 5), INT: (-3, -1, 0, 1, 2)}


def holds(statement: Expr) -> bool:
    """Whether a telescope over Prop, Nat and Int holds for all small values."""
    variables: list[tuple[int, Any]] = []
    body = statement
    while isinstance(body, Pi) and body.type in SMALL:
        variables.append((body.uid, SMALL[body.type]))
        body = body.body
    for values in itertools.product(*[domain for _, domain in variables]):
        if not evaluate(body, dict(zip([uid for uid, _ in variables], values, strict=True))):
            return False
    return True


def evaluate(expr: Expr, values: dict[int, Any]) -> Any:
    """Value of a term or proposition."""
    match expr:
        case FVar(uid):
            return values[uid]
        case Num(value, _):
            return value
        case Const("True"):
            return True
        case Const("False"):
            return False
        case Pi() if expr.type in SMALL:
            return all(evaluate(expr.body, {**values, expr.uid: value}) for value in SMALL[expr.type])
        case Pi():
            return not evaluate(expr.type, values) or evaluate(expr.body, values)
        case App():
            head, *args = reversed(list(_spine(expr)))
            assert isinstance(head, Const)
            if head.name in ("Eq", "Ne"):
                args = args[1:]
            return _apply(head.name, [evaluate(arg, values) for arg in args])
    raise AssertionError(f"not in the oracle's language: {expr}")


def _spine(expr: Expr) -> Iterator[Expr]:
    while isinstance(expr, App):
        yield expr.arg
        expr = expr.fn
    yield expr


def _apply(name: str, args: list[Any]) -> Any:
    table = {
        "Not": lambda a: not a,
        "And": lambda a, b: a and b,
        "Or": lambda a, b: a or b,
        "Iff": lambda a, b: a == b,
        "Eq": lambda a, b: a == b,
        "Ne": lambda a, b: a != b,
        "LE": lambda a, b: a <= b,
        "LT": lambda a, b: a < b,
        "GE": lambda a, b: a >= b,
        "GT": lambda a, b: a > b,
        "HAdd": lambda a, b: a + b,
        "HMul": lambda a, b: a * b,
        "Neg": lambda a: -a,
    }
    if name == "HSub.Nat":
        return max(0, args[0] - args[1])
    if name == "HSub.Int":
        return args[0] - args[1]
    if name == "Nat.succ":
        return args[0] + 1
    return table[name.split(".")[0]](*args)
