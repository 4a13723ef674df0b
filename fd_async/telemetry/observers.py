"""Who listens to a run: traces, sinks, endpoints. None of them can slow it down or stop it.

An observer is called on the event loop and must return at once; what takes time it does in a thread of its own. One
that raises is left out from then on, with one line in the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import structlog

log = structlog.stdlib.get_logger(__name__)


class Observer:
    """Hears what happens; every method may be left as it is."""

    def moved(self, item: str, before: str, stage: str) -> None:
        """An item of the board went from one stage to another; either may be empty."""

    def event(self, kind: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Something happened at one moment, e.g. `engine_restarted`."""

    def row(self, row: Mapping[str, float | int | None]) -> None:
        """A row of metrics.jsonl is on the disk."""

    def snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """What status.json says, four times a second."""


class Observers:
    """All observers of a run, as one."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self._observers = list(observers)

    def moved(self, item: str, before: str, stage: str) -> None:
        """See `Observer.moved`."""
        for observer in self._observers:
            try:
                observer.moved(item, before, stage)
            except Exception as error:
                self._leave_out(observer, error)

    def event(self, kind: str, subject: str = "", **detail: Any) -> None:
        """See `Observer.event`."""
        for observer in self._observers:
            try:
                observer.event(kind, subject, detail)
            except Exception as error:
                self._leave_out(observer, error)

    def row(self, row: Mapping[str, float | int | None]) -> None:
        """See `Observer.row`."""
        for observer in self._observers:
            try:
                observer.row(row)
            except Exception as error:
                self._leave_out(observer, error)

    def snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """See `Observer.snapshot`."""
        for observer in self._observers:
            try:
                observer.snapshot(snapshot)
            except Exception as error:
                self._leave_out(observer, error)

    def _leave_out(self, observer: Observer, error: Exception) -> None:
        self._observers = [other for other in self._observers if other is not observer]
        log.warning("observer_left_out", observer=type(observer).__name__, error=repr(error))
