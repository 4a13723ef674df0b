"""Elaborate functions, patterns and anonymous constructors."""

from __future__ import annotations

from collections.abc import Callable

from fd_async.verifier.minilean import prelude
from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.applications import Applications
from fd_async.verifier.minilean.errors import LeanError, Unsupported
from fd_async.verifier.minilean.expr import Expr, FVar, Lam, MVar, Pi, head_name, spine
from fd_async.verifier.minilean.meta import Local


class Functions(Applications):
    """Part of the elaborator."""

    def elab_fun(self, term: s.Fun, binders: list[s.Binder], expected: Expr | None) -> Expr:
        if not binders:
            return self.elab(term.body, None) if expected is None else self.ensure(term.body, expected)
        binder = binders[0]
        if binder.implicit:
            raise Unsupported("`fun` with an implicit binder", binder.span)
        of = None if expected is None else self.meta.whnf(expected)
        if of is not None and not isinstance(of, Pi):
            if isinstance(of, MVar):
                raise Unsupported("a function whose type is not known here", term.span)
            raise LeanError(f"Type mismatch\n  fun {binder.name} => ...\nis a function, but is expected to have type\n"
                            f"  {self.show(of)}", term.span)  # fmt: skip
        if isinstance(of, Pi) and of.implicit:
            raise Unsupported("`fun` over an implicit argument", binder.span)
        domain = of.type if isinstance(of, Pi) else None
        if binder.type is not None:
            written = self.elab_type(binder.type)
            if domain is not None and not self.meta.unify(domain, written):
                raise LeanError(
                    f"Type mismatch\n  fun ({binder.name} : {self.show(written)}) => ...\nbut is expected to "
                    f"have type\n  {self.show(of) if of is not None else ''}",
                    term.span,
                )
            domain = written
        if domain is None:
            raise Unsupported("`fun` without a type for its variable", binder.span)
        return self._fun_body(term, binders, domain, of)

    def _fun_body(self, term: s.Fun, binders: list[s.Binder], domain: Expr, of: Pi | None) -> Expr:
        binder = binders[0]
        local = self.meta.new_local(binder.name, domain)
        target = None if of is None else self.meta.open(of, FVar(local.uid))
        with self.within(local):
            if binder.pattern is not None:
                if target is None:
                    raise Unsupported("a pattern without an expected type", binder.span)
                body = self.destructure(local, binder.pattern, target, lambda: self.elab_fun(term, binders[1:], target))
            else:
                body = self.elab_fun(term, binders[1:], target)
        return Lam(local.uid, local.name, domain, body)

    def destructure(self, local: Local, pattern: s.Pattern, target: Expr, rest: Callable[[], Expr]) -> Expr:
        """`match local with | pattern => rest ()` for a tuple of names; `local` is out of reach in `rest`."""
        of = self.meta.whnf(self.meta.instantiate(local.type))
        name, params = head_name(of), spine(of)[1]
        if name not in ("And", "Iff", "Exists") or self.meta.holes(of) or self.meta.holes(target):
            raise Unsupported("a pattern for this type", pattern.span)
        parts = pattern.parts
        if pattern.kind != "tuple" or len(parts) < 2:
            raise Unsupported("this pattern", pattern.span)
        second = parts[1] if len(parts) == 2 else s.Pattern(pattern.span, "tuple", parts=parts[1:])
        types = self._field_types(name, params)
        first_local = self._pattern_local(parts[0], types[0])
        second_local = self._pattern_local(second, types[1](FVar(first_local.uid)))

        def bind(item: s.Pattern, field: Local, then: Callable[[], Expr]) -> Expr:
            return then() if item.kind == "name" else self.destructure(field, item, target, then)

        with self.within(first_local, second_local):
            body = bind(parts[0], first_local, lambda: bind(second, second_local, rest))
        inner = Lam(second_local.uid, second_local.name, second_local.type, body)
        branch = Lam(first_local.uid, first_local.name, first_local.type, inner)
        return self.eliminate(name, params, target, FVar(local.uid), [branch])

    def _pattern_local(self, pattern: s.Pattern, of: Expr) -> Local:
        if pattern.kind == "tuple":
            return self.meta.new_local("_", of)
        if pattern.kind != "name":
            raise Unsupported("this pattern", pattern.span)
        if prelude.is_nameable(pattern.name) or pattern.name in self.user_names:
            raise Unsupported(f"a pattern variable with the name of a constant `{pattern.name}`", pattern.span)
        return self.meta.new_local(pattern.name, of)

    def elab_anonymous(self, term: s.Anonymous, expected: Expr | None) -> Expr:
        of = None if expected is None else self.meta.whnf(expected, reducible_only=True)
        if of is None or isinstance(of, MVar):
            raise LeanError(
                "Invalid `⟨...⟩` notation: The expected type of this term could not be determined", term.span
            )
        name = head_name(of)
        constructors = {"And": ("And.intro", 2), "Iff": ("Iff.intro", 2), "Exists": ("Exists.intro", 2),
                        "True": ("True.intro", 0)}  # fmt: skip
        if name in ("Eq", "LE.Nat", "Nat", "Int", "LE.Int"):
            raise Unsupported("`⟨...⟩` for this type", term.span)
        if name not in constructors:
            raise LeanError(
                f"Invalid `⟨...⟩` notation: The expected type\n  {self.show(of)}\n"
                "is not an inductive type with exactly one constructor",
                term.span,
            )
        constructor, arity = constructors[name]
        args = list(term.args)
        if len(args) < arity:
            raise LeanError(
                f"Invalid `⟨...⟩` notation: Insufficient number of fields for constructor `{constructor}`", term.span
            )
        if arity and len(args) > arity:
            span = (args[arity - 1].span[0], term.span[1])
            args = [*args[: arity - 1], s.Anonymous(span, args[arity - 1 :])]
        elif len(args) > arity:
            raise LeanError(f"Invalid `⟨...⟩` notation: Too many fields for constructor `{constructor}`", term.span)
        return self.apply_constant(constructor, list(args), of, term.span)
