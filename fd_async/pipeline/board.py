"""Who is where since when: the stage counts of the live view, the wait table of a stall, the seconds of each side.

Read four times a second with thousands of items in it, so nothing here looks at more than one item per stage: items
stand in the order in which they came, the oldest first.
"""

from __future__ import annotations

import anyio
from msgspec import Struct

from fd_async.telemetry.accounts import ENGINE, LEARNER, TimeAccount
from fd_async.telemetry.observers import Observers


class Stage(Struct, frozen=True):
    """What an item in a stage waits for, and the config key of the deadline that bounds the wait."""

    waits_for: str
    deadline: str


STAGES = {
    "generating": Stage("vLLM", "policy.generate_timeout_s"),
    "tools": Stage("the verifier", "rollout.timeout_s"),
    "audit": Stage("the cold audit of accepted proofs", "verifier.audit_timeout_s"),
    "feedback": Stage("the feedback provider", "feedback.deadline_s"),
    "waiting": Stage("finished attempts to fill the learner's batch", "run.stall_abort_s"),
    "learning": Stage("the learner's gradient step", "learner.step_timeout_s"),
    "pushing": Stage("the engine to take new weights", "policy.push_timeout_s"),
    "evaluating": Stage("evaluation attempts", "rollout.timeout_s"),
    "checkpoint": Stage("the checkpoint on disk", "checkpoint.timeout_s"),
    "rollback": Stage("the learner to take an earlier checkpoint", "learner.start_timeout_s"),
    "restarting": Stage("the learner's ranks to come back", "learner.start_timeout_s"),
    "reviving": Stage("the engine to come back", "policy.start_timeout_s"),
}
ATTEMPT_STAGES = ("generating", "tools", "audit", "feedback")
"""Of one attempt, in the order of the flow; the other stages are the learner's."""


class Wait(Struct, frozen=True):
    """One row of the wait table: the oldest item of an occupied stage."""

    stage: str
    count: int
    oldest: str
    seconds: float
    waits_for: str
    deadline: str
    """Config key of what bounds the wait."""


class Board:
    """Current stage of every item, and the time of the last progress (any move, any finished item).

    Times are the event loop's, seconds.
    """

    def __init__(self, observers: Observers | None = None) -> None:
        self._observers = observers or Observers()
        self._stages: dict[str, dict[str, float]] = {stage: {} for stage in STAGES}
        self._where: dict[str, str] = {}
        self.last_progress = now = anyio.current_time()
        self.learner = TimeAccount(LEARNER, "other", now)
        self.engine = TimeAccount(ENGINE, "idle", now)

    def move(self, item: str, stage: str) -> None:
        """Put `item` into `stage`; an empty stage takes it off the board."""
        self.last_progress = now = anyio.current_time()
        before = self._where.pop(item, "")
        if before:
            del self._stages[before][item]
        if stage:
            self._where[item] = stage
            self._stages[stage][item] = now
        if before != stage:
            self._account(now)
            self._observers.moved(item, before, stage)

    def progress(self) -> None:
        """Note progress that is no move."""
        self.last_progress = anyio.current_time()

    def counts(self) -> dict[str, int]:
        return {stage: len(items) for stage, items in self._stages.items()}

    def waits(self) -> list[Wait]:
        """Return the oldest item of every occupied stage."""
        now = anyio.current_time()
        rows = []
        for stage, items in self._stages.items():
            if items:
                oldest, since = next(iter(items.items()))
                about = STAGES[stage]
                seconds = round(now - since, 1)
                rows.append(Wait(stage, len(items), oldest, seconds, about.waits_for, about.deadline))
        return rows

    def _account(self, now: float) -> None:
        """Say what learner and engine do from now on; of several stages of the learner the first of LEARNER counts."""
        occupied = next((state for state in LEARNER if self._stages.get(state)), "other")
        self.learner.enter(occupied, now)
        engine = "down" if self._stages["reviving"] else "generating" if self._stages["generating"] else "idle"
        self.engine.enter(engine, now)


def wait_table(waits: list[Wait]) -> str:
    """Format the wait table for people."""
    if not waits:
        return "nothing is in any stage: admission is full or every loop has ended"
    return "\n".join(
        f"  {row.stage:<11} {row.count:>5}  oldest {row.oldest} for {row.seconds:.0f} s, waits for {row.waits_for} "
        f"({row.deadline})"
        for row in waits
    )
