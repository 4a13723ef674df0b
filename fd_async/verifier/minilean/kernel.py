"""The trusted core: type-check a closed proof term without holes against a proposition.

Everything that the elaborator and the tactics build passes here before it counts. The rules are those of Lean's type
theory with three universes (Prop, Type, Type 1), restricted definitional equality (`reduce`), and two decision
procedures for closed arithmetic propositions (`arith`).
"""

from __future__ import annotations

from collections.abc import Callable

from fd_async.verifier.minilean import arith
from fd_async.verifier.minilean.errors import Budget
from fd_async.verifier.minilean.expr import (
    INT,
    NAT,
    App,
    Const,
    Decided,
    Expr,
    FVar,
    Lam,
    MVar,
    Num,
    Pi,
    SorryProof,
    Sort,
    alpha_equal,
    fresh_uid,
    spine,
    substitute,
)
from fd_async.verifier.minilean.reduce import beta, definition_of, nat_offset, unfold, value_of

MAX_LEVEL = 2
STANDARD_AXIOMS = ("propext", "Classical.choice", "Quot.sound")


class KernelError(Exception):
    """The term is not a proof of the proposition."""


class Kernel:
    """Checks terms; `axioms` collects what the checked terms depend on besides constants."""

    def __init__(self, constant_type: Callable[[str], Expr | None], budget: Budget) -> None:
        self.constant_type = constant_type
        self.budget = budget
        self.axioms: set[str] = set()
        self.constants: set[str] = set()
        self._types: dict[int, Expr] = {}

    def check_type(self, expr: Expr) -> int:
        """Check that a closed term is a type; return its universe level."""
        return self._sort_of(expr)

    def check_proof(self, proof: Expr, prop: Expr) -> None:
        """Raise KernelError unless `proof : prop` and `prop : Prop`."""
        if self._sort_of(prop) != 0:
            raise KernelError("the statement is not a proposition")
        actual = self.infer(proof)
        if not self.is_defeq(actual, prop):
            raise KernelError("the proof has another type than the statement")

    def infer(self, expr: Expr) -> Expr:
        """Type of a term; checks the whole term."""
        self.budget.tick()
        match expr:
            case Sort(level):
                if not 0 <= level < MAX_LEVEL:
                    raise KernelError("universe level out of range")
                return Sort(level + 1)
            case Const(name):
                self.constants.add(name)
                found = self.constant_type(name)
                if found is None:
                    raise KernelError(f"unknown constant '{name}'")
                return found
            case FVar(uid):
                if uid not in self._types:
                    raise KernelError("declaration has free variables")
                return self._types[uid]
            case MVar():
                raise KernelError("declaration has metavariables")
            case Num(value, kind):
                if value < 0 or kind not in ("Nat", "Int"):
                    raise KernelError("bad numeral")
                return NAT if kind == "Nat" else INT
            case App(fn, arg):
                return self._infer_app(fn, arg)
            case Lam() | Pi():
                return self._infer_binder(expr)
            case Decided(method, prop):
                return self._infer_decided(method, prop)
            case SorryProof(prop):
                if self._sort_of(prop) != 0:
                    raise KernelError("sorry of something that is no proposition")
                self.axioms.add("sorryAx")
                return prop
        raise KernelError("not a term")

    def _infer_app(self, fn: Expr, arg: Expr) -> Expr:
        fn_type = self.whnf(self.infer(fn))
        if not isinstance(fn_type, Pi):
            raise KernelError("function expected")
        if not self.is_defeq(self.infer(arg), fn_type.type):
            raise KernelError("application type mismatch")
        return substitute(fn_type.body, fn_type.uid, arg)

    def _infer_binder(self, expr: Lam | Pi) -> Expr:
        level = self._sort_of(expr.type)
        uid = fresh_uid()
        self._types[uid] = expr.type
        body = substitute(expr.body, expr.uid, FVar(uid))
        if isinstance(expr, Lam):
            body_type = self.infer(body)
            self._sort_of(body_type)
            return Pi(uid, expr.name, expr.type, body_type, expr.implicit)
        body_level = self._sort_of(body)
        return Sort(0 if body_level == 0 else max(level, body_level))

    def _infer_decided(self, method: str, prop: Expr) -> Expr:
        if self._sort_of(prop) != 0:
            raise KernelError("not a proposition")
        if method == "omega":
            if not arith.omega_valid(prop, self.budget):
                raise KernelError("omega step refused")
            self.axioms.update(STANDARD_AXIOMS)
        elif method != "decide" or arith.evaluate(prop) is not True:
            raise KernelError("decide step refused")
        return prop

    def _sort_of(self, expr: Expr) -> int:
        sort = self.whnf(self.infer(expr))
        if not isinstance(sort, Sort):
            raise KernelError("type expected")
        return sort.level

    def whnf(self, expr: Expr) -> Expr:
        """Weak head normal form with every definition unfolded."""
        while True:
            self.budget.tick()
            expr = beta(expr)
            unfolded = unfold(expr)
            if unfolded is None:
                return expr
            expr = unfolded

    def is_defeq(self, left: Expr, right: Expr) -> bool:
        """Definitional equality of two terms of the same type; False when unsure."""
        self.budget.tick()
        left, right = beta(left), beta(right)
        if alpha_equal(left, right):
            return True
        if self._same_number(left, right) or self._same_structure(left, right):
            return True
        return self._after_unfolding(left, right)

    def _same_number(self, left: Expr, right: Expr) -> bool:
        a, b = value_of(left), value_of(right)
        if a is not None and b is not None:
            return a == b
        base_a, offset_a = nat_offset(left)
        base_b, offset_b = nat_offset(right)
        if base_a is None or base_b is None or offset_a != offset_b:
            return False
        moved = base_a is not left or base_b is not right
        return moved and self.is_defeq(base_a, base_b)

    def _same_structure(self, left: Expr, right: Expr) -> bool:
        match left, right:
            case (Lam(), Lam()) | (Pi(), Pi()):
                if not self.is_defeq(left.type, right.type):
                    return False
                uid = fresh_uid()
                self._types[uid] = left.type
                return self.is_defeq(
                    substitute(left.body, left.uid, FVar(uid)), substitute(right.body, right.uid, FVar(uid))
                )
            case App(), App():
                head_left, args_left = spine(left)
                head_right, args_right = spine(right)
                if len(args_left) != len(args_right) or not alpha_equal(head_left, head_right):
                    return False
                return all(self.is_defeq(a, b) for a, b in zip(args_left, args_right, strict=True))
        return False

    def _after_unfolding(self, left: Expr, right: Expr) -> bool:
        def_left, def_right = definition_of(left), definition_of(right)
        height_left = def_left.height if def_left else 0
        height_right = def_right.height if def_right else 0
        if height_left == height_right == 0:
            return False
        if height_left >= height_right:
            left = unfold(left) or left
        if height_right >= height_left:
            right = unfold(right) or right
        return self.is_defeq(left, right)
