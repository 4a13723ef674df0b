"""What every part of the elaborator shares: contexts, errors, and the order in which things are elaborated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.errors import Budget, LeanError, Unsupported
from fd_async.verifier.minilean.expr import Const, Expr, MVar, Pi, Sort, head_name, walk
from fd_async.verifier.minilean.meta import Context, Local, Meta
from fd_async.verifier.minilean.printer import Printer, goal_text

MAX_DEPTH = 150


def strip_parens(term: s.Term) -> s.Term:
    """The term without surrounding parentheses."""
    while isinstance(term, s.Paren):
        term = term.term
    return term


class ElaboratorBase(ABC):
    """State of one elaboration, and how its parts are completed."""

    def __init__(
        self, constant_type: Callable[[str], Expr | None], user_names: set[str], budget: Budget, text: str = ""
    ) -> None:
        self.meta = Meta(constant_type, budget)
        self.user_names = user_names
        self.budget = budget
        self.text = text
        self.own_name = ""
        self.own_span: s.Span | None = None
        """The theorem that is being proved: it may not use itself."""
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

    @abstractmethod
    def elab(self, term: s.Term, expected: Expr | None) -> Expr:
        """Elaborate; `expected` guides but is not enforced (see `ensure`)."""
