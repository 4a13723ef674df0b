"""Failures of a check, all of them refusals; none says that a proof is right."""

from __future__ import annotations

UNSUPPORTED = "minilean: unsupported: "
TIMEOUT = (
    "(deterministic) timeout at `whnf`, maximum number of heartbeats (200000) has been reached\n\n"
    "Note: Use `set_option maxHeartbeats <num>` to set the limit."
)
RECURSION = (
    "maximum recursion depth has been reached\nuse `set_option maxRecDepth <num>` to increase limit\n"
    "use `set_option diagnostics true` to get diagnostic information"
)
MAX_STEPS = 200_000


class LeanError(Exception):
    """What Lean would report as an error; `span` is (start, end) in the command's text, None takes the tactic's."""

    def __init__(self, message: str, span: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.span = span


class Unsupported(LeanError):
    """Outside the fragment: refused without a judgement."""

    def __init__(self, what: str, span: tuple[int, int] | None = None) -> None:
        super().__init__(UNSUPPORTED + what, span)


class OutOfSteps(LeanError):
    """The budget of the command is spent; no tactic may catch this."""

    def __init__(self, message: str = TIMEOUT) -> None:
        super().__init__(message)


class Budget:
    """Step counter of one command; every loop and recursion of the checker ticks it."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.left = steps

    def tick(self, cost: int = 1) -> None:
        """Count `cost` steps and raise when none are left."""
        self.left -= cost
        if self.left < 0:
            raise OutOfSteps
