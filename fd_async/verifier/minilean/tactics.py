"""Run tactic blocks: sequencing, focusing, error recovery. The tactics themselves are in the classes it is made of."""

from __future__ import annotations

from fd_async.verifier.minilean import known
from fd_async.verifier.minilean import syntax as s
from fd_async.verifier.minilean.arith_tactics import ArithmeticTactics
from fd_async.verifier.minilean.errors import RECURSION, LeanError, OutOfSteps, Unsupported
from fd_async.verifier.minilean.goals import at

MAX_REPEATS = 100


class Tactics(ArithmeticTactics):
    """The tactic engine of one theorem."""

    def run_block(self, hole: int, by: s.By) -> None:
        """Solve a hole by a tactic block; errors are logged (or escape inside `try`)."""
        saved = (self.goals, self.elab.context, self.elab.new_goals)
        self.goals, self.elab.new_goals = [hole], None
        try:
            self.run_to_end(by.block, by.span)
        finally:
            self.goals, self.elab.context, self.elab.new_goals = saved

    def run(self, tactic: s.Tactic) -> None:
        """Run one tactic; errors get its position."""
        self.elab.budget.tick(5)
        try:
            with self.elab.deeper(tactic.span):
                self._dispatch_tactic(tactic)
        except LeanError as error:
            raise at(error, tactic.span) from None
        self.prune()

    def _dispatch_tactic(self, tactic: s.Tactic) -> None:
        match tactic:
            case s.Simple(name=name, term=term):
                handler = getattr(self, f"do_{name}", None)
                if handler is None or not name.isidentifier():
                    raise self._unknown(name, tactic.span)
                self.sorry_span = tactic.span
                handler(term)
            case s.Typed():
                self.by_cases(tactic)
            case s.HaveTactic():
                self.have(tactic.decl)
            case s.ShowTactic():
                self.show_goal(tactic.type)
            case s.SufficesTactic():
                self.suffices(tactic)
            case s.Cases():
                self.cases(tactic.term, tactic.alternatives)
            case s.Destruct():
                self.rcases(tactic)
            case s.Rintro():
                self.rintro(tactic.patterns)
            case s.Focus():
                self._focus(tactic)
            case s.Repeat():
                self._repeat(tactic)
            case s.First():
                self._first(tactic)
            case s.Then():
                self._then(tactic)

    def _unknown(self, name: str, span: s.Span) -> LeanError:
        if known.is_known_tactic(name):
            return Unsupported(f"tactic `{name}`", span)
        return LeanError("unknown tactic", (span[0], span[0] + len(name)))

    # ---------------------------------------------------------------- structure

    def _focus(self, tactic: s.Focus) -> None:
        if tactic.kind == "parens":
            self.sequence(tactic.block)
            return
        self.main()
        index = 0 if tactic.kind in ("cdot", "braces", "next") else self._tagged(tactic)
        goal = self.goals.pop(index)
        rest = self.goals
        if tactic.names:
            goal = self._renamed(goal, tactic.names, tactic.span)
        self.goals = [goal]
        try:
            self.run_to_end(tactic.block, tactic.span)
        finally:
            self.goals = rest
        self.prune()

    def _tagged(self, tactic: s.Focus) -> int:
        for exact in (True, False):
            for index, goal in enumerate(self.goals):
                tag = self.meta.goals[goal].tag
                if tag == tactic.tag if exact else tag.split(".")[-1] == tactic.tag:
                    return index
        tags = ", ".join(f"`{self.meta.goals[goal].tag}`" for goal in self.goals if self.meta.goals[goal].tag)
        note = f"The only available case tags are {tags}." if tags else "There are no cases to select."
        raise LeanError(f"Case tag `{tactic.tag}` not found.\n\nNote: {note}")

    def _repeat(self, tactic: s.Repeat) -> None:
        if tactic.kind == "try":
            self.attempt(tactic.block)
        elif tactic.kind == "repeat":
            for _ in range(MAX_REPEATS):
                self.prune()
                if not self.goals or not self._repeat_once(tactic.block):
                    return
            raise Unsupported(f"more than {MAX_REPEATS} rounds of `repeat`")
        else:
            self._on_all_goals(tactic)

    def _repeat_once(self, block: s.Block) -> bool:
        before = list(self.goals)
        done = self.attempt(block)
        if done and self.goals == before:
            raise OutOfSteps(RECURSION)  # Lean would go on for ever
        return done

    def attempt(self, block: s.Block) -> bool:
        """Run a block; undo everything when it fails."""
        saved, recover = self.snapshot(), self.recover
        self.recover = False
        try:
            self.sequence(block)
            return True
        except OutOfSteps:
            raise
        except Unsupported:
            raise  # Lean might succeed here and go another way
        except LeanError:
            self.restore(saved)
            return False
        finally:
            self.recover = recover

    def _on_all_goals(self, tactic: s.Repeat) -> None:
        self.prune()
        goals, after, succeeded = list(self.goals), [], False
        for goal in goals:
            if goal in self.meta.values:
                continue
            self.goals = [goal]
            if tactic.kind == "any_goals":
                succeeded = self.attempt(tactic.block) or succeeded
            else:
                self.sequence(tactic.block)
            self.prune()
            after += self.goals
        self.goals = after
        if tactic.kind == "any_goals" and not succeeded:
            raise LeanError("Tactic `any_goals` failed: No goals were solved by the tactic")

    def _first(self, tactic: s.First) -> None:
        saved, recover = self.snapshot(), self.recover
        for index, block in enumerate(tactic.blocks):
            last = index == len(tactic.blocks) - 1
            self.recover = False
            try:
                self.sequence(block)
                return
            except (OutOfSteps, Unsupported):
                raise
            except LeanError:
                if last:
                    raise
                self.restore(saved)
            finally:
                self.recover = recover

    def _then(self, tactic: s.Then) -> None:
        self.main()
        goal, *rest = self.goals
        self.goals = [goal]
        try:
            self.run(tactic.first)
            produced, after = list(self.goals), []
            for each in produced:
                if each in self.meta.values:
                    continue
                self.goals = [each]
                self.run(tactic.second)
                after += self.goals
        except LeanError:
            self.goals = [*self.goals, *rest]
            raise
        self.goals = [*after, *rest]
