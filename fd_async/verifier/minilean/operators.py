"""Elaborate connectives, quantifiers and arithmetic operators."""

from __future__ import annotations

from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.elab_base import ElaboratorBase, strip_parens
from fd_async.verifier.minilean.errors import LeanError, Unsupported
from fd_async.verifier.minilean.expr import INT, NAT, PROP, TYPE, Expr, Lam, MVar, Pi, app, arrow

_CONNECTIVES = {"AND": "And", "OR": "Or", "IFF": "Iff"}
_RELATIONS = {"≤": "LE", "<=": "LE", "<": "LT", "≥": "GE", ">=": "GE", ">": "GT"}
_ARITHMETIC = {"PLUS": "HAdd", "MINUS": "HSub", "TIMES": "HMul"}


class Operators(ElaboratorBase):
    """Part of the elaborator. `+ - *` and relations form one tree whose leaves must agree on Nat or Int."""

    def elab_operator(self, term: s.Binary | s.Unary, expected: Expr | None) -> Expr:
        """Elaborate an operator by its symbol."""
        if isinstance(term, s.Unary):
            if term.op == "NOT":
                return app("Not", self.ensure(term.term, PROP))
            return self._arithmetic(term, expected)
        if term.op in _CONNECTIVES:
            left = self.ensure(term.left, PROP)
            return app(_CONNECTIVES[term.op], left, self.ensure(term.right, PROP))
        if term.op == "ARROW":
            return self._arrow(term)
        if term.op in _ARITHMETIC:
            return self._arithmetic(term, expected)
        return self._relation(term)

    def _arrow(self, term: s.Binary) -> Expr:
        if isinstance(term.left, s.Ascription):
            names = _names(term.left.term)
            if names is None:
                raise Unsupported("a type ascription left of an arrow", term.left.span)
            return self.elab_quantifier(
                term, [s.Binder(term.left.span, name, term.left.type) for name in names], term.right
            )
        domain = self.elab_type(term.left)
        return arrow(domain, self.elab_type(term.right))

    def elab_quantifier(
        self, term: s.Quantified | s.Binary, binders: list[s.Binder], body: s.Term | None = None
    ) -> Expr:
        """∀ and ∃ with their binders, and the dependent arrow."""
        if not binders:
            return self.elab_type(body if body is not None else term.body)  # type: ignore[union-attr]
        binder = binders[0]
        exists = isinstance(term, s.Quantified) and term.op == "EXISTS"
        of = self.elab_type(binder.type) if binder.type is not None else self.meta.new_hole(self.context, TYPE)
        if exists and self.meta.whnf(self.meta.infer(of)) != TYPE:
            raise Unsupported("∃ over this type", binder.span)
        local = self.meta.new_local(binder.name, of)
        with self.within(local):
            inner = self.elab_quantifier(term, binders[1:], body)
            if exists and not self.meta.is_prop(inner):
                raise LeanError(f"Type mismatch\n  {self.show(inner)}\nis not a proposition", term.span)
        if exists:
            if binder.implicit:
                raise Unsupported("∃ with an implicit binder", binder.span)
            return app("Exists", of, Lam(local.uid, local.name, of, inner))
        return Pi(local.uid, local.name, of, inner, binder.implicit)

    # ---------------------------------------------------------------- arithmetic

    def _arithmetic(self, term: s.Term, expected: Expr | None) -> Expr:
        leaves: list[tuple[s.Term, Expr | None]] = []
        self._leaves(term, leaves)
        kind = self._common_type([expr for _, expr in leaves if expr is not None], term.span)
        if kind is None and expected is not None:
            wanted = self.meta.whnf_core(expected)
            kind = wanted if wanted in (NAT, INT) else None
            if isinstance(wanted, MVar):
                raise Unsupported("arithmetic whose type is not known here", term.span)
        if kind is None:
            kind = self._default_kind(term)
        return self._build(term, kind, {id(leaf): expr for leaf, expr in leaves})

    def _default_kind(self, *terms: s.Term) -> Expr:
        if any(_has_negation(term) for term in terms):
            raise Unsupported("a negative numeral whose type is not known here", terms[0].span)
        return NAT

    def _leaves(self, term: s.Term, leaves: list[tuple[s.Term, Expr | None]]) -> None:
        """Elaborate the leaves without an expected type; numerals and `_` stay open (None)."""
        with self.deeper(term.span):
            inner = _operator_inside(term)
            if isinstance(inner, s.Binary):
                self._leaves(inner.left, leaves)
                self._leaves(inner.right, leaves)
            elif isinstance(inner, s.Unary):
                self._leaves(inner.term, leaves)
            elif isinstance(strip_parens(term), s.Numeral | s.Hole):
                leaves.append((term, None))
            elif isinstance(strip_parens(term), s.Fun | s.Anonymous | s.By | s.Sorry | s.DotIdent):
                raise Unsupported("this term under an operator", term.span)
            else:
                leaves.append((term, self.elab(term, None)))

    def _common_type(self, leaves: list[Expr], span: s.Span) -> Expr | None:
        kind: Expr | None = None
        for leaf in leaves:
            of = self.meta.whnf_core(self.meta.infer(leaf))
            if isinstance(of, MVar):
                raise Unsupported("arithmetic on something whose type is not known here", span)
            if kind is not None and of != kind:
                raise Unsupported("arithmetic that mixes types", span)
            kind = of
        return kind

    def _build(self, term: s.Term, kind: Expr, leaves: dict[int, Expr | None]) -> Expr:
        if id(term) in leaves:
            leaf = leaves[id(term)]
            if leaf is not None:
                return leaf
            return self.ensure(term, kind)
        inner = _operator_inside(term)
        suffix = _suffix(kind)
        if isinstance(inner, s.Unary):
            if suffix != "Int":
                raise LeanError(f"failed to synthesize\n  Neg {self.show(kind)}", inner.span)
            return app("Neg.Int", self._build(inner.term, kind, leaves))
        assert isinstance(inner, s.Binary)
        operation = _ARITHMETIC[inner.op]
        if suffix is None:
            shown = self.show(kind)
            raise LeanError(f"failed to synthesize\n  {operation} {shown} {shown} ?m", inner.span)
        left = self._build(inner.left, kind, leaves)
        return app(f"{operation}.{suffix}", left, self._build(inner.right, kind, leaves))

    def _relation(self, term: s.Binary) -> Expr:
        leaves: list[tuple[s.Term, Expr | None]] = []
        self._leaves(term.left, leaves)
        self._leaves(term.right, leaves)
        typed = [expr for _, expr in leaves if expr is not None]
        kind = self._relation_type(typed, term)
        if kind is None:
            if any(isinstance(strip_parens(leaf), s.Hole) for leaf, _ in leaves):
                raise Unsupported("a placeholder whose type is not known here", term.span)
            kind = self._default_kind(term.left, term.right)
        built = {id(leaf): expr for leaf, expr in leaves}
        left, right = self._build(term.left, kind, built), self._build(term.right, kind, built)
        if term.op in ("=", "≠"):
            if self.meta.whnf(self.meta.infer(kind)) != TYPE:
                raise Unsupported("an equality between proofs or types", term.span)
            return app("Eq" if term.op == "=" else "Ne", kind, left, right)
        relation = _RELATIONS.get(term.op)
        suffix = _suffix(kind)
        if relation is None or suffix is None:
            symbol = "LT" if relation in ("LT", "GT") else "LE"
            raise LeanError(f"failed to synthesize\n  {symbol} {self.show(kind)}", term.span)
        return app(f"{relation}.{suffix}", left, right)

    def _relation_type(self, typed: list[Expr], term: s.Binary) -> Expr | None:
        kinds = [self.meta.instantiate(self.meta.infer(expr)) for expr in typed]
        if not kinds:
            return None
        if all(kind in (NAT, INT) for kind in kinds) or any(kind in (NAT, INT) for kind in kinds):
            return self._common_type(typed, term.span)
        if any(isinstance(self.meta.whnf_core(kind), MVar) for kind in kinds):
            raise Unsupported("a relation whose type is not known here", term.span)
        for kind in kinds[1:]:
            if not self.meta.unify(kinds[0], kind):
                raise self.mismatch(typed[-1], kind, kinds[0], term.right.span)
        return kinds[0]


def _suffix(kind: Expr) -> str | None:
    return "Nat" if kind == NAT else "Int" if kind == INT else None


def _operator_inside(term: s.Term) -> s.Binary | s.Unary | None:
    """The arithmetic operator node that a term is, parentheses aside; None for a leaf."""
    inner = strip_parens(term)
    if isinstance(inner, s.Binary) and inner.op in _ARITHMETIC:
        return inner
    if isinstance(inner, s.Unary) and inner.op == "MINUS":
        return inner
    return None


def _has_negation(term: s.Term) -> bool:
    inner = _operator_inside(term)
    if isinstance(inner, s.Unary):
        return True
    return isinstance(inner, s.Binary) and (_has_negation(inner.left) or _has_negation(inner.right))


def _names(term: s.Term) -> list[str] | None:
    """Names of `x y z` in `(x y z : T) → ...`, else None."""
    parts = [term.fn, *term.args] if isinstance(term, s.Apply) else [term]
    if all(isinstance(part, s.Ident) and not part.explicit and "." not in part.name for part in parts):
        return [part.name for part in parts if isinstance(part, s.Ident)]
    return None
