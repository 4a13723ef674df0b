"""The state that tactics act on: open goals, messages, backtracking."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from msgspec import Struct

from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.elaborator import Elaborator
from fd_async.verifier.minilean.errors import LeanError, OutOfSteps, Unsupported
from fd_async.verifier.minilean.expr import App, Expr, Lam, MVar, SorryProof, occurs
from fd_async.verifier.minilean.meta import Context, Goal, Local
from fd_async.verifier.minilean.printer import goal_text


class Message(Struct, frozen=True):
    """One diagnostic; `span` in the command's text."""

    severity: str
    span: s.Span
    data: str


class Snapshot(Struct):
    """What `try` and `first` restore."""

    goals: list[int]
    values: dict[int, Expr]
    messages: int
    sorries: int


class GoalState(ABC):
    """Goals are holes of the elaborator; the first one is the main goal."""

    def __init__(self, elab: Elaborator) -> None:
        self.elab = elab
        self.meta = elab.meta
        self.goals: list[int] = []
        self.messages: list[Message] = []
        self.opened: set[int] = set()
        """Locals that stand for the arguments of a type whose arity is counted."""
        self.sorry_span: s.Span = (0, 0)
        self.recover = True
        """False inside `try` and `first`: an error must escape instead of being logged."""

    def snapshot(self) -> Snapshot:
        """Remember the state."""
        return Snapshot(list(self.goals), dict(self.meta.values), len(self.messages), len(self.elab.sorries))

    def restore(self, saved: Snapshot) -> None:
        """Go back to a remembered state."""
        self.goals = list(saved.goals)
        self.meta.values = dict(saved.values)
        del self.messages[saved.messages :]
        del self.elab.sorries[saved.sorries :]

    def prune(self) -> None:
        """Drop goals that unification solved meanwhile."""
        self.goals = [goal for goal in self.goals if goal not in self.meta.values]

    def main(self) -> tuple[int, Goal]:
        """The main goal, with its type filled in; makes its context current."""
        self.prune()
        if not self.goals:
            raise LeanError("No goals to be solved")
        uid = self.goals[0]
        goal = self.meta.goals[uid]
        goal.type = self.meta.instantiate(goal.type)
        goal.context = self._instantiated(goal.context)
        self.elab.context = goal.context
        return uid, goal

    def _instantiated(self, context: Context) -> Context:
        result: list[Local] = []
        for local in context:
            of = self.meta.instantiate(local.type)
            if of is not local.type:
                local = Local(local.uid, local.name, of, local.accessible)
                self.meta.locals[local.uid] = local
            result.append(local)
        return tuple(result)

    def close(self, value: Expr, new_goals: list[int] | None = None) -> None:
        """Fill the main goal; `new_goals` take its place."""
        uid = self.goals.pop(0)
        self.meta.values[uid] = value
        self.goals[:0] = new_goals or []
        self.prune()

    def new_goal(self, context: Context, of: Expr, tag: str) -> MVar:
        """A goal that unification may not fill."""
        return self.meta.new_hole(context, of, assignable=False, tag=tag)

    def introduce(self, local: Local, body: Expr, value: Expr | None = None) -> None:
        """Replace the main goal `a → b` by `b` under `local`; with a value, prove `have local := value; b`."""
        _, goal = self.main()
        inner = self.new_goal((*goal.context, local), body, goal.tag)
        proof: Expr = Lam(local.uid, local.name, local.type, inner)
        if value is not None:
            proof = App(proof, value)
        self.close(proof, [inner.uid])

    def find(self, name: str, span: s.Span) -> Local:
        """The accessible hypothesis of that name."""
        for local in reversed(self.main()[1].context):
            if local.accessible and local.name == name:
                return local
        raise LeanError(f"Unknown identifier `{name}`", span)

    def without(self, context: Context, uid: int, target: Expr) -> Context:
        """Context without one local; refused when something depends on it."""
        rest = tuple(local for local in context if local.uid != uid)
        if occurs(uid, target) or any(occurs(uid, local.type) for local in rest):
            raise Unsupported("removing a hypothesis that others depend on")
        return rest

    def text(self, uid: int, *, tag: bool = True) -> str:
        """A goal as Lean prints it."""
        goal = self.meta.goals[uid]
        context = self._instantiated(goal.context)
        return goal_text(self.meta, context, self.meta.instantiate(goal.type), goal.tag if tag else "")

    def failed(self, tactic: str, reason: str = "") -> LeanError:
        """Lean's wording for a tactic that fails on the main goal."""
        detail = f": {reason}" if reason else ""
        return LeanError(f"Tactic `{tactic}` failed{detail}\n\n{self.text(self.goals[0])}")

    def log(self, error: LeanError, span: s.Span) -> None:
        """Record an error."""
        self.messages.append(Message("error", error.span or span, error.message))

    def unsolved(self) -> LeanError:
        """Lean's error for goals that are left."""
        return LeanError("unsolved goals\n" + "\n\n".join(self.text(goal) for goal in self.goals))

    def admit_all(self) -> None:
        """Give up the open goals after an error was logged."""
        for uid in self.goals:
            if uid not in self.meta.values:
                self.meta.values[uid] = SorryProof(self.meta.instantiate(self.meta.goals[uid].type))
        self.goals = []

    @abstractmethod
    def run(self, tactic: s.Tactic) -> None:
        """Run one tactic."""

    def run_to_end(self, block: s.Block, span: s.Span) -> None:
        """Run a block that must solve all current goals."""
        try:
            self.sequence(block)
            self.prune()
            if self.goals:
                raise at(self.unsolved(), span)
        except OutOfSteps:
            raise
        except LeanError as error:
            if not self.recover:
                raise
            self.log(error, span)
            self.admit_all()

    def sequence(self, block: s.Block) -> None:
        """Run tactics in order."""
        for tactic in block.tactics:
            self.run(tactic)


def at(error: LeanError, span: s.Span) -> LeanError:
    """The error with a position, unless it has one."""
    error.span = error.span or span
    return error


def names_of(term: s.Term | None) -> list[tuple[str, s.Span]] | None:
    """`a b _` given as an application: the names, or None when it is something else."""
    if term is None:
        return []
    parts: list[Any] = [term.fn, *term.args] if isinstance(term, s.Apply) else [term]
    names: list[tuple[str, s.Span]] = []
    for part in parts:
        if isinstance(part, s.Hole) and not part.synthetic:
            names.append(("_", part.span))
        elif isinstance(part, s.Ident) and not part.explicit and "." not in part.name:
            names.append((part.name, part.span))
        else:
            return None
    return names
