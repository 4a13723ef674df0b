"""Tactics on hypotheses and names: have, suffices, show, specialize, clear, revert, rename_i, sorry."""

from __future__ import annotations

from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.case_tactics import CaseTactics
from fd_async.verifier.minilean.errors import LeanError, Unsupported
from fd_async.verifier.minilean.expr import App, Const, Expr, FVar, Lam, Pi, SorryProof
from fd_async.verifier.minilean.goal_tactics import need_no_term
from fd_async.verifier.minilean.goals import names_of
from fd_async.verifier.minilean.meta import Local


class HypothesisTactics(CaseTactics):
    """Part of the engine."""

    def have(self, decl: s.HaveDecl) -> None:
        """`have h : T := e`."""
        self.main()
        if decl.binders:
            raise Unsupported("`have` with binders", decl.span)
        of = None if decl.type is None else self.elab.complete(decl.type, None)
        if of is not None:
            self._check_type(of, decl)
        value = self.elab.complete(decl.value, of)
        of = of if of is not None else self.meta.instantiate(self.meta.infer(value))
        if not self.meta.is_prop(of):
            raise Unsupported("`have` of a value that is no proof", decl.span)
        _, goal = self.main()
        name = "_" if decl.pattern is not None else decl.name
        local = self.meta.new_local(name, of)
        self.introduce(local, goal.type, value)
        if decl.pattern is not None:
            self.destructure_term(FVar(local.uid), decl.pattern)

    def _check_type(self, of: Expr, decl: s.HaveDecl) -> None:
        if not self.meta.is_prop(of):
            shown = self.elab.show(of)
            raise Unsupported(f"`have` of type {shown}, which is no proposition", decl.span)

    def suffices(self, tactic: s.SufficesTactic) -> None:
        """`suffices h : T from e`: the goal becomes T."""
        _, goal = self.main()
        of = self.elab.complete(tactic.type, None)
        if not self.meta.is_prop(of):
            raise Unsupported("`suffices` of something that is no proposition", tactic.span)
        local = self.meta.new_local(tactic.name, of)
        with self.elab.within(local):
            body = self.elab.complete(tactic.term, goal.type)
        inner = self.new_goal(goal.context, of, goal.tag)
        self.close(App(Lam(local.uid, local.name, of, body), inner), [inner.uid])

    def show_goal(self, of: s.Term) -> None:
        """`show T`: the goal, written as T."""
        _, goal = self.main()
        wanted = self.elab.complete(of, None)
        if not self.meta.unify(wanted, goal.type):
            raise LeanError(
                f"'show' tactic failed, pattern\n  {self.elab.show(wanted)}\nis not definitionally equal to target\n"
                f"  {self.elab.show(goal.type)}"
            )
        inner = self.new_goal(goal.context, wanted, goal.tag)
        self.close(inner, [inner.uid])

    def do_specialize(self, term: s.Term | None) -> None:
        """`specialize h a b`: replaces h."""
        head = term.fn if isinstance(term, s.Apply) else None
        if term is None or not isinstance(head, s.Ident) or "." in head.name:
            raise LeanError(
                "'specialize' requires a term of the form `h x_1 .. x_n` where `h` appears in the local context"
            )
        local = self.find(head.name, head.span)
        value = self.elab.complete(term, None)
        of = self.meta.instantiate(self.meta.infer(value))
        if not self.meta.is_prop(of):
            raise Unsupported("`specialize` of something that is no proof", term.span)
        _, goal = self.main()
        new = self.meta.new_local(local.name, of)
        context = (*self.without(goal.context, local.uid, goal.type), new)
        inner = self.new_goal(context, goal.type, goal.tag)
        self.close(App(Lam(new.uid, new.name, of, inner), value), [inner.uid])

    def _some_names(self, tactic: str, term: s.Term | None) -> list[tuple[str, s.Span]]:
        names = names_of(term)
        if not names:
            raise Unsupported(f"`{tactic}` with this argument", term.span if term else None)
        return names

    def do_clear(self, term: s.Term | None) -> None:
        """`clear h`."""
        for name, span in self._some_names("clear", term):
            local = self.find(name, span)
            _, goal = self.main()
            inner = self.new_goal(self.without(goal.context, local.uid, goal.type), goal.type, goal.tag)
            self.close(inner, [inner.uid])

    def do_revert(self, term: s.Term | None) -> None:
        """`revert h`, for a hypothesis on which nothing else depends."""
        for name, span in reversed(self._some_names("revert", term)):
            local = self.find(name, span)
            _, goal = self.main()
            rest = tuple(other for other in goal.context if other.uid != local.uid)
            self.without(goal.context, local.uid, Const("True"))
            inner = self.new_goal(rest, Pi(local.uid, local.name, local.type, goal.type), goal.tag)
            self.close(App(inner, FVar(local.uid)), [inner.uid])

    def do_rename_i(self, term: s.Term | None) -> None:
        """`rename_i a b`: names for the latest inaccessible hypotheses."""
        names = names_of(term)
        if not names:
            raise Unsupported("`rename_i` with this argument")
        uid, _ = self.main()
        self.goals[0] = self._renamed(uid, [name for name, _ in names], names[0][1])

    def _renamed(self, uid: int, names: list[str], span: s.Span) -> int:
        """The goal with its latest inaccessible locals renamed, the last name for the last local."""
        goal = self.meta.goals[uid]
        context, left, shadowed = list(goal.context), list(names), set()
        for index in range(len(context) - 1, -1, -1):
            local = context[index]
            hidden = not local.accessible or local.name in shadowed
            shadowed.add(local.name)
            if not hidden or not left:
                continue
            name = left.pop()
            if name != "_":
                context[index] = Local(local.uid, name, local.type)
        if left:
            raise LeanError("too many variable names provided", span)
        inner = self.new_goal(tuple(context), goal.type, goal.tag)
        self.meta.values[uid] = inner
        return inner.uid

    def do_skip(self, term: s.Term | None) -> None:
        """`skip`."""
        need_no_term("skip", term)

    def do_done(self, term: s.Term | None) -> None:
        """`done`."""
        need_no_term("done", term)
        self.prune()
        if self.goals:
            raise self.unsolved()

    def do_sorry(self, term: s.Term | None) -> None:
        """`sorry`: closes the goal and marks the theorem."""
        need_no_term("sorry", term)
        uid, goal = self.main()
        if not self.meta.is_prop(goal.type) or self.meta.holes(goal.type):
            raise Unsupported("`sorry` for something that is no known proposition")
        self.elab.sorries.append((self.sorry_span, self.text(uid)))
        self.close(SorryProof(goal.type))

    def do_admit(self, term: s.Term | None) -> None:
        """`admit`: `sorry` that the protocol does not list."""
        need_no_term("admit", term)
        _, goal = self.main()
        if not self.meta.is_prop(goal.type) or self.meta.holes(goal.type):
            raise Unsupported("`admit` for something that is no known proposition")
        self.close(SorryProof(goal.type))
