"""Terms. Variables are named by unique integers: a binder binds the free variable with its `uid`.

A binder that is opened gets a fresh `uid`, so substitution does not capture; the kernel does not rely on that, since it
converts to de Bruijn indices by scope and checks the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal

from msgspec import Struct


class Sort(Struct, frozen=True):
    """`Sort 0` is Prop, `Sort 1` is Type."""

    level: int


class Const(Struct, frozen=True):
    """A constant of the prelude or an earlier theorem."""

    name: str


class FVar(Struct, frozen=True):
    """A local variable or hypothesis."""

    uid: int


class MVar(Struct, frozen=True):
    """A hole of the elaborator: an implicit argument or a goal."""

    uid: int


class Num(Struct, frozen=True):
    """A numeral >= 0 of type Nat or Int."""

    value: int
    type: Literal["Nat", "Int"]


class App(Struct, frozen=True):
    """Application to one argument."""

    fn: Expr
    arg: Expr


class Lam(Struct, frozen=True):
    """`fun (name : type) => body`, binding FVar(uid) in body."""

    uid: int
    name: str
    type: Expr
    body: Expr
    implicit: bool = False


class Pi(Struct, frozen=True):
    """`(name : type) -> body`, binding FVar(uid) in body."""

    uid: int
    name: str
    type: Expr
    body: Expr
    implicit: bool = False


class Decided(Struct, frozen=True):
    """The proof of a closed arithmetic proposition that the kernel decides itself: by `omega` or by `decide`."""

    method: Literal["omega", "decide"]
    prop: Expr


class SorryProof(Struct, frozen=True):
    """`sorryAx prop`; a theorem that contains it has the axiom `sorryAx`."""

    prop: Expr


Expr = Sort | Const | FVar | MVar | Num | App | Lam | Pi | Decided | SorryProof

_LEAVES = frozenset({Sort, Const, FVar, MVar, Num})

PROP, TYPE = Sort(0), Sort(1)
NAT, INT = Const("Nat"), Const("Int")
TRUE, FALSE = Const("True"), Const("False")

_counter = itertools.count(1)
_shown: dict[int, int] = {}


def fresh_uid() -> int:
    """Return an integer that no variable has."""
    return next(_counter)


def forget_shown() -> None:
    """Have `shown_uid` begin at 1, so that a text is answered alike whatever was answered before it."""
    _shown.clear()


def shown_uid(uid: int) -> int:
    """Return the number by which messages call a variable: its place among those that they call."""
    return _shown.setdefault(uid, len(_shown) + 1)


def app(fn: Expr | str, *args: Expr) -> Expr:
    """Apply a term, or the constant of that name, to arguments."""
    result: Expr = Const(fn) if isinstance(fn, str) else fn
    for arg in args:
        result = App(result, arg)
    return result


def spine(expr: Expr) -> tuple[Expr, list[Expr]]:
    """Split an application into head and arguments."""
    args: list[Expr] = []
    while type(expr) is App:
        args.append(expr.arg)
        expr = expr.fn
    args.reverse()
    return expr, args


def head_name(expr: Expr) -> str | None:
    """Name of the constant at the head, if there is one."""
    while isinstance(expr, App):
        expr = expr.fn
    return expr.name if isinstance(expr, Const) else None


def is_app_of(expr: Expr, name: str, arity: int) -> list[Expr] | None:
    """Arguments of `name` applied to exactly `arity` of them, else None."""
    head, args = spine(expr)
    return args if isinstance(head, Const) and head.name == name and len(args) == arity else None


def arrow(domain: Expr, codomain: Expr) -> Pi:
    """The non-dependent function type."""
    return Pi(fresh_uid(), "a✝", domain, codomain)


def children(expr: Expr) -> tuple[Expr, ...]:
    """Direct subterms."""
    match expr:
        case App(fn, arg):
            return (fn, arg)
        case Lam() | Pi():
            return (expr.type, expr.body)
        case Decided() | SorryProof():
            return (expr.prop,)
        case _:
            return ()


def walk(expr: Expr) -> Iterator[Expr]:
    """Every subterm, each shared object once."""
    seen: set[int] = set()
    stack = [expr]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        stack.extend(children(node))


def free_vars(expr: Expr) -> frozenset[int]:
    """uids of the free local variables."""
    memo: dict[int, frozenset[int]] = {}

    def go(node: Expr) -> frozenset[int]:
        found = memo.get(id(node))
        if found is None:
            match node:
                case FVar(uid):
                    found = frozenset({uid})
                case Lam() | Pi():
                    found = go(node.type) | (go(node.body) - {node.uid})
                case _:
                    found = frozenset().union(*(go(child) for child in children(node)))
            memo[id(node)] = found
        return found

    return go(expr)


def tree_size(expr: Expr) -> int:
    """Number of nodes when shared subterms count each time; cheap even where that is astronomic."""
    memo: dict[int, int] = {}

    def go(node: Expr) -> int:
        size = memo.get(id(node))
        if size is None:
            size = memo[id(node)] = 1 + sum(go(child) for child in children(node))
        return size

    return go(expr)


def occurs(uid: int, expr: Expr) -> bool:
    """Whether FVar(uid) occurs free."""
    return uid in free_vars(expr)


def transform(expr: Expr, leaf: Callable[[Expr], Expr | None]) -> Expr:
    """Rebuild bottom-up; `leaf` returns a replacement for a subterm, or None to go into it."""
    memo: dict[int, Expr] = {}

    def go(node: Expr) -> Expr:
        kind = type(node)
        if kind in _LEAVES:
            return leaf(node) or node
        done = memo.get(id(node))
        if done is not None:
            return done
        result = leaf(node)
        if result is None:
            if type(node) is App:
                fn, arg = node.fn, node.arg
                new_fn, new_arg = go(fn), go(arg)
                result = node if new_fn is fn and new_arg is arg else App(new_fn, new_arg)
            else:
                result = _rebuild(node, go)
        memo[id(node)] = result
        return result

    return go(expr)


def _rebuild(node: Expr, go: Callable[[Expr], Expr]) -> Expr:
    match node:
        case Lam() | Pi():
            new_type, new_body = go(node.type), go(node.body)
            if new_type is node.type and new_body is node.body:
                return node
            return type(node)(node.uid, node.name, new_type, new_body, node.implicit)
        case Decided(method, prop):
            new_prop = go(prop)
            return node if new_prop is prop else Decided(method, new_prop)
        case SorryProof(prop):
            new_prop = go(prop)
            return node if new_prop is prop else SorryProof(new_prop)
        case _:
            return node


def substitute(expr: Expr, uid: int, value: Expr) -> Expr:
    """expr[uid := value]; stops at a binder that shadows `uid`."""

    def leaf(node: Expr) -> Expr | None:
        if isinstance(node, FVar):
            return value if node.uid == uid else node
        if isinstance(node, Lam | Pi) and node.uid == uid:
            new_type = substitute(node.type, uid, value)
            return type(node)(node.uid, node.name, new_type, node.body, node.implicit)
        return None

    return transform(expr, leaf)


def refresh(expr: Pi | Lam) -> Pi | Lam:
    """The same binder with a fresh uid."""
    uid = fresh_uid()
    return type(expr)(uid, expr.name, expr.type, substitute(expr.body, expr.uid, FVar(uid)), expr.implicit)


def alpha_equal(left: Expr, right: Expr) -> bool:
    """Equality up to names and kinds of binders. Pairs that were found equal are not compared again."""
    equal: set[tuple[int, int, int]] = set()
    scopes: list[dict[int, int]] = []  # keeps them alive, so that their ids stay unique

    def go(a: Expr, b: Expr, bound: dict[int, int]) -> bool:
        if a is b and not bound:
            return True
        if type(a) is not type(b):
            return False
        key = (id(a), id(b), id(bound))
        if key in equal:
            return True
        match a, b:
            case FVar(x), FVar(y):
                same = bound.get(x, x) == y and (x in bound or y not in bound.values())
            case (Lam(), Lam()) | (Pi(), Pi()):
                same = go(a.type, b.type, bound) and go(a.body, b.body, under(a.uid, b.uid, bound))
            case (App(), App()) | (Decided(), Decided()) | (SorryProof(), SorryProof()):
                tags = isinstance(a, Decided) and isinstance(b, Decided) and a.method != b.method
                same = not tags and all(go(x, y, bound) for x, y in zip(children(a), children(b), strict=True))
            case _:
                same = a == b
        if same:
            equal.add(key)
        return same

    def under(x: int, y: int, bound: dict[int, int]) -> dict[int, int]:
        inner = {key: (-1 if value == y else value) for key, value in bound.items()}
        inner[x] = y
        scopes.append(inner)
        return inner

    return go(left, right, {})
