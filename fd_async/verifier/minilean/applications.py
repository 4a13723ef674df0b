"""Elaborate names, applications and projections; eliminators for pattern matching."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from fd_async.verifier.minilean import known, prelude
from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.errors import LeanError, Unsupported
from fd_async.verifier.minilean.expr import App, Const, Expr, FVar, MVar, Pi, app, head_name, occurs
from fd_async.verifier.minilean.operators import Operators
from fd_async.verifier.minilean.reduce import unfold

_PROJECTIONS = {("And", "1"): "And.left", ("And", "2"): "And.right", ("Iff", "1"): "Iff.mp", ("Iff", "2"): "Iff.mpr"}


NO_TERMINATION = (
    "fail to show termination for\n  {0}\nwith errors\nfailed to infer structural recursion:\n"
    "no parameters suitable for structural recursion\n\n"
    "well-founded recursion cannot be used, `{0}` does not take any (non-fixed) arguments"
)
SURE_FIELDS = {"left", "right", "mp", "mpr"}
"""Fields that Lean certainly lacks where the lemma table has none."""


class Given(Struct, frozen=True):
    """An argument that is already elaborated."""

    expr: Expr
    span: s.Span


class Applications(Operators):
    """Part of the elaborator."""

    def elab_application(self, term: s.Term, expected: Expr | None) -> Expr:
        """Elaborate a name, projection or application with all its arguments."""
        args: list[s.Term | Given] = []
        head: s.Term = term
        fields: list[str] = []
        while True:
            if isinstance(head, s.Apply) and not fields:
                args = [*head.args, *args]
                head = head.fn
            elif isinstance(head, s.Project):
                fields = [*head.fields, *fields]
                head = head.term
                break
            else:
                break
        explicit = isinstance(head, s.Ident) and head.explicit
        if isinstance(head, s.Ident):
            fn, more = self.resolve(head)
            fields = [*more, *fields]
        elif isinstance(head, s.DotIdent):
            fn = self._dot_ident(head, expected)
        else:
            fn = self.elab(head, None)
        if explicit and fields:
            raise Unsupported("`@` with a projection", term.span)
        return self._with_fields(fn, fields, args, explicit, expected, term.span)

    def _with_fields(
        self,
        fn: Expr,
        fields: list[str],
        args: list[Any],
        explicit: bool,
        expected: Expr | None,
        span: s.Span,
    ) -> Expr:
        for index, name in enumerate(fields):
            last = index == len(fields) - 1
            base = self.apply(fn, [], False, None, span)
            constant, position = self._field(base, name, span)
            if not last:
                if position:
                    raise Unsupported("a projection with arguments before it", span)
                fn = self.apply(Const(constant), [Given(base, span)], False, None, span)
                continue
            if len(args) < position:
                raise Unsupported("a projection with too few arguments", span)
            placed = [*args[:position], Given(base, span), *args[position:]]
            return self.apply(Const(constant), placed, False, expected, span)
        return self.apply(fn, args, explicit, expected, span)

    def resolve(self, ident: s.Ident) -> tuple[Expr, list[str]]:
        """A name as a local or a constant, with the rest of a dotted name as fields."""
        parts = ident.name.split(".")
        rooted = parts[0] == "_root_"
        if rooted:
            parts = parts[1:]
        for local in () if rooted else reversed(self.context):
            if local.accessible and local.name == parts[0]:
                return FVar(local.uid), parts[1:]
        for length in range(len(parts), 0, -1):
            name = ".".join(parts[:length])
            rest = parts[length:]
            if rest and name in prelude.NAMEABLE_BASE:
                break  # `Nat.foo`: a constant that we do not know, not a field of the type `Nat`
            if name in self.user_names or prelude.is_nameable(name):
                return Const(name), rest
        if parts[0] == self.own_name:
            raise LeanError(NO_TERMINATION.format(self.own_name), self.own_span)
        if known.is_known_name(".".join(parts)):
            raise Unsupported(f"constant `{ident.name}`", ident.span)
        raise LeanError(f"Unknown identifier `{ident.name}`", ident.span)

    def _dot_ident(self, ident: s.DotIdent, expected: Expr | None) -> Expr:
        of = None if expected is None else self.meta.whnf_core(expected)
        while isinstance(of, Pi):
            of = self.meta.whnf_core(of.body)
        if of is None or isinstance(of, MVar):
            raise Unsupported("`.name` whose type is not known here", ident.span)
        name = f"{head_name(of)}.{ident.name}"
        if head_name(of) is None or not prelude.is_nameable(name):
            raise Unsupported(f"`.{ident.name}` for this type", ident.span)
        return Const(name)

    def _field(self, base: Expr, name: str, span: s.Span) -> tuple[str, int]:
        """Constant that a projection stands for, and how many explicit arguments precede the structure."""
        of = self.meta.whnf_core(self.meta.infer(base))
        while True:
            if isinstance(of, MVar):
                raise Unsupported("a projection of something whose type is not known here", span)
            head = head_name(of)
            constant = _PROJECTIONS.get((head or "", name)) if name.isdigit() else f"{head}.{name}"
            if constant is not None and prelude.is_nameable(constant):
                position = self._self_position(constant, head or "")
                if position is not None:
                    return constant, position
            unsure = not name.isdigit() and name not in SURE_FIELDS
            if unsure and head in ("Nat", "Int", "And", "Or", "Iff", "Eq", "Ne", "Exists", "Not"):
                raise Unsupported(f"`.{name}` for this type", span)
            unfolded = unfold(of)
            if unfolded is None:
                break
            of = self.meta.whnf_core(unfolded)
        shown = f"  {self.show(base)}\nof type `{self.show(self.meta.infer(base))}`"
        if name.isdigit():
            raise LeanError(f"Invalid projection: Projections cannot be used on the value\n{shown}", span)
        raise LeanError(f"Invalid field `{name}`: The environment does not contain such a name for\n{shown}", span)

    def _self_position(self, constant: str, head: str) -> int | None:
        of = self.meta.constant_type(constant)
        position = 0
        while isinstance(of, Pi):
            if not of.implicit:
                if head_name(of.type) == head:
                    return position
                position += 1
            of = of.body
        return None

    # ---------------------------------------------------------------- application

    def apply_constant(self, name: str, args: list[Any], expected: Expr | None, span: s.Span) -> Expr:
        """Apply a constant to syntax, with the expected type known."""
        return self.apply(Const(name), args, False, expected, span)

    def apply(self, fn: Expr, args: list[Any], explicit: bool, expected: Expr | None, span: s.Span) -> Expr:
        """Apply `fn`; implicit arguments become holes, the expected type is used before the first explicit one."""
        of = self.meta.infer(fn)
        result, index = fn, 0
        postponed: list[tuple[MVar, s.Term]] = []
        propagated = explicit or expected is None
        while True:
            self.budget.tick()
            of = self.meta.whnf_core(of)
            if not isinstance(of, Pi) and index < len(args):
                of = self.meta.whnf(of)
            if not isinstance(of, Pi):
                if index < len(args):
                    raise self._function_expected(result, of, args[index])
                break
            if of.implicit and not explicit:
                value: Expr = self.meta.new_hole(self.context, of.type)
            elif index < len(args):
                if not propagated and expected is not None:
                    self._propagate(expected, of, len(args) - index)
                    propagated = True
                value = self._argument(args[index], of.type, result, postponed)
                index += 1
            else:
                break
            result = App(result, value)
            of = self.meta.open(of, value)
        if expected is not None:
            self.meta.unify(expected, of)
        for hole, term in postponed:
            self.postponed.append((hole.uid, term, self.context))
        if postponed:
            self._try_postponed()
        return result

    def _try_postponed(self) -> None:
        """Elaborate those postponed arguments whose type is known by now."""
        waiting, self.postponed = self.postponed, []
        for hole, term, context in waiting:
            if not self._resume(hole, term, context):
                self.postponed.append((hole, term, context))

    def _propagate(self, expected: Expr, of: Pi, remaining: int) -> None:
        """Unify the expected type with the result type, when that does not mention the remaining arguments."""
        if isinstance(self.meta.whnf_core(expected), MVar):
            return
        skipped: list[int] = []
        result: Expr = of
        while isinstance(result, Pi):
            if not result.implicit:
                if remaining == 0:
                    break
                remaining -= 1
            skipped.append(result.uid)
            result = self.meta.whnf_core(result.body)
        if remaining or any(occurs(uid, result) for uid in skipped):
            return
        self.meta.unify(expected, result)

    def _argument(self, arg: Any, of: Expr, fn: Expr, postponed: list[tuple[MVar, s.Term]]) -> Expr:
        if isinstance(arg, Given):
            actual = self.meta.infer(arg.expr)
            if not self.meta.unify(of, actual):
                raise self._argument_mismatch(arg.expr, actual, of, fn, arg.span)
            return arg.expr
        inner = arg
        while isinstance(inner, s.Paren):
            inner = inner.term
        waits = isinstance(inner, s.Fun | s.Anonymous | s.DotIdent | s.HaveTerm) or (
            isinstance(inner, s.Apply) and isinstance(inner.fn, s.DotIdent)
        )
        if waits and (isinstance(self.meta.whnf_core(of), MVar) or self._domain_unknown(inner, of)):
            hole = self.meta.new_hole(self.context, of, assignable=False)
            postponed.append((hole, arg))
            return hole
        expr = self.elab(arg, of)
        actual = self.meta.infer(expr)
        if not self.meta.unify(of, actual):
            raise self._argument_mismatch(expr, actual, of, fn, arg.span)
        return expr

    def _argument_mismatch(self, arg: Expr, actual: Expr, expected: Expr, fn: Expr, span: s.Span) -> LeanError:
        return LeanError(
            f"Application type mismatch: The argument\n  {self.show(arg)}\nhas type\n  {self.show(actual)}\n"
            f"but is expected to have type\n  {self.show(expected)}\nin the application\n  {self.show(App(fn, arg))}",
            span,
        )

    def _function_expected(self, fn: Expr, of: Expr, arg: Any) -> LeanError:
        if isinstance(of, MVar):
            return Unsupported("an application of something whose type is not known here", arg.span)
        return LeanError(
            f"Function expected at\n  {self.show(fn)}\nbut this term has type\n  {self.show(of)}\n\n"
            "Note: Expected a function because this term is being applied to the argument\n  "
            + (self.show(arg.expr) if isinstance(arg, Given) else self.source(arg.span)),
            arg.span,
        )

    def source(self, span: s.Span) -> str:
        """Source text of a span, on one line."""
        return " ".join(self.text[span[0] : span[1]].split()) or "_"

    # ---------------------------------------------------------------- eliminators

    def _field_types(self, name: str | None, params: list[Expr]) -> tuple[Expr, Any]:
        """Types of the two fields of And, Iff, Exists; the second as a function of the first."""
        if name == "And":
            return params[0], lambda _: params[1]
        if name == "Iff":
            forward = Pi(self.meta.new_local("h", params[0]).uid, "a✝", params[0], params[1])
            back = Pi(self.meta.new_local("h", params[1]).uid, "a✝", params[1], params[0])
            return forward, lambda _: back
        predicate = params[1]
        return params[0], lambda witness: self.meta.whnf_core(App(predicate, witness))

    def eliminate(self, name: str | None, params: list[Expr], target: Expr, major: Expr, branches: list[Expr]) -> Expr:
        """Proof of `target` by cases on `major`, whose type is `name params`."""
        eliminator = {"And": "#And.elim", "Iff": "#Iff.elim", "Exists": "#Exists.elim", "Or": "Or.elim",
                      "False": "False.elim", "True": "#True.elim"}[name or ""]  # fmt: skip
        return app(eliminator, *params, target, major, *branches)
