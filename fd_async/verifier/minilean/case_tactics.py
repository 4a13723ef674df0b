"""Tactics that take a hypothesis apart: cases, rcases, obtain, rintro, by_cases, subst."""

from __future__ import annotations

from fd_async.verifier.minilean import prelude
from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.errors import LeanError, Unsupported
from fd_async.verifier.minilean.expr import (
    INT,
    NAT,
    App,
    Const,
    Expr,
    FVar,
    Lam,
    Pi,
    app,
    free_vars,
    head_name,
    occurs,
    spine,
    substitute,
)
from fd_async.verifier.minilean.goal_tactics import GoalTactics
from fd_async.verifier.minilean.goals import names_of
from fd_async.verifier.minilean.meta import Context, Local

CONSTRUCTORS: dict[str, list[tuple[str, list[str]]]] = {
    "And": [("intro", ["left", "right"])],
    "Iff": [("intro", ["mp", "mpr"])],
    "Exists": [("intro", ["w", "h"])],
    "Or": [("inl", ["h"]), ("inr", ["h"])],
    "True": [("intro", [])],
    "False": [],
}


class CaseTactics(GoalTactics):
    """Part of the engine."""

    def do_intro(self, term: s.Term | None) -> None:
        """`intro a b`, `intro ⟨a, b⟩` for one pattern, or `intro` for an unnamed one."""
        if isinstance(term, s.Anonymous):
            self.rintro([as_pattern(term)])
            return
        names = names_of(term)
        if names is None:
            raise Unsupported("`intro` with this pattern", term.span if term else None)
        for name, _ in names or [("_", (0, 0))]:
            self.intro_one(name)

    def do_intros(self, term: s.Term | None) -> None:
        """`intros` takes every visible binder, without names."""
        names = names_of(term)
        if names is None:
            raise Unsupported("`intros` with this pattern", term.span if term else None)
        for name, _ in names:
            self.intro_one(name)
        if not names:
            self.main()
            while isinstance(self.meta.whnf_core(self.main()[1].type), Pi):
                self.intro_one("_")

    def major(self, value: Expr) -> tuple[str, list[Expr]]:
        """Connective and parameters of the type of a term that is taken apart."""
        of = self.meta.whnf(self.meta.instantiate(self.meta.infer(value)))
        name = head_name(of)
        if name in ("LE.Nat", "LE.Int", "Eq"):
            raise Unsupported("taking apart a fact of this type")
        if of in (NAT, INT):
            raise Unsupported("case distinction on a number")
        if name not in CONSTRUCTORS:
            raise self.failed("cases", "major premise type is not an inductive type\n  " + self.elab.show(of))
        params = spine(of)[1]
        if self.meta.holes(of):
            raise Unsupported("taking apart something whose type is not known yet")
        return name, params

    def split(self, value: Expr, names: list[list[str]], *, tags: bool = True) -> list[tuple[int, list[Local]]]:
        """Replace the main goal by one goal per constructor; returns them with the new locals."""
        _, goal = self.main()
        name, params = self.major(value)
        context = goal.context
        if isinstance(value, FVar):
            context = self.without(context, value.uid, goal.type)
        result: list[tuple[int, list[Local]]] = []
        branches: list[Expr] = []
        constructors = CONSTRUCTORS[name]
        for index, (constructor, fields) in enumerate(constructors):
            given = names[index] if index < len(names) else []
            locals_ = self._field_locals(name, params, constructor, fields, given)
            tag = self._child_tag(goal.tag, constructor) if tags else goal.tag
            inner = self.new_goal((*context, *locals_), goal.type, tag)
            branch: Expr = inner
            for local in reversed(locals_):
                branch = Lam(local.uid, local.name, local.type, branch)
            branches.append(branch)
            result.append((inner.uid, locals_))
        self.close(self.elab.eliminate(name, params, goal.type, value, branches), [uid for uid, _ in result])
        return result

    def _field_locals(
        self, name: str, params: list[Expr], constructor: str, fields: list[str], given: list[str]
    ) -> list[Local]:
        if len(given) > len(fields):
            raise LeanError(
                f"Too many variable names provided at alternative `{constructor}`: {len(given)} provided, "
                f"but {len(fields)} expected"
            )
        named = [*given, *["_"] * (len(fields) - len(given))]
        if name == "Or":
            types = [params[0 if constructor == "inl" else 1]]
            return [self._field_local(named[0], fields[0], types[0])]
        if not fields:
            return []
        first_type, second_type = self.elab._field_types(name, params)
        first = self._field_local(named[0], fields[0], first_type)
        return [first, self._field_local(named[1], fields[1], second_type(FVar(first.uid)))]

    def _field_local(self, name: str, default: str, of: Expr) -> Local:
        if name == "_":
            return self.meta.new_local(default, of, accessible=False)
        return self.meta.new_local(name, of)

    def do_cases(self, term: s.Term | None) -> None:
        """`cases h` without names."""
        if term is None:
            raise LeanError("unexpected end of input; expected term")
        self.main()
        self.cases(term, None)

    def cases(self, term: s.Term, alternatives: list[s.Alternative] | None) -> None:
        """`cases e with | ctor names => tactics`."""
        self.main()
        value = self.elab.complete(term, None)
        if alternatives is None and self._is_equation(value):
            self._substitute(value)
            return
        name, _ = self.major(value)
        constructors = [constructor for constructor, _ in CONSTRUCTORS[name]]
        alternatives = alternatives or []
        by_name: dict[str, s.Alternative] = {}
        for alternative in alternatives:
            if alternative.explicit:
                raise Unsupported("`| @ctor`", alternative.span)
            if alternative.ctor not in constructors or alternative.ctor in by_name:
                raise LeanError(f"Invalid alternative name `{alternative.ctor}`", alternative.span)
            by_name[alternative.ctor] = alternative
        missing = [constructor for constructor in constructors if by_name and constructor not in by_name]
        if missing:
            raise LeanError(f"Alternative `{missing[0]}` has not been provided")
        names = [by_name[c].names if c in by_name else [] for c in constructors]
        before = self.goals[1:]
        goals = self.split(value, names)
        if not by_name:
            return
        for alternative in alternatives:
            uid = goals[constructors.index(alternative.ctor)][0]
            self.goals = [uid]
            self.run_to_end(alternative.block, alternative.span)
        self.goals = before

    # ---------------------------------------------------------------- patterns

    def rcases(self, tactic: s.Destruct) -> None:
        """`rcases e with p`, `obtain p := e`."""
        self.main()
        value = self.elab.complete(tactic.term, None)
        self.destructure_term(value, tactic.pattern)

    def destructure_term(self, value: Expr, pattern: s.Pattern) -> None:
        """Take a term apart by a pattern; the main goal becomes one goal per alternative."""
        rest = self.goals[1:]
        self.goals = self.goals[:1]
        done: list[int] = []
        self._destructure([(value, pattern)], done)
        self.goals = [*done, *rest]

    def rintro(self, patterns: list[s.Pattern]) -> None:
        """`rintro p q`."""
        self.main()
        rest, current = self.goals[1:], self.goals[:1]
        for pattern in patterns:
            done: list[int] = []
            for uid in current:
                self.goals = [uid]
                if pattern.kind == "name":
                    self.intro_one(pattern.name)
                    done += self.goals
                else:
                    local = self.intro_one("_")
                    self._destructure([(FVar(local.uid), pattern)], done)
            current = done
        self.goals = [*current, *rest]

    def _destructure(self, work: list[tuple[Expr, s.Pattern]], done: list[int]) -> None:
        """Process (term, pattern) pairs on the main goal; finished goals go to `done`."""
        self.elab.budget.tick(5)
        if not work:
            done += self.goals
            return
        (value, pattern), *later = work
        if pattern.kind == "name":
            self._name_value(value, pattern.name)
            self._destructure(later, done)
        elif pattern.kind == "rfl":
            if not self._is_equation(value):
                raise LeanError("rcases: `rfl` pattern needs an equation", pattern.span)
            self._substitute(value)
            self._destructure(later, done)
        else:
            self._split_pattern(value, pattern, later, done)

    def _split_pattern(
        self, value: Expr, pattern: s.Pattern, later: list[tuple[Expr, s.Pattern]], done: list[int]
    ) -> None:
        name, _ = self.major(value)
        if pattern.kind == "or":
            if name != "Or":
                raise Unsupported("alternatives in a pattern for something that is no `∨`", pattern.span)
            left, *others = pattern.parts
            right = others[0] if len(others) == 1 else s.Pattern(pattern.span, "or", parts=others)
            options: list[list[s.Pattern]] = [[left], [right]]
        else:
            options = [self._tuple_parts(name, pattern)]
        goals = self.split(value, [], tags=len(options) > 1)
        for (uid, locals_), parts in zip(goals, options, strict=True):
            self.goals = [uid]
            fields = [(FVar(local.uid), part) for local, part in zip(locals_, parts, strict=True)]
            self._destructure([*fields, *later], done)

    def _tuple_parts(self, name: str, pattern: s.Pattern) -> list[s.Pattern]:
        parts = list(pattern.parts)
        if name not in ("And", "Iff", "Exists") or len(parts) < 2:
            raise Unsupported("this pattern for this type", pattern.span)
        if len(parts) > 2:
            parts = [parts[0], s.Pattern(pattern.span, "tuple", parts=parts[1:])]
        return parts

    def _name_value(self, value: Expr, name: str) -> None:
        """Give a name to a term: rename a local, or add a hypothesis."""
        _, goal = self.main()
        if isinstance(value, FVar) and any(local.uid == value.uid for local in goal.context):
            context: Context = tuple(
                Local(local.uid, name if name != "_" else local.name, local.type, name != "_")
                if local.uid == value.uid
                else local
                for local in goal.context
            )
            moved = [local for local in context if local.uid == value.uid]
            dependent = any(occurs(value.uid, local.type) for local in context)
            if not dependent:
                context = (*[local for local in context if local.uid != value.uid], *moved)
            inner = self.new_goal(context, goal.type, goal.tag)
            self.close(inner, [inner.uid])
            return
        of = self.meta.instantiate(self.meta.infer(value))
        if not self.meta.is_prop(of):
            raise Unsupported("naming a value that is no proof")
        self.introduce(self.meta.new_local(name, of), goal.type, value)

    # ---------------------------------------------------------------- equations and decisions

    def _is_equation(self, value: Expr) -> bool:
        return head_name(self.meta.whnf_core(self.meta.instantiate(self.meta.infer(value)))) == "Eq"

    def do_subst(self, term: s.Term | None) -> None:
        """`subst h`, for an equation with a variable on one side."""
        if not isinstance(term, s.Ident) or "." in term.name:
            raise Unsupported("`subst` with this argument", term.span if term else None)
        local = self.find(term.name, term.span)
        if not self._is_equation(FVar(local.uid)):
            raise Unsupported("`subst` with something that is no equation", term.span)
        self._substitute(FVar(local.uid))

    def _substitute(self, value: Expr) -> None:
        """Replace the variable of an equation `x = e` or `e = x` everywhere; the right side is tried first."""
        of, left, right = spine(self.meta.whnf_core(self.meta.instantiate(self.meta.infer(value))))[1]
        if not isinstance(value, FVar):
            raise Unsupported("substituting with a term that is no hypothesis")
        for variable, other, forward in ((right, left, True), (left, right, False)):
            if isinstance(variable, FVar) and not occurs(variable.uid, other):
                self._replace(value, of, variable, other, forward)
                return
        raise Unsupported("an equation without a variable on one side")

    def _replace(self, equation: FVar, of: Expr, variable: FVar, other: Expr, forward: bool) -> None:
        """Prove the goal from the goal with `variable` replaced by `other`, hypotheses included."""
        _, goal = self.main()
        rest = [local for local in goal.context if local.uid != equation.uid]
        if any(occurs(equation.uid, local.type) for local in rest) or occurs(equation.uid, goal.type):
            raise Unsupported("an equation that others depend on")
        dependents = [local for local in rest if occurs(variable.uid, local.type)]
        kept = [local for local in rest if local.uid != variable.uid and local not in dependents]
        known = {local.uid for local in kept}
        if not free_vars(other) <= known or not all(self.meta.is_prop(local.type) for local in dependents):
            raise Unsupported("this substitution")
        statement: Expr = goal.type
        for local in reversed(dependents):
            statement = Pi(local.uid, local.name, local.type, statement)
        motive_local = self.meta.new_local("x", of)
        motive = Lam(motive_local.uid, "x", of, substitute(statement, variable.uid, FVar(motive_local.uid)))
        fresh = [
            self.meta.new_local(d.name, substitute(d.type, variable.uid, other), accessible=d.accessible)
            for d in dependents
        ]
        inner = self.new_goal((*kept, *fresh), substitute(goal.type, variable.uid, other), goal.tag)
        proof: Expr = inner
        for local in reversed(fresh):
            proof = Lam(local.uid, local.name, local.type, proof)
        equality: Expr = equation if forward else app("Eq.symm", of, variable, other, equation)
        value = app("#Eq.subst", of, other, variable, motive, equality, proof)
        self.close(app(value, *[FVar(local.uid) for local in dependents]), [inner.uid])

    def by_cases(self, tactic: s.Typed) -> None:
        """`by_cases h : p`, by excluded middle."""
        _, goal = self.main()
        prop = self.elab.complete(tactic.term, None)
        if not self.meta.is_prop(self.meta.instantiate(prop)):
            raise Unsupported("`by_cases` on something that is no proposition", tactic.term.span)
        branches: list[Expr] = []
        goals: list[int] = []
        for of, tag in ((prop, "pos"), (app("Not", prop), "neg")):
            local = (
                self.meta.new_local(tactic.var, of) if tactic.var else self.meta.new_local("h", of, accessible=False)
            )
            inner = self.new_goal((*goal.context, local), goal.type, self._child_tag(goal.tag, tag))
            branches.append(Lam(local.uid, local.name, of, inner))
            goals.append(inner.uid)
        choice = App(Const("Classical.em"), prop)
        self.close(app("Or.elim", prop, app("Not", prop), goal.type, choice, *branches), goals)


def as_pattern(term: s.Term) -> s.Pattern:
    match term:
        case s.Anonymous(span=span, args=args):
            return s.Pattern(span, "tuple", parts=[as_pattern(arg) for arg in args])
        case s.Ident(span=span, name=name, explicit=False) if "." not in name and not prelude.is_nameable(name):
            return s.Pattern(span, "name", name)
        case s.Hole(span=span, synthetic=False):
            return s.Pattern(span, "name", "_")
    raise Unsupported("this pattern", term.span)
