"""Elaborate terms: from syntax to expressions with holes, against an expected type. Not trusted; see `kernel`.

Follows Lean's elaborator: the expected type reaches the arguments, a function or anonymous constructor waits until its
type is known, tactic blocks run last. What could go either way is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.applications import Applications
from fd_async.verifier.minilean.errors import Budget, LeanError, Unsupported
from fd_async.verifier.minilean.expr import (
    INT,
    NAT,
    App,
    Const,
    Expr,
    FVar,
    Lam,
    MVar,
    Num,
    Pi,
    SorryProof,
    Sort,
    head_name,
    walk,
)
from fd_async.verifier.minilean.functions import Functions
from fd_async.verifier.minilean.meta import Context, Local, Meta
from fd_async.verifier.minilean.operators import Operators
from fd_async.verifier.minilean.printer import Printer, goal_text

MAX_DEPTH = 150


class Elaborator(Applications, Functions, Operators):
    """One elaboration, of a statement or a whole theorem."""

    def __init__(
        self, constant_type: Callable[[str], Expr | None], user_names: set[str], budget: Budget, text: str = ""
    ) -> None:
        self.meta = Meta(constant_type, budget)
        self.user_names = user_names
        self.budget = budget
        self.text = text
        self.context: Context = ()
        self.postponed: list[tuple[int, s.Term, Context]] = []
        self.blocks: list[tuple[int, s.By]] = []
        self.new_goals: list[int] | None = None
        """Holes made for `?_`; None where these are not allowed."""
        self.sorries: list[tuple[s.Span, str]] = []
        self.depth = 0
        self.run_block: Callable[[int, s.By], None] | None = None

    # ---------------------------------------------------------------- helpers

    @contextmanager
    def within(self, *locals_: Local) -> Iterator[None]:
        """Extend the context for a while."""
        saved = self.context
        self.context = (*saved, *locals_)
        try:
            yield
        finally:
            self.context = saved

    @contextmanager
    def deeper(self, span: s.Span) -> Iterator[None]:
        """Guard the recursion."""
        self.budget.tick()
        self.depth += 1
        try:
            if self.depth > MAX_DEPTH:
                raise Unsupported("a term nested this deeply", span)
            yield
        finally:
            self.depth -= 1

    def show(self, expr: Expr) -> str:
        """Print a term under the current context."""
        return Printer(self.meta, self.context).term(self.meta.instantiate(expr))

    def mismatch(self, expr: Expr, actual: Expr, expected: Expr, span: s.Span) -> LeanError:
        """Lean's type mismatch."""
        return LeanError(
            f"Type mismatch\n  {self.show(expr)}\nhas type\n  {self.show(actual)}\n"
            f"but is expected to have type\n  {self.show(expected)}",
            span,
        )

    # ---------------------------------------------------------------- entry points

    def ensure(self, term: s.Term, expected: Expr) -> Expr:
        """Elaborate against a type; the result has that type."""
        expr = self.elab(term, expected)
        actual = self.meta.infer(expr)
        if not self.meta.unify(expected, actual):
            if head_name(expr) in ("rfl", "Eq.refl", "Iff.rfl", "Iff.refl") and self._computes(expected):
                raise Unsupported("reflexivity that needs computation", term.span)
            raise self.mismatch(expr, actual, expected, term.span)
        return expr

    def _computes(self, expected: Expr) -> bool:
        """Whether an operation on variables occurs, which Lean might reduce further than minilean."""
        return any(
            isinstance(node, Const) and node.name.startswith(("HAdd.", "HSub.", "HMul.", "Neg.", "LT.", "LE."))
            for node in walk(self.meta.instantiate(expected))
        )

    def complete(self, term: s.Term, expected: Expr | None, *, keep: bool = False) -> Expr:
        """Elaborate a term to the end, postponed parts and tactic blocks included; `keep` allows holes."""
        saved = (self.postponed, self.blocks)
        self.postponed, self.blocks = [], []
        try:
            expr = self.elab(term, expected) if expected is None else self.ensure(term, expected)
            self.settle()
            expr = self.meta.instantiate(expr)
            if not keep:
                allowed = set(self.new_goals or [])
                if any(hole not in allowed for hole in self.meta.holes(expr)):
                    raise self.unsolved_hole(expr, term.span, allowed)
            return expr
        finally:
            self.postponed, self.blocks = saved

    def unsolved_hole(self, expr: Expr, span: s.Span, allowed: set[int]) -> LeanError:
        """Lean's error for a placeholder that nothing determines."""
        hole = next(hole for hole in self.meta.holes(expr) if hole not in allowed)
        goal = self.meta.goals[hole]
        shown = goal_text(self.meta, goal.context, goal.type)
        return LeanError(f"don't know how to synthesize placeholder\ncontext:\n{shown}", span)

    def settle(self) -> None:
        """Elaborate what was postponed, then run the tactic blocks in order."""
        while self.postponed:
            progress = False
            waiting, self.postponed = self.postponed, []
            for hole, term, context in waiting:
                if self._resume(hole, term, context):
                    progress = True
                else:
                    self.postponed.append((hole, term, context))
            if not progress:
                _, term, _ = self.postponed[0]
                raise Unsupported("a term whose type is not known here", term.span)
        blocks, self.blocks = self.blocks, []
        for hole, block in blocks:
            if hole in self.meta.values:
                continue
            if self.run_block is None:
                raise Unsupported("a tactic block in a statement", block.span)
            self.run_block(hole, block)

    def _resume(self, hole: int, term: s.Term, context: Context) -> bool:
        goal = self.meta.goals[hole]
        if isinstance(self.meta.whnf_core(goal.type), MVar) or self._domain_unknown(term, goal.type):
            return False
        saved, self.context = self.context, context
        try:
            self.meta.values[hole] = self.ensure(term, goal.type)
        finally:
            self.context = saved
        return True

    def _domain_unknown(self, term: s.Term, expected: Expr) -> bool:
        """Whether a function without written types meets a type whose domain is still a hole."""
        inner = strip_parens(term)
        if not isinstance(inner, s.Fun) or inner.binders[0].type is not None:
            return False
        of = self.meta.whnf(expected)
        return isinstance(of, Pi) and isinstance(self.meta.whnf_core(of.type), MVar)

    def elab_type(self, term: s.Term) -> Expr:
        """Elaborate a type or proposition."""
        expr = self.elab(term, None)
        sort = self.meta.whnf(self.meta.infer(expr))
        if not isinstance(sort, Sort):
            raise LeanError(f"type expected, got\n  ({self.show(expr)} : {self.show(sort)})", term.span)
        return expr

    # ---------------------------------------------------------------- dispatch

    def elab(self, term: s.Term, expected: Expr | None) -> Expr:
        """Elaborate; `expected` guides but is not enforced (see `ensure`)."""
        with self.deeper(term.span):
            if expected is not None:
                of = self.meta.whnf(expected)
                if isinstance(of, Pi) and of.implicit and not _blocks_implicit_lambda(term):
                    return self._implicit_lambda(term, of)
            return self._dispatch(term, expected)

    def _implicit_lambda(self, term: s.Term, of: Pi) -> Expr:
        local = self.meta.new_local(of.name, of.type, accessible=False)
        with self.within(local):
            body = self.ensure(term, self.meta.open(of, FVar(local.uid)))
        return Lam(local.uid, of.name, of.type, body, implicit=True)

    def _dispatch(self, term: s.Term, expected: Expr | None) -> Expr:
        match term:
            case s.Ident() | s.Apply() | s.Project() | s.DotIdent():
                return self.elab_application(term, expected)
            case s.Paren(term=inner):
                return self.elab(inner, expected)
            case s.Numeral():
                return self._numeral(term, expected)
            case s.SortTerm(level=level):
                return Sort(level)
            case s.Fun():
                return self.elab_fun(term, term.binders, expected)
            case s.Anonymous():
                return self.elab_anonymous(term, expected)
            case s.Hole():
                return self._hole(term, expected)
            case s.By():
                return self._by(term, expected)
            case s.Sorry():
                return self._sorry(term, expected)
            case s.Ascription():
                return self.ensure(term.term, self.elab_type(term.type))
            case s.Show():
                return self._show(term, expected)
            case s.HaveTerm():
                return self._have(term, expected)
            case s.Quantified():
                return self.elab_quantifier(term, term.binders)
            case s.Binary() | s.Unary():
                return self.elab_operator(term, expected)
        raise Unsupported("this term", term.span)

    def _numeral(self, term: s.Numeral, expected: Expr | None) -> Expr:
        of = NAT if expected is None else self.meta.whnf_core(expected)
        if of == NAT:
            return Num(term.value, "Nat")
        if of == INT:
            return Num(term.value, "Int")
        if isinstance(of, MVar):
            raise Unsupported("a numeral whose type is not known here", term.span)
        raise LeanError(f"failed to synthesize\n  OfNat {self._atom(of)} {term.value}", term.span)

    def _atom(self, of: Expr) -> str:
        return Printer(self.meta, self.context).term(self.meta.instantiate(of), 1024)

    def _hole(self, term: s.Hole, expected: Expr | None) -> Expr:
        if expected is None:
            raise Unsupported("a placeholder whose type is not known here", term.span)
        if not term.synthetic:
            return self.meta.new_hole(self.context, expected)
        if self.new_goals is None:
            raise LeanError("don't know how to synthesize placeholder", term.span)
        if term.name:
            raise Unsupported("a named `?` placeholder", term.span)
        hole = self.meta.new_hole(self.context, expected, assignable=False)
        self.new_goals.append(hole.uid)
        return hole

    def _by(self, term: s.By, expected: Expr | None) -> Expr:
        if expected is None:
            raise Unsupported("a tactic block whose goal is not known here", term.span)
        hole = self.meta.new_hole(self.context, expected, assignable=False)
        self.blocks.append((hole.uid, term))
        return hole

    def _sorry(self, term: s.Sorry, expected: Expr | None) -> Expr:
        if expected is None or not self.meta.is_prop(expected):
            raise Unsupported("`sorry` for something that is no known proposition", term.span)
        if self.meta.holes(expected):
            raise Unsupported("`sorry` for a proposition that is not known yet", term.span)
        expected = self.meta.instantiate(expected)
        self.sorries.append((term.span, goal_text(self.meta, self.context, expected)))
        return SorryProof(expected)

    def _show(self, term: s.Show, expected: Expr | None) -> Expr:
        of = self.elab_type(term.type)
        if expected is not None and not self.meta.unify(expected, of):
            raise self.mismatch(self.meta.new_hole(self.context, of), of, expected, term.span)
        return self.ensure(term.term, of)

    def _have(self, term: s.HaveTerm, expected: Expr | None) -> Expr:
        decl = term.decl
        if decl.pattern is not None or decl.binders:
            raise Unsupported("`have` with a pattern or binders as a term", decl.span)
        if decl.type is not None:
            of = self.elab_type(decl.type)
            value = self.ensure(decl.value, of)
        else:
            value = self.elab(decl.value, None)
            of = self.meta.infer(value)
        if not self.meta.is_prop(of):
            raise Unsupported("`have` of a value that is no proof", decl.span)
        local = self.meta.new_local(decl.name, of)
        with self.within(local):
            body = self.elab(term.body, expected) if expected is None else self.ensure(term.body, expected)
        return App(Lam(local.uid, local.name, of, body), value)


def strip_parens(term: s.Term) -> s.Term:
    """The term without surrounding parentheses."""
    while isinstance(term, s.Paren):
        term = term.term
    return term


def _blocks_implicit_lambda(term: s.Term) -> bool:
    inner = strip_parens(term)
    head = inner.fn if isinstance(inner, s.Apply) else inner
    if isinstance(head, s.Ident) and head.explicit:
        return True
    return isinstance(inner, s.Hole | s.By | s.Ascription)
