"""Elaborate terms: from syntax to expressions with holes, against an expected type. Not trusted; see `kernel`.

Follows Lean's elaborator: the expected type reaches the arguments, a function or anonymous constructor waits until its
type is known, tactic blocks run last. What could go either way is refused.
"""

from __future__ import annotations

from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.elab_base import strip_parens
from fd_async.verifier.minilean.errors import LeanError, Unsupported
from fd_async.verifier.minilean.expr import (
    INT,
    NAT,
    App,
    Expr,
    FVar,
    Lam,
    MVar,
    Num,
    Pi,
    SorryProof,
    Sort,
)
from fd_async.verifier.minilean.functions import Functions
from fd_async.verifier.minilean.printer import Printer, goal_text


class Elaborator(Functions):
    """One elaboration, of a statement or a whole theorem."""

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


def _blocks_implicit_lambda(term: s.Term) -> bool:
    inner = strip_parens(term)
    head = inner.fn if isinstance(inner, s.Apply) else inner
    if isinstance(head, s.Ident) and head.explicit:
        return True
    return isinstance(inner, s.Hole | s.By | s.Ascription)
