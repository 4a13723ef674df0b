"""Computation that Lean's kernel does too: definitions, beta, closed arithmetic, `n + k` on Nat. Trusted.

Only a subset of Lean's reductions: what is missing makes minilean refuse more, never less.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from fd_async.verifier.minilean.expr import FALSE, App, Const, Expr, Lam, Num, app, arrow, spine, substitute

MAX_NUMERAL = 10**12


class Definition(Struct, frozen=True):
    """`unfold` maps all `arity` arguments to the body; the one of greater height is unfolded first, as in Lean."""

    arity: int
    height: int
    reducible: bool
    unfold: Callable[..., Expr]


def _definitions() -> dict[str, Definition]:
    table = {
        "Not": Definition(1, 1, False, lambda p: arrow(p, FALSE)),
        "Ne": Definition(3, 2, True, lambda t, a, b: app("Not", app("Eq", t, a, b))),
    }
    for kind in ("Nat", "Int"):
        one = Num(1, kind)
        less, less_eq, add = f"LT.{kind}", f"LE.{kind}", f"HAdd.{kind}"
        table[less] = Definition(
            2, 1, False, lambda a, b, one=one, less_eq=less_eq, add=add: app(less_eq, app(add, a, one), b)
        )
        table[f"GT.{kind}"] = Definition(2, 2, True, lambda a, b, less=less: app(less, b, a))
        table[f"GE.{kind}"] = Definition(2, 1, True, lambda a, b, less_eq=less_eq: app(less_eq, b, a))
    return table


DEFINITIONS = _definitions()


def definition_of(expr: Expr) -> Definition | None:
    """The definition at the head when it has all its arguments."""
    head, args = spine(expr)
    if not isinstance(head, Const):
        return None
    found = DEFINITIONS.get(head.name)
    return found if found is not None and len(args) == found.arity else None


def unfold(expr: Expr, *, reducible_only: bool = False) -> Expr | None:
    """Unfold the definition at the head once, or None."""
    found = definition_of(expr)
    if found is None or (reducible_only and not found.reducible):
        return None
    return found.unfold(*spine(expr)[1])


def beta(expr: Expr) -> Expr:
    """Apply lambdas at the head to their arguments."""
    head, args = spine(expr)
    if not isinstance(head, Lam) or not args:
        return expr
    while args and isinstance(head, Lam):
        head = substitute(head.body, head.uid, args.pop(0))
    return beta(app(head, *args))


def value_of(expr: Expr) -> tuple[int, str] | None:
    """Value and type of a closed numeral computation over Nat (truncated subtraction) or Int."""
    if isinstance(expr, Num):
        return (expr.value, expr.type)
    head, args = spine(expr)
    if not isinstance(head, Const):
        return None
    if head.name == "Nat.succ" and len(args) == 1:
        inner = value_of(args[0])
        return None if inner is None else (inner[0] + 1, "Nat")
    operation, _, kind = head.name.partition(".")
    if head.name == "Neg.Int" and len(args) == 1:
        inner = value_of(args[0])
        return None if inner is None else (-inner[0], "Int")
    if operation not in ("HAdd", "HSub", "HMul") or len(args) != 2:
        return None
    left, right = value_of(args[0]), value_of(args[1])
    if left is None or right is None:
        return None
    result = _compute(operation, left[0], right[0], natural=kind == "Nat")
    return None if abs(result) > MAX_NUMERAL else (result, kind)


def _compute(operation: str, left: int, right: int, *, natural: bool) -> int:
    if operation == "HAdd":
        return left + right
    if operation == "HMul":
        return left * right
    return max(0, left - right) if natural else left - right


def nat_offset(expr: Expr) -> tuple[Expr | None, int]:
    """Write a Nat term as base + k, k >= 0 a literal; base None stands for 0. (None, k) is a closed value."""
    value = value_of(expr)
    if value is not None and value[1] == "Nat":
        return (None, value[0])
    match expr:
        case App(Const("Nat.succ"), inner):
            base, offset = nat_offset(inner)
            return (base, offset + 1)
        case App(App(Const("HAdd.Nat"), left), right):
            value = value_of(right)
            if value is not None:
                base, offset = nat_offset(left)
                return (base, offset + value[0])
    return (expr, 0)


def from_offset(base: Expr | None, offset: int) -> Expr:
    """The inverse of `nat_offset`."""
    if base is None:
        return Num(offset, "Nat")
    return base if offset == 0 else app("HAdd.Nat", base, Num(offset, "Nat"))
