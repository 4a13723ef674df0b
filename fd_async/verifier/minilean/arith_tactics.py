"""Tactics that decide: omega, decide, rfl."""

from __future__ import annotations

from fd_async.verifier.minilean import arith
from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.errors import LeanError, OutOfSteps, Unsupported
from fd_async.verifier.minilean.expr import (
    Const,
    Decided,
    Expr,
    FVar,
    Pi,
    alpha_equal,
    app,
    free_vars,
    head_name,
    spine,
)
from fd_async.verifier.minilean.goal_tactics import need_no_term
from fd_async.verifier.minilean.hypothesis_tactics import HypothesisTactics
from fd_async.verifier.minilean.reduce import value_of

NO_CONSTRAINTS = (
    "No usable constraints found. You may need to unfold definitions so `omega` can see linear arithmetic facts about "
    "`Nat` and `Int`, which may also involve multiplication, division, and modular remainder by constants."
)


class ArithmeticTactics(HypothesisTactics):
    """Part of the engine."""

    def do_omega(self, term: s.Term | None) -> None:
        """`omega`: the goal closed over the whole context, given to the decision procedure."""
        need_no_term("omega", term)
        _, goal = self.main()
        if self.meta.holes(goal.type) or any(self.meta.holes(local.type) for local in goal.context):
            raise Unsupported("`omega` before everything in the goal is known")
        if not self.meta.is_prop(goal.type):
            raise Unsupported("`omega` for a goal that is no proposition")
        prop: Expr = goal.type
        used = []
        for local in reversed(goal.context):
            if local.uid in free_vars(prop) or self.meta.is_prop(local.type):
                prop = Pi(local.uid, local.name, local.type, prop)
                used.append(local)
        if not arith.omega_valid(prop, self.elab.budget):
            raise self._omega_failure(prop)
        self.close(app(Decided("omega", prop), *[FVar(local.uid) for local in reversed(used)]))

    def _omega_failure(self, prop: Expr) -> LeanError:
        """Lean's message when it must fail too; otherwise the goal may be true, or provable by more than we do."""
        if not arith.mentions_arithmetic(prop):
            return LeanError(f"omega could not prove the goal:\n{NO_CONSTRAINTS}")
        if not arith.has_counterexample(prop, self.elab.budget):
            return Unsupported("`omega` for this goal")
        shown = self.text(self.goals[0], tag=False)
        return LeanError(
            f"omega could not prove the goal:\na possible counterexample may satisfy the constraints\n{shown}"
        )

    def do_decide(self, term: s.Term | None) -> None:
        """`decide`: evaluate a closed proposition about numerals."""
        need_no_term("decide", term)
        _, goal = self.main()
        shown = self.elab.show(goal.type)
        if free_vars(goal.type) or self.meta.holes(goal.type):
            raise LeanError(
                f"Tactic `decide` failed: expected type must not contain free variables\n  {shown}\n\n"
                "Hint: Use the `+revert` option to automatically revert free variables"
            )
        truth = arith.evaluate(goal.type)
        if truth is None:
            raise Unsupported("`decide` for this proposition")
        if not truth:
            raise LeanError(f"Tactic `decide` proved that the proposition\n  {shown}\nis false")
        self.close(Decided("decide", goal.type))

    def do_rfl(self, term: s.Term | None) -> None:
        """`rfl`, for `=` and `↔`."""
        need_no_term("rfl", term)
        _, goal = self.main()
        of = self.meta.whnf(goal.type, reducible_only=True)
        _, args = spine(of)
        if self.meta.holes(of):
            raise Unsupported("`rfl` before everything in the goal is known")
        if head_name(of) == "Eq":
            if self.meta.unify(args[1], args[2]):
                self.close(app("Eq.refl", args[0], args[1]))
                return
            if not self._surely_different(args[1], args[2]):
                raise Unsupported("`rfl` for these terms")
            raise LeanError(
                "Tactic `rfl` failed: The left-hand side\n  "
                f"{self.elab.show(args[1])}\nis not definitionally equal to the right-hand side\n  "
                f"{self.elab.show(args[2])}\n\n{self.text(self.goals[0])}"
            )
        if head_name(of) == "Iff":
            if alpha_equal(self.meta.instantiate(args[0]), self.meta.instantiate(args[1])):
                self.close(app("Iff.refl", args[0]))
                return
            raise Unsupported("`rfl` for these propositions")
        if head_name(of) in ("LE.Nat", "LE.Int"):
            raise Unsupported("`rfl` for `≤`")
        raise self.failed("rfl", "Expected the goal to be a binary relation")

    def _surely_different(self, left: Expr, right: Expr) -> bool:
        """Whether Lean's `rfl` certainly fails as well: two different numbers or two different variables."""
        a, b = value_of(left), value_of(right)
        both_variables = isinstance(left, FVar) and isinstance(right, FVar)
        return (a is not None and b is not None and a != b) or both_variables

    def do_trivial(self, term: s.Term | None) -> None:
        """`trivial`: assumption, rfl, contradiction, decide, True.intro, or both halves of a conjunction."""
        need_no_term("trivial", term)
        self.main()
        unsure = False
        for name in ("assumption", "rfl", "contradiction", "decide"):
            saved = self.snapshot()
            try:
                getattr(self, f"do_{name}")(None)
                return
            except OutOfSteps:
                raise
            except LeanError as error:
                self.restore(saved)
                unsure = unsure or isinstance(error, Unsupported)
        of = self.meta.whnf(self.main()[1].type, reducible_only=True)
        if of == Const("True"):
            self.close(Const("True.intro"))
        elif head_name(of) == "And":
            self.apply_term(Const("And.intro"), "trivial", "And.intro")
            rest = self.goals[2:]
            for uid in self.goals[:2]:
                self.goals = [uid]
                self.do_trivial(None)
            self.goals = rest
        else:
            raise Unsupported("`trivial` for this goal") if unsure else self.failed("trivial")
