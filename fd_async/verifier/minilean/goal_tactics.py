"""Tactics that follow the shape of the goal: intro, exact, apply, constructor, have, assumption, ..."""

from __future__ import annotations

from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.errors import LeanError, Unsupported
from fd_async.verifier.minilean.expr import (
    FALSE,
    App,
    Const,
    Expr,
    FVar,
    MVar,
    Pi,
    app,
    head_name,
    is_app_of,
    spine,
    walk,
)
from fd_async.verifier.minilean.goals import GoalState
from fd_async.verifier.minilean.meta import Local

NO_BINDERS = "There are no additional binders or `let` bindings in the goal to introduce"


def need_no_term(name: str, term: s.Term | None) -> None:
    """Refuse an argument to a tactic that takes none."""
    if term is not None:
        raise LeanError("unexpected term; expected command", term.span)


class GoalTactics(GoalState):
    """Part of the engine: one `do_NAME` per tactic, given its argument."""

    def intro_one(self, name: str) -> Local:
        """Introduce one binder."""
        _, goal = self.main()
        of = self.meta.whnf_core(goal.type)
        if not isinstance(of, Pi):
            of = self.meta.whnf(of)
        if not isinstance(of, Pi):
            raise self.failed("introN", NO_BINDERS)
        if name == "_":
            local = self.meta.new_local(of.name if of.name.endswith("✝") else of.name + "✝", of.type, accessible=False)
        else:
            local = self.meta.new_local(name, of.type)
        self.introduce(local, self.meta.open(of, FVar(local.uid)))
        return local

    def do_exact(self, term: s.Term | None) -> None:
        """`exact e`."""
        if term is None:
            raise LeanError("unexpected end of input; expected term")
        _, goal = self.main()
        self.close(self.elab.complete(term, goal.type))

    def do_refine(self, term: s.Term | None) -> None:
        """`refine e`, whose `?_` become goals."""
        if term is None:
            raise LeanError("unexpected end of input; expected term")
        _, goal = self.main()
        saved, self.elab.new_goals = self.elab.new_goals, []
        try:
            value = self.elab.complete(term, goal.type)
            new_goals = self.elab.new_goals
        finally:
            self.elab.new_goals = saved
        for uid in new_goals:
            self.meta.goals[uid].tag = (
                goal.tag if len(new_goals) == 1 else self._child_tag(goal.tag, f"refine_{new_goals.index(uid) + 1}")
            )
        self.close(value, new_goals)

    def _child_tag(self, parent: str, name: str) -> str:
        name = name.rstrip("✝")
        return f"{parent}.{name}" if parent else name

    def do_apply(self, term: s.Term | None) -> None:
        """`apply e`: as many arguments become goals as make the result fit."""
        if term is None:
            raise LeanError("unexpected end of input; expected term")
        self.main()
        inner = term
        while isinstance(inner, s.Paren):
            inner = inner.term
        if isinstance(inner, s.Ident) and not inner.explicit:
            fn, fields = self.elab.resolve(inner)
            if not fields:
                self.apply_term(fn, "apply", self.elab.source(term.span))
                return
        saved, self.elab.new_goals = self.elab.new_goals, []
        try:
            fn = self.elab.complete(term, None, keep=True)
            if self.elab.new_goals:
                raise Unsupported("`?_` in `apply`", term.span)
        finally:
            self.elab.new_goals = saved
        self.apply_term(fn, "apply", self.elab.source(term.span))

    def apply_term(self, fn: Expr, tactic: str, shown: str) -> None:
        """Apply a term to new goals; see Lean's `MVarId.apply` for how many."""
        _, goal = self.main()
        of = self.meta.infer(fn)
        arity, flexible = self._arity(of)
        first = arity if flexible else max(0, arity - self._arity(goal.type)[0])
        for count in range(first, arity + 1):
            saved = dict(self.meta.values)
            holes, names, result = self._telescope(of, count)
            if self.meta.unify(result, goal.type):
                self._close_applied(fn, holes, names)
                return
            self.meta.values = saved
        of_shown = self.elab.show(self._telescope(of, first)[2])
        raise LeanError(
            f"Tactic `{tactic}` failed: could not unify the conclusion of `{shown}`\n  {of_shown}\nwith the goal\n"
            f"  {self.elab.show(goal.type)}\n\n{self.text(self.goals[0])}"
        )

    def _arity(self, of: Expr) -> tuple[int, bool]:
        count = 0
        while True:
            of = self.meta.whnf(of)
            if not isinstance(of, Pi):
                return count, isinstance(spine(of)[0], MVar) or self._ends_in_variable(of)
            local = self.meta.new_local(of.name, of.type, accessible=False)
            self.opened.add(local.uid)
            of = self.meta.open(of, FVar(local.uid))
            count += 1

    def _ends_in_variable(self, of: Expr) -> bool:
        """The result is one of the arguments (as in `False.elim : False → C`): it fits any goal."""
        head = spine(of)[0]
        return isinstance(head, FVar) and head.uid in self.opened

    def _telescope(self, of: Expr, count: int) -> tuple[list[MVar], list[str], Expr]:
        _, goal = self.main()
        holes: list[MVar] = []
        names: list[str] = []
        for _ in range(count):
            of = self.meta.whnf_core(of)
            if not isinstance(of, Pi):
                of = self.meta.whnf(of)
            if not isinstance(of, Pi):
                raise Unsupported("`apply` with this type")
            holes.append(self.meta.new_hole(goal.context, of.type))
            names.append(of.name)
            of = self.meta.open(of, holes[-1])
        return holes, names, of

    def _close_applied(self, fn: Expr, holes: list[MVar], names: list[str]) -> None:
        _, goal = self.main()
        open_holes = [(hole, name) for hole, name in zip(holes, names, strict=True) if hole.uid not in self.meta.values]
        types = [self.meta.instantiate(self.meta.goals[hole.uid].type) for hole, _ in open_holes]
        mentioned = {node.uid for of in types for node in walk(of) if isinstance(node, MVar)}
        ordered = [item for item in open_holes if item[0].uid not in mentioned]
        ordered += [item for item in open_holes if item[0].uid in mentioned]
        new = [hole.uid for hole, _ in ordered]
        others = [uid for uid in self.meta.holes(fn) if uid not in new]
        for hole, name in ordered:
            many = len(new) + len(others) > 1
            self.meta.goals[hole.uid].tag = self._child_tag(goal.tag, name) if many else goal.tag
        self.close(app(fn, *holes), [*new, *sorted(others)])

    def do_constructor(self, term: s.Term | None) -> None:
        """`constructor`: the first constructor of the goal's connective."""
        need_no_term("constructor", term)
        _, goal = self.main()
        name = head_name(self.meta.whnf(goal.type, reducible_only=True))
        table = {"And": "And.intro", "Iff": "Iff.intro", "True": "True.intro", "Or": "Or.inl", "Eq": "Eq.refl"}
        if name in ("Exists", "LE.Nat", "LT.Nat", "LE.Int", "LT.Int", "Nat", "Int"):
            raise Unsupported("`constructor` for this goal")
        if name == "False":
            raise self.failed("constructor", "no applicable constructors found")
        if name not in table:
            raise self.failed("constructor", "target is not an inductive datatype")
        self.apply_term(Const(table[name]), "constructor", table[name])

    def do_left(self, term: s.Term | None) -> None:
        """`left`."""
        self._side("left", "Or.inl", term)

    def do_right(self, term: s.Term | None) -> None:
        """`right`."""
        self._side("right", "Or.inr", term)

    def _side(self, name: str, constructor: str, term: s.Term | None) -> None:
        need_no_term(name, term)
        _, goal = self.main()
        if head_name(self.meta.whnf(goal.type, reducible_only=True)) != "Or":
            raise self.failed(name, "target is not an inductive datatype with two constructors")
        self.apply_term(Const(constructor), name, constructor)

    def do_exfalso(self, term: s.Term | None) -> None:
        """`exfalso`."""
        need_no_term("exfalso", term)
        _, goal = self.main()
        if not self.meta.is_prop(goal.type):
            raise Unsupported("`exfalso` for a goal that is no proposition")
        inner = self.new_goal(goal.context, FALSE, goal.tag)
        self.close(app("False.elim", goal.type, inner), [inner.uid])

    def do_assumption(self, term: s.Term | None) -> None:
        """`assumption`: the latest hypothesis that has the goal's type."""
        need_no_term("assumption", term)
        _, goal = self.main()
        found = self.matching(goal.type)
        if found is None:
            raise self.failed("assumption")
        self.close(FVar(found.uid))

    def matching(self, of: Expr) -> Local | None:
        """The latest hypothesis of a type. With open holes the choice could differ from Lean's: refused."""
        if self.meta.holes(of):
            raise Unsupported("searching hypotheses for a type that is not known yet")
        for local in reversed(self.main()[1].context):
            if not self.meta.holes(local.type) and self.meta.unify(of, local.type):
                return local
        return None

    def do_contradiction(self, term: s.Term | None) -> None:
        """`contradiction`: a hypothesis `False`, or `p` and `¬p`."""
        need_no_term("contradiction", term)
        _, goal = self.main()
        proof = self.refutation()
        if proof is None:
            if any(head_name(local.type) in ("Eq", "Ne", "LT.Nat", "LE.Nat", "Exists") for local in goal.context):
                raise Unsupported("`contradiction` from facts about numbers")
            raise self.failed("contradiction")
        self.close(app("False.elim", goal.type, proof))

    def refutation(self) -> Expr | None:
        """A proof of False from the hypotheses, by Lean's `contradiction` without its search in data."""
        _, goal = self.main()
        for local in goal.context:
            of = self.meta.whnf_core(local.type)
            if of == FALSE:
                return FVar(local.uid)
            denied = is_app_of(of, "Not", 1)
            unequal = is_app_of(of, "Ne", 3)
            if denied:
                proposition: Expr = denied[0]
            elif unequal:
                proposition = app("Eq", *unequal)
            else:
                continue
            if self.meta.holes(proposition):
                continue
            found = self.matching(proposition)
            if found is not None:
                return App(FVar(local.uid), FVar(found.uid))
        return None
