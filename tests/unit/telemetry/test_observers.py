"""Observers: one that fails is left out with a warning, and ends nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from structlog.testing import capture_logs

from fd_async.telemetry.observers import Observer, Observers


class Broken(Observer):
    """Fails whatever it is told."""

    def _fail(self, *_: Any) -> None:
        raise OSError("disk full")

    moved = event = row = snapshot = _fail  # type: ignore[assignment]


class Counting(Observer):
    def __init__(self) -> None:
        self.heard = 0

    def _count(self, *_: Any) -> None:
        self.heard += 1

    moved = event = row = snapshot = _count  # type: ignore[assignment]


@pytest.mark.parametrize(
    "tell",
    [
        lambda all_: all_.moved("learner", "", "stepping"),
        lambda all_: all_.event("engine_restarted"),
        lambda all_: all_.row({"loss": 1.0}),
        lambda all_: all_.snapshot({"phase": "training"}),
    ],
    ids=["moved", "event", "row", "snapshot"],
)
def test_an_observer_that_fails_is_told_nothing_more_and_costs_the_others_nothing(
    tell: Callable[[Observers], None],
) -> None:
    """A run of days must not end, nor warn every second, because a graph cannot be drawn."""
    before, after = Counting(), Counting()
    observers = Observers([before, Broken(), after])
    with capture_logs() as logs:
        tell(observers)
        tell(observers)
    assert (before.heard, after.heard) == (2, 2)
    assert [(line["event"], line["observer"]) for line in logs] == [("observer_left_out", "Broken")]
    assert "disk full" in logs[0]["error"]
