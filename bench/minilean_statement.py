"""Statements of minilean from their text, by a parser of its own: precedences and scopes as Lean has them.

The result is a closed formula of tuples: ("∀" or "∃", name, type, body), connectives, ("rel", operator, sort, a, b),
("app", name, arguments...), ("var", name), ("num", value), and (operator, sort, a, b) for arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Expr = tuple[Any, ...]
_TOKEN = re.compile(r"--[^\n]*|\s+|(?P<t>[^\W\d][\w'!?.]*|\d+|:=|≠|<=|>=|->|<->|/\\|\\/|.)", re.DOTALL)
_SAME = {"->": "→", "<->": "↔", "/\\": "∧", "\\/": "∨", "<=": "≤", ">=": "≥"}
_RELATIONS = frozenset("=≠<≤>≥")
_SORTS = frozenset(["Prop", "Nat", "Int", "Type"])


class Unread(Exception):
    """The text is outside the language of this semantics."""


class Parser:
    """Precedence climbing with Lean's levels: ↔ 20, → 25, ∨ 30, ∧ 35, ¬ 40, relations 50, + 65, * 70, unary - 75."""

    def __init__(self, text: str) -> None:
        found = [match["t"] for match in _TOKEN.finditer(re.sub(r"/-.*?-/", " ", text, flags=re.DOTALL))]
        self.tokens = [_SAME.get(token, token) for token in found if token]
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise Unread(f"`{wanted or 'something'}` expected, `{token}` found")
        self.at += 1
        return token

    def statement(self) -> Expr:
        """`theorem NAME binders : type :=`, as one closed formula."""
        self.take("theorem")
        self.take()
        binders = self.binders()
        self.take(":")
        body = self.formula(0)
        self.take(":=")
        return _bind("∀", binders, body)

    def binders(self) -> list[tuple[str, Expr | None]]:
        found: list[tuple[str, Expr | None]] = []
        while self.peek() in ("(", "{"):
            close = {"(": ")", "{": "}"}[self.take()]
            names = []
            while self.peek() != ":":
                names.append(self.take())
            self.take(":")
            kind = self.formula(0)
            self.take(close)
            found += [(name, kind) for name in names]
        return found

    def formula(self, level: int) -> Expr:
        left = self.prefix(level)
        while True:
            operator = self.peek()
            found = next((row for row in _LEVELS if operator in row[0]), None)
            if found is None or found[1] < level:
                return left
            self.take()
            right = self.formula(found[2])
            left = (operator, left, right)
            if operator in _RELATIONS and self.peek() in _RELATIONS:
                raise Unread("chained relations")

    def prefix(self, level: int) -> Expr:
        token = self.peek()
        if token in ("∀", "∃"):
            self.take()
            binders = self.binders()
            if not binders:
                names = []
                while self.peek() not in (":", ","):
                    names.append(self.take())
                kind = None
                if self.peek() == ":":
                    self.take()
                    kind = self.formula(0)
                binders = [(name, kind) for name in names]
            self.take(",")
            return _bind(token, binders, self.formula(0))
        if token == "¬":
            self.take()
            return ("¬", self.formula(40))
        if token == "-":
            self.take()
            return ("neg", self.formula(75))
        return self.application()

    def application(self) -> Expr:
        head = self.atom()
        arguments = []
        while self.peek() and (self.peek() == "(" or re.match(r"[^\W_]|_\w", self.peek())):
            if self.peek() in ("by", "fun", "theorem"):
                break
            arguments.append(self.atom())
        return ("app", head, *arguments) if arguments else head

    def atom(self) -> Expr:
        token = self.take()
        if token == "(":
            inner = self.formula(0)
            if self.peek() == ":":
                self.take()
                kind = self.formula(0)
                inner = ("as", inner, kind)
            self.take(")")
            return inner
        if token.isdigit():
            return ("num", int(token))
        if token in ("True", "False") or token in _SORTS:
            return (token,)
        if re.match(r"[^\W\d]", token):
            return ("var", token)
        raise Unread(f"`{token}`")


_LEVELS = (
    (("↔",), 20, 21),
    (("→",), 25, 25),
    (("∨",), 30, 30),
    (("∧",), 35, 35),
    (tuple(_RELATIONS), 50, 51),
    (("+", "-"), 65, 66),
    (("*", "/", "%"), 70, 71),
)
"""Operators, their level, and the least level of their right side."""


def _bind(quantifier: str, binders: list[tuple[str, Expr | None]], body: Expr) -> Expr:
    for name, kind in reversed(binders):
        body = (quantifier, name, kind, body)
    return body


class Typed:
    """Finds out what each variable ranges over; a binder over a proposition is a hypothesis."""

    def __init__(self) -> None:
        self.types: dict[str, Expr] = {}

    def close(self, expr: Expr, scope: Mapping[str, Expr]) -> Expr:
        """Rewrite to ("∀"/"∃", name, type, body), connectives, ("rel", op, sort, a, b), atoms."""
        head = expr[0]
        if head in ("∀", "∃"):
            _, name, kind, body = expr
            kind = kind if kind is not None else self._guess(name, body, scope)
            if self._is_type(kind, scope):
                return (head, name, kind, self.close(body, {**scope, name: kind}))
            if head == "∃":
                raise Unread("∃ over a proposition")
            return (
                "→",
                self.close(kind, scope),
                self.close(body, {key: value for key, value in scope.items() if key != name}),
            )
        if head == "→" and self._is_type(expr[1], scope):  # `Nat → p`: p, if there is a number
            return ("∀", "_", expr[1], self.close(expr[2], scope))
        if head in ("∧", "∨", "→", "↔"):
            return (head, self.close(expr[1], scope), self.close(expr[2], scope))
        if head == "¬":
            return ("¬", self.close(expr[1], scope))
        if head in _RELATIONS:
            sort = self.sort(expr[1], scope) or self.sort(expr[2], scope) or ("Nat",)
            if sort == ("Prop",):
                return ("rel", head, sort, self.close(expr[1], scope), self.close(expr[2], scope))
            return ("rel", head, sort, self._term(expr[1], sort, scope), self._term(expr[2], sort, scope))
        if head == "as":
            return self.close(expr[1], scope)
        if head in ("True", "False"):
            return expr
        if self.sort(expr, scope) == ("Prop",):
            return self._term(expr, ("Prop",), scope)
        raise Unread(f"no proposition: {expr}")

    def _is_type(self, kind: Expr, scope: Mapping[str, Expr]) -> bool:
        if kind[0] == "→":
            return self._is_type(kind[2], scope) and (self._is_type(kind[1], scope))
        return kind[0] in _SORTS or (kind[0] == "var" and scope.get(kind[1]) == ("Type",))

    def sort(self, expr: Expr, scope: Mapping[str, Expr]) -> Expr | None:
        """Type of a term; None for a bare numeral."""
        match expr:
            case ("var", name):
                if name not in scope:
                    raise Unread(f"unknown name {name}")
                return scope[name]
            case ("num", _):
                return None
            case ("as", _, kind):
                return kind
            case ("neg", inner):
                return self.sort(inner, scope)
            case ("app", ("var", "Nat.succ"), _):
                return ("Nat",)
            case ("app", head, *arguments):
                kind = self.sort(head, scope)
                for _ in arguments:
                    if kind is None or kind[0] != "→":
                        raise Unread("not a function")
                    kind = kind[2]
                return kind
            case (("+" | "-" | "*" | "/" | "%"), left, right):
                return self.sort(left, scope) or self.sort(right, scope)
        return ("Prop",)

    def _term(self, expr: Expr, sort: Expr, scope: Mapping[str, Expr]) -> Expr:
        found = self.sort(expr, scope)
        if found is not None and found != sort:
            raise Unread(f"{expr} is no {sort}")
        match expr:
            case ("var", name):
                return ("var", name)
            case ("num", value):
                return ("num", value)
            case ("as", inner, kind):
                return self._term(inner, kind, scope)
            case ("neg", inner):
                return ("-", sort, ("num", 0), self._term(inner, sort, scope))
            case ("app", ("var", "Nat.succ"), inner):
                return ("+", ("Nat",), self._term(inner, ("Nat",), scope), ("num", 1))
            case ("app", ("var", name), *arguments):
                kind, made = scope[name], []
                for argument in arguments:
                    made.append(
                        self.close(argument, scope) if kind[1] == ("Prop",) else self._term(argument, kind[1], scope)
                    )
                    kind = kind[2]
                return ("app", name, *made)
            case (("+" | "-" | "*" | "/" | "%") as operator, left, right):
                return (operator, sort, self._term(left, sort, scope), self._term(right, sort, scope))
        raise Unread(f"no term: {expr}")

    def _guess(self, name: str, body: Expr, scope: Mapping[str, Expr]) -> Expr:
        """Type of an unannotated bound variable: that of what it is compared with, or of a function's argument."""
        for node in _walk(body):
            if node[0] in _RELATIONS and ("var", name) in list(_walk(node)):
                for side in node[1:]:
                    try:
                        sort = self.sort(side, scope)
                    except Unread:
                        continue
                    if sort:
                        return sort
            if node[0] == "app" and ("var", name) in node[2:] and node[1][0] == "var" and node[1][1] in scope:
                kind = scope[node[1][1]]
                for argument in node[2:]:
                    if argument == ("var", name):
                        return kind[1]
                    kind = kind[2]
        return ("Nat",)


def _walk(expr: Any) -> Iterator[Expr]:
    if isinstance(expr, tuple):
        yield expr
        for part in expr:
            yield from _walk(part)


def read_statement(text: str) -> Expr:
    """Read the statement of a theorem; raises Unread."""
    return Typed().close(Parser(text).statement(), {})
