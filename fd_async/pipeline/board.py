"""Who is where since when: the stage counts of the live view and the wait table of a stall."""

from __future__ import annotations

import time

from msgspec import Struct

from fd_async.telemetry.observers import Observers

STAGES = {
    "generating": "vLLM",
    "tools": "the verifier",
    "audit": "the cold audit of accepted proofs",
    "feedback": "the feedback provider",
    "waiting": "finished attempts to fill the learner's batch",
    "learning": "the learner's gradient step",
    "pushing": "the engine to take new weights",
    "evaluating": "evaluation rollouts",
    "checkpoint": "the checkpoint on disk",
    "rollback": "the learner to take an earlier checkpoint",
}
"""Stage -> what an item in it waits for."""


class Wait(Struct, frozen=True):
    """One row of the wait table."""

    stage: str
    count: int
    oldest: str
    seconds: float
    waits_for: str


class Board:
    """Current stage of every item, and the time of the last progress (any move, any finished item)."""

    def __init__(self, observers: Observers | None = None) -> None:
        self._observers = observers or Observers()
        self._stages: dict[str, dict[str, float]] = {stage: {} for stage in STAGES}
        self._where: dict[str, str] = {}
        self.last_progress = time.monotonic()

    def move(self, item: str, stage: str) -> None:
        """Put `item` into `stage`; an empty stage takes it off the board."""
        self.last_progress = now = time.monotonic()
        before = self._where.pop(item, "")
        if before:
            del self._stages[before][item]
        if stage:
            self._where[item] = stage
            self._stages[stage][item] = now
        if before != stage:
            self._observers.moved(item, before, stage)

    def progress(self) -> None:
        """Note progress that is no move."""
        self.last_progress = time.monotonic()

    def counts(self) -> dict[str, int]:
        return {stage: len(items) for stage, items in self._stages.items()}

    def waits(self) -> list[Wait]:
        """Return the oldest item of every occupied stage."""
        now = time.monotonic()
        rows = []
        for stage, items in self._stages.items():
            if items:
                oldest, since = min(items.items(), key=lambda pair: pair[1])
                rows.append(Wait(stage, len(items), oldest, round(now - since, 1), STAGES[stage]))
        return rows


def wait_table(waits: list[Wait]) -> str:
    """Format the wait table for people."""
    if not waits:
        return "nothing is in any stage: admission is full or every loop has ended"
    return "\n".join(
        f"  {row.stage:<11} {row.count:>5}  oldest {row.oldest} for {row.seconds:.0f} s, waits for {row.waits_for}"
        for row in waits
    )
