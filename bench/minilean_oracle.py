"""A written semantics of the statements of minilean: it shares no code with the checker.

Nat has subtraction cut off at 0; x / 0 = 0 and x % 0 = x; Int division is Euclidean; a type variable is any set, also
the empty one; predicates and functions are arbitrary. `truth` looks for a counterexample by trying small values (three
truth values: a quantifier over an infinite type is only decided by a witness) and then asks z3 about the negation.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any, Literal

import z3

from bench.minilean_statement import Expr, Unread

Truth = Literal["true", "false", "unknown"]
_PROPOSITIONS = frozenset(["True", "False", "rel", *"¬∧∨→↔∀∃"])
_NUMBERS = {"Nat": (0, 1, 2, 3, 7), "Int": (-4, -1, 0, 1, 2, 5)}
_MAX_TRIES = 500


def truth(statement: Expr, seed: int = 0) -> Truth:
    """Say whether a closed formula holds in every model; `false` only with a counterexample."""
    found = _by_trying(statement, random.Random(seed))
    return ("true" if found else "false") if found is not None else by_z3(statement)


def _by_trying(statement: Expr, rng: random.Random) -> bool | None:
    """Try values of the outer variables, all of them or a sample."""
    variables, body = [], statement
    while body[0] == "∀":
        variables.append((body[1], body[2]))
        body = body[3]
    whole = True

    def choices(names: list[tuple[str, Expr]], values: dict[str, Any]) -> Any:
        nonlocal whole
        if not names:
            yield values
            return
        (name, kind), *rest = names
        domain, complete = _domain(kind, values)
        whole = whole and complete
        for value in rng.sample(domain, len(domain)) if rng else domain:
            yield from choices(rest, {**values, name: value})

    results: list[bool | None] = []
    for tries in range(4):
        for values in itertools.islice(choices(variables, {}), _MAX_TRIES // 4 if tries < 3 else _MAX_TRIES):
            results.append(evaluate(body, values))
            if results[-1] is False:
                return False
    count = sum(1 for _ in itertools.islice(choices(variables, {}), _MAX_TRIES + 1))
    return True if whole and count <= _MAX_TRIES and None not in results else None


def _domain(kind: Expr, values: Mapping[str, Any]) -> tuple[list[Any], bool]:
    """Return values of a type, and whether these are all."""
    match kind:
        case ("Prop",):
            return [False, True], True
        case ("Nat",) | ("Int",):
            return list(_NUMBERS[kind[0]]), False
        case ("Type",):
            return [range(2), range(1), range(0)], False
        case ("var", name):
            return list(values[name]), True
        case ("→", *_):
            return _functions(kind, values)
    raise Unread(f"no type: {kind}")


def _functions(kind: Expr, values: Mapping[str, Any]) -> tuple[list[Callable[..., Any]], bool]:
    sorts = []
    while kind[0] == "→":
        sorts.append(kind[1])
        kind = kind[2]
    results, complete = _domain(kind, values)
    domains = [_domain(sort, values) for sort in sorts]
    if all(whole for _, whole in domains):
        points = list(itertools.product(*[domain for domain, _ in domains]))
        if len(results) ** len(points) <= 64:
            tables = itertools.product(results, repeat=len(points))
            return [dict(zip(points, table, strict=True)).__getitem__ for table in tables], complete
    if not results:
        return [], False
    first, last = results[0], results[-1]
    return [
        lambda _: first,
        lambda _: last,
        lambda point: last if hash(point) % 2 else first,
        lambda point: last if point[0] == point[-1] == 1 else first,
        lambda point: results[hash(point) % len(results)],
    ], False


def evaluate(expr: Expr, values: Mapping[str, Any]) -> Any:
    """Evaluate: True, False or None (not decided by the values tried); numbers for terms."""
    match expr:
        case ("True",) | ("False",):
            return expr[0] == "True"
        case ("var", name):
            return values[name]
        case ("num", value):
            return value
        case ("app", name, *arguments):
            found = tuple(evaluate(argument, values) for argument in arguments)
            return None if None in found else values[name](found)
        case ("¬", inner):
            found = evaluate(inner, values)
            return None if found is None else not found
        case ("∧", left, right):
            return _all([evaluate(left, values), evaluate(right, values)])
        case ("∨", left, right):
            return _any([evaluate(left, values), evaluate(right, values)])
        case ("→", left, right):
            found = evaluate(left, values)
            return True if found is False else _any([None if found is None else False, evaluate(right, values)])
        case ("↔", left, right):
            sides = evaluate(left, values), evaluate(right, values)
            return None if None in sides else sides[0] == sides[1]
        case ("∀" | "∃", name, kind, body):
            domain, complete = _domain(kind, values)
            found = [evaluate(body, {**values, name: value}) for value in domain] + ([] if complete else [None])
            return _all(found) if expr[0] == "∀" else _any(found)
        case ("rel", operator, _, left, right):
            a, b = evaluate(left, values), evaluate(right, values)
            return None if a is None or b is None else _compare(operator, a, b)
        case (operator, ("Nat",) | ("Int",) as sort, left, right):
            a, b = evaluate(left, values), evaluate(right, values)
            return None if a is None or b is None else _calculate(operator, sort[0], a, b)
    raise Unread(f"{expr}")


def _all(values: list[bool | None]) -> bool | None:
    return False if False in values else None if None in values else True


def _any(values: list[bool | None]) -> bool | None:
    return True if True in values else None if None in values else False


def _compare(operator: str, a: Any, b: Any) -> Any:
    match operator:
        case "=":
            return a == b
        case "≠":
            return a != b
        case "<":
            return a < b
        case "≤":
            return a <= b
        case ">":
            return a > b
    return a >= b


def _calculate(operator: str, sort: str, a: int, b: int) -> int:
    match operator:
        case "+":
            return a + b
        case "*":
            return a * b
        case "-":
            return max(0, a - b) if sort == "Nat" else a - b
        case "/":
            return 0 if b == 0 else (a - a % abs(b)) // b
    return a if b == 0 else a % abs(b)


def by_z3(statement: Expr, limit: int = 400_000) -> Truth:
    """Ask for a model of the negation, within z3's deterministic resource limit."""
    solver = z3.Solver()
    solver.set("rlimit", limit)
    solver.set("random_seed", 7)
    translation, scope, body = _Translation(), dict[str, Any](), statement
    try:
        while body[0] in ("∀", "→"):
            if body[0] == "→":
                solver.add(translation.formula(body[1], scope))
                body = body[2]
            else:
                _, name, kind, body = body
                scope[name], facts = translation.symbol(name, kind, scope)
                solver.add(*facts)
        solver.add(z3.Not(translation.formula(body, scope)))
    except z3.Z3Exception as error:
        raise Unread(str(error)) from error
    found = solver.check()
    return "true" if found == z3.unsat else "false" if found == z3.sat else "unknown"


class _Translation:
    """To z3: Nat is the integers from 0 on, a type variable an uninterpreted sort (never empty, which only hides)."""

    def __init__(self) -> None:
        self.fresh = itertools.count()

    def formula(self, expr: Expr, scope: Mapping[str, Any]) -> Any:
        match expr:
            case ("True",) | ("False",):
                return z3.BoolVal(expr[0] == "True")
            case ("var", name):
                return scope[name]
            case ("app", name, *arguments):
                return scope[name](*[self.either(argument, scope) for argument in arguments])
            case ("¬", inner):
                return z3.Not(self.formula(inner, scope))
            case ("∧", left, right):
                return z3.And(self.formula(left, scope), self.formula(right, scope))
            case ("∨", left, right):
                return z3.Or(self.formula(left, scope), self.formula(right, scope))
            case ("→", left, right):
                return z3.Implies(self.formula(left, scope), self.formula(right, scope))
            case ("↔", left, right):
                return self.formula(left, scope) == self.formula(right, scope)
            case ("rel", operator, ("Prop",), left, right):
                same = self.formula(left, scope) == self.formula(right, scope)
                return same if operator == "=" else z3.Not(same)
            case ("rel", operator, _, left, right):
                return _compare(operator, self.term(left, scope), self.term(right, scope))
            case ("∀" | "∃", *_):
                return self._quantified(expr, scope)
        raise Unread(f"{expr}")

    def either(self, expr: Expr, scope: Mapping[str, Any]) -> Any:
        return (self.formula if expr[0] in _PROPOSITIONS else self.term)(expr, scope)

    def _quantified(self, expr: Expr, scope: Mapping[str, Any]) -> Any:
        quantifier, name, kind, body = expr
        label = f"{name}!{next(self.fresh)}"
        variable: Any = z3.Const(label, self.z3_sort(kind, scope))
        inner = self.formula(body, {**scope, name: variable})
        if kind == ("Nat",):
            inner = z3.Implies(variable >= 0, inner) if quantifier == "∀" else z3.And(variable >= 0, inner)
        return z3.ForAll([variable], inner) if quantifier == "∀" else z3.Exists([variable], inner)

    def symbol(self, name: str, kind: Expr, scope: Mapping[str, Any]) -> tuple[Any, list[Any]]:
        """Return a free symbol for an outermost variable, and what is known of it."""
        label = f"{name}!{next(self.fresh)}"
        if kind == ("Type",):
            return z3.DeclareSort(label), []
        if kind[0] != "→":
            constant: Any = z3.Const(label, self.z3_sort(kind, scope))
            return constant, [constant >= 0] if kind == ("Nat",) else []
        sorts = []
        while kind[0] == "→":
            sorts.append(self.z3_sort(kind[1], scope))
            kind = kind[2]
        function: Any = z3.Function(label, *sorts, self.z3_sort(kind, scope))
        points = [z3.Const(f"{label}.{index}", sort) for index, sort in enumerate(sorts)]
        return function, [z3.ForAll(points, function(*points) >= 0)] if kind == ("Nat",) else []

    def z3_sort(self, kind: Expr, scope: Mapping[str, Any]) -> Any:
        match kind:
            case ("Prop",):
                return z3.BoolSort()
            case ("Nat",) | ("Int",):
                return z3.IntSort()
            case ("var", name):
                return scope[name]
        raise Unread(f"no sort for z3: {kind}")

    def term(self, expr: Expr, scope: Mapping[str, Any]) -> Any:
        match expr:
            case ("num", value):
                return z3.IntVal(value)
            case ("var", name):
                return scope[name]
            case ("app", name, *arguments):
                return scope[name](*[self.either(argument, scope) for argument in arguments])
            case (operator, (sort,), left, right):
                return _z3_calculate(operator, sort, self.term(left, scope), self.term(right, scope))
        raise Unread(f"{expr}")


def _z3_calculate(operator: str, sort: str, a: Any, b: Any) -> Any:
    match operator:
        case "+":
            return a + b
        case "*":
            return a * b
        case "-":
            return z3.If(a >= b, a - b, 0) if sort == "Nat" else a - b
        case "/":
            return z3.If(b == 0, 0, a / b)
    return z3.If(b == 0, a, a % b)
