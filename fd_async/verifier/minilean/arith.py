"""The two decision procedures that the kernel trusts: `omega_valid` and `evaluate`.

`omega_valid` proves strictly less than Lean's `omega`: every constraint is tightened over the integers on its own
(a < b becomes a + 1 <= b, divided by the gcd of its coefficients), then the conjunction of facts is refuted over the
rationals. Facts that Lean's `omega` would ignore are weakened to `true`. A truth over the integers that needs more
(dark and grey shadows, cuts) is refused. The solver gets a deterministic resource limit; unknown means refused.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from fd_async.verifier.minilean.errors import Budget
from fd_async.verifier.minilean.expr import Const, Expr, Num, Pi, free_vars, refresh, spine, walk
from fd_async.verifier.minilean.linear import Atoms, Linear, NotLinear, comparison, tighten
from fd_async.verifier.minilean.reduce import value_of

if TYPE_CHECKING:
    import z3

MAX_SPLITS = 7
MAX_ATOMS = 24
MAX_DECIDE_NUMERAL = 1_000_000
MAX_COEFFICIENT = 10**9
Z3_RESOURCE_LIMIT = 400_000


class TooHard(Exception):
    """The problem has more atoms or case splits than we hand to the solver."""


def omega_valid(prop: Expr, budget: Budget) -> bool:
    """Whether `prop` (a telescope of variables and facts ending in a goal) is proven by linear arithmetic."""
    budget.tick(20)
    try:
        return _refute(prop)
    except TooHard:
        return False


@functools.lru_cache(maxsize=512)
def _refute(prop: Expr) -> bool:
    """The tactic and the kernel ask about the same proposition; the answer depends on nothing else."""
    return _state(prop).infeasible()


def has_counterexample(prop: Expr, budget: Budget) -> bool:
    """Whether integers contradict the goal and satisfy every fact that `omega` reads. Only words a message."""
    budget.tick(20)
    try:
        problem = _state(prop, integers=True)
        return problem.exact and problem.feasible()
    except TooHard:
        return False


def _state(prop: Expr, *, integers: bool = False) -> _Problem:
    """The facts, and the negated goal, of a telescope; a variable that another one hides stays another one."""
    problem = _Problem(integers)
    taken = set(free_vars(prop))
    while isinstance(prop, Pi):
        problem.facts.append(problem.assume(prop.type))
        prop = refresh(prop) if prop.uid in taken else prop
        taken.add(prop.uid)
        prop = prop.body
    problem.facts.append(problem.deny(prop))
    problem.add_atom_facts()
    return problem


class _Problem:
    """Builds solver formulas. `assume(p)` is implied by p, `deny(p)` by not p; an unknown proposition gives `true`."""

    def __init__(self, integers: bool = False) -> None:
        import z3  # 50 ms and only needed for the first arithmetic goal

        self.z3: Any = z3
        self.number = z3.Int if integers else z3.Real
        self.exact = True
        """False when a fact about numbers was left out because it is not linear."""
        self.atoms = Atoms()
        self.true = z3.BoolVal(True)
        self.facts: list[z3.BoolRef] = []
        self.splits = 0

    def assume(self, prop: Expr) -> Any:
        """A consequence of `prop`."""
        if isinstance(prop, Pi):
            return self._either(self.deny(prop.type), self.assume(prop.body)) if _is_arrow(prop) else self.true
        name, args = _named(prop)
        match name, args:
            case "Not", [inner]:
                return self.deny(inner)
            case "And", [left, right]:
                return self.z3.And(self.assume(left), self.assume(right))
            case "Or", [left, right]:
                return self._either(self.assume(left), self.assume(right))
            case "Iff", [left, right]:
                both = self.z3.And(self.assume(left), self.assume(right))
                return self._either(both, self.z3.And(self.deny(left), self.deny(right)))
        return self._atomic(name, args, negated=False)

    def deny(self, prop: Expr) -> Any:
        """A consequence of `not prop`."""
        if isinstance(prop, Pi):
            return self.z3.And(self.assume(prop.type), self.deny(prop.body)) if _is_arrow(prop) else self.true
        name, args = _named(prop)
        match name, args:
            case "Not", [inner]:
                return self.assume(inner)
            case "And", [left, right]:
                return self._either(self.deny(left), self.deny(right))
            case "Or", [left, right]:
                return self.z3.And(self.deny(left), self.deny(right))
            case "Iff", [left, right]:
                first = self.z3.And(self.assume(left), self.deny(right))
                return self._either(first, self.z3.And(self.deny(left), self.assume(right)))
        return self._atomic(name, args, negated=True)

    def _either(self, left: Any, right: Any) -> Any:
        if self.z3.is_true(left) or self.z3.is_true(right):
            return self.true
        self.splits += 1
        return self.z3.Or(left, right)

    def _atomic(self, name: str, args: list[Expr], *, negated: bool) -> Any:
        fact = comparison(name, args)
        if fact is None:
            return self.true
        operation, kind, left, right = fact
        try:
            difference = self.atoms.linear(right, kind).plus(self.atoms.linear(left, kind), -1)
        except NotLinear:
            self.exact = False
            return self.true
        if operation in ("EQ", "NE"):
            return self._equal(difference) if (operation == "EQ") != negated else self._unequal(difference)
        if operation == "LT":
            difference = difference.plus(Linear({}, -1))
        if negated:
            difference = difference.times(-1).plus(Linear({}, -1))
        return self._nonnegative(difference)

    def _nonnegative(self, form: Linear) -> Any:
        return self._term(tighten(form)) >= 0

    def _equal(self, form: Linear) -> Any:
        return self.z3.And(self._nonnegative(form), self._nonnegative(form.times(-1)))

    def _unequal(self, form: Linear) -> Any:
        one = Linear({}, -1)
        return self._either(self._nonnegative(form.plus(one)), self._nonnegative(form.times(-1).plus(one)))

    def _term(self, form: Linear) -> Any:
        numbers = [form.constant, *form.coefficients.values()]
        if any(abs(number) > MAX_COEFFICIENT for number in numbers):
            raise TooHard
        terms = [c * self.number(f"x{a}") for a, c in form.coefficients.items()]
        return self.z3.Sum([*terms, self.z3.RealVal(0) if not terms else 0]) + form.constant

    def add_atom_facts(self) -> None:
        """Nat atoms are >= 0; a truncated difference is the difference, or 0 when that is negative."""
        for atom, difference in list(self.atoms.differences.items()):
            form = Linear({atom: 1}, 0)
            exact = self.z3.And(self._nonnegative(difference), self._equal(form.plus(difference, -1)))
            below = difference.times(-1).plus(Linear({}, -1))
            self.facts.append(self._either(exact, self.z3.And(self._nonnegative(below), self._equal(form))))
        for atom, natural in enumerate(self.atoms.natural):
            if natural:
                self.facts.append(self._nonnegative(Linear({atom: 1}, 0)))

    def infeasible(self) -> bool:
        """Whether the facts contradict each other."""
        return self._check() == self.z3.unsat

    def feasible(self) -> bool:
        """Whether the facts hold together for some numbers."""
        return self._check() == self.z3.sat

    def _check(self) -> Any:
        if self.splits > MAX_SPLITS or len(self.atoms.natural) > MAX_ATOMS:
            raise TooHard
        solver = self.z3.SimpleSolver()
        solver.set("random_seed", 0)
        solver.set("rlimit", Z3_RESOURCE_LIMIT)
        solver.add(*self.facts)
        return solver.check()


def _named(prop: Expr) -> tuple[str, list[Expr]]:
    head, args = spine(prop)
    return (head.name if isinstance(head, Const) else "", args)


def _is_arrow(prop: Pi) -> bool:
    """Whether this is certainly an implication from a proposition (a bare variable may be a type)."""
    return prop.uid not in free_vars(prop.body) and _is_surely_prop(prop.type)


def _is_surely_prop(expr: Expr) -> bool:
    if isinstance(expr, Pi):
        return _is_surely_prop(expr.body)
    name, args = _named(expr)
    return name in ("Not", "And", "Or", "Iff", "True", "False") or comparison(name, args) is not None


def evaluate(prop: Expr) -> bool | None:
    """Truth of a closed decidable proposition over numerals; None when it is not one."""
    if any(isinstance(node, Num) and node.value > MAX_DECIDE_NUMERAL for node in walk(prop)):
        return None
    return _evaluate(prop)


def _evaluate(prop: Expr) -> bool | None:
    if isinstance(prop, Pi):
        parts = (_evaluate(prop.type), _evaluate(prop.body)) if _is_arrow(prop) else (None, None)
        return None if None in parts else (not parts[0] or bool(parts[1]))
    name, args = _named(prop)
    if name in ("True", "False") and not args:
        return name == "True"
    if name in ("Not", "And", "Or", "Iff"):
        return _connective(name, [_evaluate(arg) for arg in args])
    fact = comparison(name, args)
    if fact is None:
        return None
    operation, kind, left, right = fact
    a, b = value_of(left), value_of(right)
    if a is None or b is None or a[1] != kind or b[1] != kind:
        return None
    return {"EQ": a[0] == b[0], "NE": a[0] != b[0], "LE": a[0] <= b[0], "LT": a[0] < b[0]}[operation]


def _connective(name: str, values: list[bool | None]) -> bool | None:
    if None in values:
        return None
    match name, values:
        case "Not", [a]:
            return not a
        case "And", [a, b]:
            return bool(a and b)
        case "Or", [a, b]:
            return bool(a or b)
        case "Iff", [a, b]:
            return a == b
    return None


def mentions_arithmetic(prop: Expr) -> bool:
    """Whether an atomic fact over Nat or Int occurs in a proposition."""
    return any(comparison(*_named(node)) is not None for node in walk(prop))
