"""trace.json: what every part of a run did when, for ui.perfetto.dev (Chrome's JSON array format).

    learner      waiting, learning, pushing, evaluating, checkpoint, ...
    engine       pushing, restarts
    attempts     one lane per attempt at the same time: the attempt, and inside it generating and tools
    audits, feedback   one lane per item at the same time
    run          counters and what happened at one moment

Invariants:
    * The event loop only appends to a queue; a thread formats and writes, four times a second. When it cannot keep up,
      what is queued is thrown away and the trace says so; the run never waits.
    * The file can be opened at any moment, also after SIGKILL: the format lets the last `]` be missing. What was under
      way at the end shows as a slice that did not end.
    * A slice that is open when a new part begins ends in the old part and begins again in the new one.

A process begins a new trace.json; the one before stays as trace.1.json. Times are Unix time, so that parts of one run
can be laid side by side.
"""

from __future__ import annotations

import heapq
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec
import structlog

from fd_async.telemetry.observers import Observer

log = structlog.stdlib.get_logger(__name__)

GROUPS = ("run", "learner", "engine", "attempts", "audits", "feedback")
"""Names of the groups of tracks, from the top."""

_TRACKS = {
    "generating": ("attempts",),
    "tools": ("attempts",),
    "audit": ("audits",),
    "feedback": ("feedback",),
    "pushing": ("learner", "engine"),
    "reviving": ("engine",),
}
"""Stage -> the groups that show it; all others are the learner's."""

_ABOUT = {"server": "engine", "provider": "feedback", "fallback": "feedback"}
"""First word of what happened -> the group that it is shown with, where that is no group itself."""

_NESTED = "attempts"
"""The group in which an item has a slice of its own around those of its stages."""

_COUNTERS = ("ready", "outstanding", "capacity", "tokens_per_s", "usd", "staleness", "loss", "lag_ms")
_GAUGES = ("running", "waiting", "kv_usage")
MAX_QUEUED = 200_000
WRITE_EVERY_S = 0.25
COUNT_EVERY_S = 1.0
CLOSE_S = 5.0


class Trace(Observer):
    """Writes the trace of one process. `close` writes what is queued.

    Args:
        path: of trace.json; its folder exists.
        max_bytes: size at which the file is renamed to trace.1.json and begun anew.
        clock: seconds; a simulation gives its own.
        epoch_s: what to add to the clock for Unix time; None takes the present time.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        epoch_s: float | None = None,
    ) -> None:
        self._clock = clock
        self._events: deque[tuple[float, str, Any, Any]] = deque()
        self._overflowed = False
        self._counted = float("-inf")
        self._writer = _Writer(path, max_bytes, time.time() - clock() if epoch_s is None else epoch_s)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trace", daemon=True)
        self._thread.start()

    def moved(self, item: str, before: str, stage: str) -> None:
        """End the slice of the stage before and begin the next one."""
        self._put("move", item, stage)

    def event(self, kind: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Mark a moment."""
        self._put("event", kind, {"subject": subject, **detail})

    def snapshot(self, snapshot: Mapping[str, Any]) -> None:
        """Draw the counters, once a second."""
        now = self._clock()
        if now - self._counted >= COUNT_EVERY_S:
            self._counted = now
            self._put("count", snapshot, None)

    def close(self) -> None:
        """Write what is queued and close the file; a disk that hangs is left behind after CLOSE_S seconds."""
        self._ended.set()
        self._thread.join(CLOSE_S)

    def _put(self, kind: str, subject: Any, value: Any) -> None:
        if len(self._events) >= MAX_QUEUED:
            self._overflowed = True
        else:
            self._events.append((self._clock(), kind, subject, value))

    def _run(self) -> None:
        try:
            self._writer.open()
            while not self._ended.wait(WRITE_EVERY_S):
                self._drain()
            self._drain()
            self._writer.close()
        except Exception as error:  # a thread has no caller to tell, and the run goes on without its trace
            log.warning("trace_ended", reason=str(error), hint="free space there, or set telemetry.trace = false")
            self._writer.abandon()
            while not self._ended.wait(1.0):
                self._events.clear()

    def _drain(self) -> None:
        if self._overflowed:
            self._events.clear()
            self._overflowed = False
            self._writer.forget(self._clock())
        for _ in range(len(self._events)):
            now, kind, subject, value = self._events.popleft()
            getattr(self._writer, kind)(now, subject, value)
        self._writer.flush(self._clock())


class _Writer:
    """Knows which slices are open, and on which lanes."""

    def __init__(self, path: Path, max_bytes: int, epoch_s: float) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._epoch_s = epoch_s
        self._file: FileIO | None = None
        self._lines: list[bytes] = []
        self._size = self._full = 0
        self._open: dict[str, tuple[str, list[tuple[str, int]]]] = {}
        """Item -> its stage, and the group and lane of each of its slices."""
        self._free: dict[str, list[int]] = {group: [] for group in GROUPS}
        self._num_lanes = dict.fromkeys(GROUPS, 0)
        self._counters: dict[str, object] = {}

    def open(self) -> None:
        """Begin a file; the one before stays as trace.1.json."""
        if self._path.exists():
            os.replace(self._path, self._path.with_suffix(".1.json"))
        self._file = self._path.open("wb", buffering=0)
        self._size = self._file.write(b"[")
        self._counters.clear()
        for index, group in enumerate(GROUPS):
            self._name("process_name", group, 0, group)
            self._add("M", "process_sort_index", group, 0, args={"sort_index": index})
            for lane in range(self._num_lanes[group]):
                self._name("thread_name", group, lane, f"{group} {lane + 1}")
        self._full = self._size + self._max_bytes

    def move(self, now: float, item: str, stage: str) -> None:
        """Show that an item is in another stage; an empty one ends it."""
        before, slices = self._open.pop(item, ("", []))
        groups = _TRACKS.get(stage, ("learner",)) if stage else ()
        if groups == (_NESTED,) and slices and slices[0][0] == _NESTED:
            if before != stage:
                self._end(now, *slices[0])
                self._begin(now, stage, *slices[0], item)
            self._open[item] = (stage, slices)
            return
        self._finish(now, slices)
        for group, lane in slices:
            heapq.heappush(self._free[group], lane)
        if groups:
            slices = [(group, self._lane(group)) for group in groups]
            self._open[item] = (stage, slices)
            self._start(now, item, stage, slices)

    def event(self, now: float, kind: str, detail: Mapping[str, Any]) -> None:
        """Mark a moment on the track of whom it is about, `run` where that is not known."""
        about = kind.replace("_", " ").split(" ")[0]
        self._add("i", kind, about if about in GROUPS else _ABOUT.get(about, "run"), 0, now, args=dict(detail))

    def count(self, now: float, snapshot: Mapping[str, Any], _: None) -> None:
        """Draw those counters that changed."""
        values = {name: snapshot.get(name) for name in _COUNTERS}
        engine = snapshot.get("engine") or {}
        values |= {f"engine {name}": engine.get(name) for name in _GAUGES}
        values |= {f"items {stage}": number for stage, number in (snapshot.get("stages") or {}).items()}
        for name, value in values.items():
            if value is not None and self._counters.get(name) != value:
                self._counters[name] = value
                self._add("C", name, "run", 0, now, args={"value": value})

    def forget(self, now: float) -> None:
        """End everything that is open: moves were lost. Items come back with their next move."""
        for _, slices in self._open.values():
            self._finish(now, slices)
        self._open.clear()
        for group in GROUPS:
            self._free[group] = list(range(self._num_lanes[group]))
        self.event(now, "trace_overflowed", {"lost": MAX_QUEUED})

    def flush(self, now: float) -> None:
        """Hand everything to the operating system, and begin anew when the file is large."""
        self._write(b"".join(self._lines))
        self._lines.clear()
        if self._size > self._full:
            for _, slices in self._open.values():
                self._finish(now, slices)
            self.close()
            self.open()
            for item, (stage, slices) in self._open.items():
                self._start(now, item, stage, slices)

    def close(self) -> None:
        """Close the array and the file."""
        self._write(b"".join([*self._lines, b"\n]\n"]))
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file and of what is not written."""
        self._lines.clear()
        if self._file is not None:
            self._file.close()

    def _write(self, data: bytes) -> None:
        """Write all of it or nothing, so that the file ends with a whole event."""
        if self._file is None:
            return
        end = self._file.tell()
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            self._file.truncate(end)
            raise

    def _start(self, now: float, item: str, stage: str, slices: list[tuple[str, int]]) -> None:
        for group, lane in slices:
            if group == _NESTED:
                self._begin(now, item, group, lane, item)
            self._begin(now, stage, group, lane, item)

    def _finish(self, now: float, slices: list[tuple[str, int]]) -> None:
        for group, lane in slices:
            self._end(now, group, lane)
            if group == _NESTED:
                self._end(now, group, lane)

    def _begin(self, now: float, name: str, group: str, lane: int, item: str) -> None:
        self._add("B", name, group, lane, now, args={"item": item})

    def _end(self, now: float, group: str, lane: int) -> None:
        self._add("E", "", group, lane, now)

    def _lane(self, group: str) -> int:
        """Return the lowest lane that is free."""
        if self._free[group]:
            return heapq.heappop(self._free[group])
        lane = self._num_lanes[group]
        self._num_lanes[group] += 1
        self._name("thread_name", group, lane, f"{group} {lane + 1}")
        return lane

    def _name(self, kind: str, group: str, lane: int, name: str) -> None:
        self._add("M", kind, group, lane, args={"name": name})

    def _add(
        self, kind: str, name: str, group: str, lane: int, now: float | None = None, args: dict[str, Any] | None = None
    ) -> None:
        event: dict[str, Any] = {"ph": kind, "pid": GROUPS.index(group) + 1, "tid": lane + 1}
        if name:
            event["name"] = name
        if now is not None:
            event["ts"] = round((now + self._epoch_s) * 1e6)
        if kind == "i":
            event["s"] = "t"
        if args:
            event["args"] = args
        line = (b"\n" if self._size == 1 else b",\n") + msgspec.json.encode(event, enc_hook=str)
        self._size += len(line)
        self._lines.append(line)
