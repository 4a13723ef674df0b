"""Local contexts, holes and unification. Not trusted: whatever it builds the kernel checks again.

Faithfulness: an assignment that Lean would not find is not made, since each rule here is one of Lean's at default
transparency; what Lean can do beyond (higher-order patterns, more unfolding) is left out.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from fd_async.verifier.minilean.errors import Budget, Unsupported
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
    app,
    free_vars,
    fresh_uid,
    spine,
    substitute,
    transform,
    tree_size,
    walk,
)
from fd_async.verifier.minilean.reduce import beta, definition_of, from_offset, nat_offset, unfold, value_of

MAX_TERM = 20_000


class Local(Struct, frozen=True):
    """A variable or hypothesis; an inaccessible one cannot be named by the user."""

    uid: int
    name: str
    type: Expr
    accessible: bool = True


Context = tuple[Local, ...]


class Goal(Struct):
    """Declaration of a hole."""

    context: Context
    type: Expr
    assignable: bool
    """False for `?_` and tactic goals: unification may not fill them."""
    tag: str = ""


class Meta:
    """State of one elaboration: holes, their values, and types of local variables."""

    def __init__(self, constant_type: Callable[[str], Expr | None], budget: Budget) -> None:
        self.constant_type = constant_type
        self.budget = budget
        self.goals: dict[int, Goal] = {}
        self.values: dict[int, Expr] = {}
        self.locals: dict[int, Local] = {}

    def new_local(self, name: str, of: Expr, *, accessible: bool = True) -> Local:
        """Declare a local; the caller puts it into a context. `_` makes it inaccessible."""
        if name == "_":
            name, accessible = "x✝", False
        local = Local(fresh_uid(), name, of, accessible)
        self.locals[local.uid] = local
        return local

    def new_hole(self, context: Context, of: Expr, *, assignable: bool = True, tag: str = "") -> MVar:
        """Declare a hole."""
        hole = MVar(fresh_uid())
        self.goals[hole.uid] = Goal(context, of, assignable, tag)
        return hole

    def instantiate(self, expr: Expr) -> Expr:
        """Replace filled holes, and beta-reduce where one was at the head."""

        visited = 0

        def leaf(node: Expr) -> Expr | None:
            nonlocal visited
            visited += 1
            if isinstance(node, MVar):
                value = self.values.get(node.uid)
                return node if value is None else self.instantiate(value)
            if isinstance(node, App):
                head, args = spine(node)
                if isinstance(head, MVar) and head.uid in self.values:
                    return beta(app(self.instantiate(head), *[self.instantiate(arg) for arg in args]))
            return None

        result = transform(expr, leaf) if self.values else expr
        self.budget.tick(1 + visited // 32)
        return result

    def holes(self, expr: Expr) -> list[int]:
        """Unfilled holes in a term, each once, in no particular order."""
        return list({n.uid: None for n in walk(self.instantiate(expr)) if isinstance(n, MVar)})

    def open(self, binder: Pi | Lam, value: Expr) -> Expr:
        """Body of a binder at a value. A hole below that may still mention the variable is refused."""
        body = binder.body
        if any(isinstance(node, MVar) and self._sees(node.uid, binder.uid) for node in walk(body)):
            body = self.instantiate(body)
            if any(isinstance(node, MVar) and self._sees(node.uid, binder.uid) for node in walk(body)):
                raise Unsupported("an unsolved placeholder under a binder")
        return substitute(body, binder.uid, value)

    def _sees(self, hole: int, uid: int) -> bool:
        return any(local.uid == uid for local in self.goals[hole].context)

    def infer(self, expr: Expr) -> Expr:
        """Type of a term that is known to be well typed."""
        self.budget.tick()
        match expr:
            case Sort(level):
                return Sort(level + 1)
            case Const(name):
                of = self.constant_type(name)
                if of is None:
                    raise Unsupported(f"constant `{name}`")
                return of
            case FVar(uid):
                if uid not in self.locals:
                    raise Unsupported("a variable out of scope")
                return self.locals[uid].type
            case MVar(uid):
                return self.goals[uid].type
            case Num(_, kind):
                return NAT if kind == "Nat" else INT
            case Decided() | SorryProof():
                return expr.prop
            case App(fn, arg):
                fn_type = self.whnf(self.infer(fn))
                if not isinstance(fn_type, Pi):
                    raise Unsupported("an application whose function type is unclear")
                return self.open(fn_type, arg)
            case Lam(uid, name, domain, body, implicit) if uid in self.locals:
                return Pi(uid, name, domain, self.infer(body), implicit)  # its own elaborated variable: no need to open
            case Lam() | Pi():
                local = self.new_local(expr.name, expr.type)
                body = self.infer(self.open(expr, FVar(local.uid)))
                if isinstance(expr, Lam):
                    return Pi(local.uid, expr.name, expr.type, body, expr.implicit)
                level, domain = self.whnf(body), self.whnf(self.infer(expr.type))
                if not isinstance(level, Sort) or not isinstance(domain, Sort):
                    raise Unsupported("a function type whose universe is unclear")
                return Sort(0 if level.level == 0 else max(level.level, domain.level))
        raise Unsupported("a term of unknown kind")

    def is_prop(self, of: Expr) -> bool:
        """Whether a type is a proposition."""
        return self.whnf(self.infer(of)) == Sort(0)

    def whnf_core(self, expr: Expr) -> Expr:
        """Fill the head and beta-reduce; no definitions."""
        while True:
            self.budget.tick()
            head, args = spine(expr)
            if isinstance(head, MVar) and head.uid in self.values:
                expr = app(self.values[head.uid], *args)
            elif isinstance(head, Lam) and args:
                expr = app(self.open(head, args[0]), *args[1:])
            else:
                return expr

    def whnf(self, expr: Expr, *, reducible_only: bool = False) -> Expr:
        """Weak head normal form, unfolding every (or only reducible) definition."""
        while True:
            expr = self.whnf_core(expr)
            unfolded = unfold(expr, reducible_only=reducible_only)
            if unfolded is None:
                return expr
            expr = unfolded

    def unify(self, left: Expr, right: Expr) -> bool:
        """Make two terms definitionally equal by filling holes; on failure nothing is filled."""
        saved = dict(self.values)
        if self._unify(left, right):
            return True
        self.values = saved
        return False

    def _unify(self, left: Expr, right: Expr) -> bool:
        self.budget.tick()
        left, right = self.whnf_core(left), self.whnf_core(right)
        if left is right or alpha_equal(self.instantiate(left), self.instantiate(right)):
            return True
        for hole, other in ((left, right), (right, left)):
            if isinstance(hole, MVar) and self.goals[hole.uid].assignable and self._fill(hole, other):
                return True
        if isinstance(left, MVar) or isinstance(right, MVar):
            return False
        decided = self._unify_numbers(left, right)
        if decided is not None:
            return decided
        return self._unify_structure(left, right) or self._unify_unfolded(left, right)

    def _fill(self, hole: MVar, value: Expr) -> bool:
        value = self.instantiate(value)
        size = tree_size(value)
        self.budget.tick(size // 16)
        if size > MAX_TERM:
            raise Unsupported("a term this large")
        goal = self.goals[hole.uid]
        if any(isinstance(node, MVar) and node.uid == hole.uid for node in walk(value)):
            return False
        if not free_vars(value) <= {local.uid for local in goal.context}:
            return False
        if not self._unify(goal.type, self.infer(value)):
            return False
        self.values[hole.uid] = value
        return True

    def _unify_numbers(self, left: Expr, right: Expr) -> bool | None:
        """Closed computations and `n + k`; None when these do not apply."""
        left, right = self.instantiate(left), self.instantiate(right)
        a, b = value_of(left), value_of(right)
        if a is not None and b is not None:
            return a == b
        base_a, offset_a = nat_offset(left)
        base_b, offset_b = nat_offset(right)
        common = min(offset_a, offset_b)
        if common:
            return self._unify(from_offset(base_a, offset_a - common), from_offset(base_b, offset_b - common))
        plain_left = base_a if base_a is not None and offset_a == 0 else left  # `x + 0` is `x`
        plain_right = base_b if base_b is not None and offset_b == 0 else right
        if plain_left is not left or plain_right is not right:
            return self._unify(plain_left, plain_right)
        return None

    def _unify_structure(self, left: Expr, right: Expr) -> bool:
        match left, right:
            case (Lam(), Lam()) | (Pi(), Pi()):
                if not self._unify(left.type, right.type):
                    return False
                local = FVar(self.new_local(left.name, left.type).uid)
                return self._unify(self.open(left, local), self.open(right, local))
            case (App(), App()):
                head_left, args_left = spine(left)
                head_right, args_right = spine(right)
                if isinstance(head_left, MVar) or isinstance(head_right, MVar):
                    return False
                if len(args_left) != len(args_right) or head_left != head_right:
                    return False
                saved = dict(self.values)
                if all(self._unify(a, b) for a, b in zip(args_left, args_right, strict=True)):
                    return True
                self.values = saved
        return False

    def _unify_unfolded(self, left: Expr, right: Expr) -> bool:
        def_left, def_right = definition_of(left), definition_of(right)
        height_left = def_left.height if def_left else 0
        height_right = def_right.height if def_right else 0
        if height_left == height_right == 0:
            return False
        if height_left >= height_right:
            left = unfold(left) or left
        if height_right >= height_left:
            right = unfold(right) or right
        return self._unify(left, right)
