"""Statements: binder telescopes and closed types."""

from __future__ import annotations

from collections.abc import Callable

from fd_async.verifier.minilean import prelude
from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.elaborator import Elaborator
from fd_async.verifier.minilean.errors import Budget, LeanError, Unsupported
from fd_async.verifier.minilean.expr import Expr, Pi
from fd_async.verifier.minilean.kernel import Kernel, KernelError
from fd_async.verifier.minilean.lexer import tokenize
from fd_async.verifier.minilean.meta import Context, Local
from fd_async.verifier.minilean.parser import parse_command


def elab_signature(elab: Elaborator, binders: list[s.Binder], of: s.Term) -> tuple[Context, Expr]:
    """Elaborate binders and the type after the colon; nothing may stay open."""
    locals_: list[Local] = []
    for binder in binders:
        assert binder.type is not None
        elab.context = tuple(locals_)
        local = elab.meta.new_local(binder.name, elab.elab_type(binder.type))
        locals_.append(local)
    elab.context = tuple(locals_)
    target = elab.elab_type(of)
    elab.settle()
    context: list[Local] = []
    for local, binder in zip(locals_, binders, strict=True):
        closed = Local(local.uid, local.name, _closed(elab, local.type, binder.span), local.accessible)
        elab.meta.locals[local.uid] = closed
        context.append(closed)
    elab.context = tuple(context)
    return elab.context, _closed(elab, target, of.span)


def _closed(elab: Elaborator, of: Expr, span: s.Span) -> Expr:
    of = elab.meta.instantiate(of)
    if elab.meta.holes(of):
        raise Unsupported("a statement in which a type stays open", span)
    return of


def close_over(context: Context, binders: list[s.Binder], of: Expr) -> Expr:
    """∀ over the telescope."""
    for local, binder in zip(reversed(context), reversed(binders), strict=True):
        of = Pi(local.uid, local.name, local.type, of, binder.implicit)
    return of


def check_statement(closed: Expr, constant_type: Callable[[str], Expr | None], budget: Budget, span: s.Span) -> None:
    """Have the kernel check that a closed statement is a proposition."""
    try:
        level = Kernel(constant_type, budget).check_type(closed)
    except KernelError as error:
        raise Unsupported(f"statement ({error})", span) from None
    if level != 0:
        raise Unsupported("a theorem whose type is no proposition", span)


def signature_type(text: str, budget: Budget) -> Expr:
    """Closed type of a lemma of the table, from its binders and type."""
    command, error = parse_command(tokenize(f"example {text} := sorry"))
    if error is not None or not isinstance(command, s.Theorem):
        raise LeanError(f"lemma table: cannot parse: {text}")
    elab = Elaborator(prelude.constant_type, set(), budget)
    context, of = elab_signature(elab, command.binders, command.type)
    closed = close_over(context, command.binders, of)
    check_statement(closed, prelude.constant_type, budget, command.span)
    return closed
