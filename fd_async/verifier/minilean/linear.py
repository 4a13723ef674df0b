"""Linear forms over Nat and Int terms, and integer tightening of single constraints. Trusted."""

from __future__ import annotations

import math

from msgspec import Struct

from fd_async.verifier.minilean.expr import Const, Expr, FVar, Num, spine


class NotLinear(Exception):
    """The term is outside linear arithmetic (a product of two non-constants, or an unknown operation)."""


class Linear(Struct, frozen=True):
    """sum of coefficient * atom, plus constant; no zero coefficients."""

    coefficients: dict[int, int]
    constant: int

    def plus(self, other: Linear, scale: int = 1) -> Linear:
        """self + scale * other."""
        result = dict(self.coefficients)
        for atom, coefficient in other.coefficients.items():
            result[atom] = result.get(atom, 0) + scale * coefficient
        return Linear({a: c for a, c in result.items() if c}, self.constant + scale * other.constant)

    def times(self, factor: int) -> Linear:
        """factor * self."""
        return Linear({}, 0).plus(self, factor)


class Atoms:
    """Numbers the atoms of one problem: variables, uninterpreted applications, and truncated differences."""

    def __init__(self) -> None:
        self.index: dict[Expr, int] = {}
        self.natural: list[bool] = []
        self.differences: dict[int, Linear] = {}
        """Atom of a Nat subtraction -> the linear form of minuend - subtrahend."""

    def atom(self, expr: Expr, kind: str) -> int:
        """Index of the atom."""
        if expr not in self.index:
            self.index[expr] = len(self.natural)
            self.natural.append(kind == "Nat")
        return self.index[expr]

    def linear(self, expr: Expr, kind: str) -> Linear:
        """Linear form of a term of type `kind`; raises NotLinear."""
        if isinstance(expr, Num):
            if expr.type != kind:
                raise NotLinear
            return Linear({}, expr.value)
        head, args = spine(expr)
        if isinstance(head, FVar):
            return Linear({self.atom(expr, kind): 1}, 0)
        if not isinstance(head, Const):
            raise NotLinear
        return self._operation(expr, head.name, args, kind)

    def _operation(self, expr: Expr, name: str, args: list[Expr], kind: str) -> Linear:
        if name == "Nat.succ" and kind == "Nat" and len(args) == 1:
            return self.linear(args[0], kind).plus(Linear({}, 1))
        if name == "Neg.Int" and kind == "Int" and len(args) == 1:
            return self.linear(args[0], kind).times(-1)
        operation, _, of = name.partition(".")
        if of != kind or len(args) != 2 or operation not in ("HAdd", "HSub", "HMul"):
            raise NotLinear
        left, right = self.linear(args[0], kind), self.linear(args[1], kind)
        if operation == "HAdd":
            return left.plus(right)
        if operation == "HMul":
            if not right.coefficients:
                return left.times(right.constant)
            if not left.coefficients:
                return right.times(left.constant)
            raise NotLinear
        if kind == "Int":
            return left.plus(right, -1)
        atom = self.atom(expr, kind)
        self.differences[atom] = left.plus(right, -1)
        return Linear({atom: 1}, 0)


def tighten(form: Linear) -> Linear:
    """Divide `form >= 0` by the gcd of its coefficients and round the constant down; the same integer points."""
    divisor = math.gcd(*form.coefficients.values()) if form.coefficients else 0
    if divisor <= 1:
        return form
    return Linear({a: c // divisor for a, c in form.coefficients.items()}, form.constant // divisor)


def comparison(name: str, args: list[Expr]) -> tuple[str, str, Expr, Expr] | None:
    """Operation (EQ, NE, LE, LT), kind and sides of an atomic fact over Nat or Int; None for anything else."""
    operation, _, kind = name.partition(".")
    if kind in ("Nat", "Int") and len(args) == 2 and operation in ("LE", "LT", "GE", "GT"):
        if operation in ("GE", "GT"):
            return ("LE" if operation == "GE" else "LT", kind, args[1], args[0])
        return (operation, kind, args[0], args[1])
    if name in ("Eq", "Ne") and len(args) == 3 and args[0] in (Const("Nat"), Const("Int")):
        of = args[0]
        assert isinstance(of, Const)
        return ("EQ" if name == "Eq" else "NE", of.name, args[1], args[2])
    return None
