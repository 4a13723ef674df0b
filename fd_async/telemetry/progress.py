"""What a person sees while the run goes on: one line per step, and between steps who is busy.

Invariants:
    * Nothing here waits for the terminal: text goes to a thread that writes it.
    * A terminal that goes away (a closed pipe) silences the view; it never ends the run.
    * Any key of a snapshot or row may be missing or None; it is left out, never shown as 0.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Literal, Protocol, TextIO

HEARTBEAT_S = 30.0
CLOSE_S = 2.0


class Progress(Protocol):
    """Told by the controller what happens; every call returns at once."""

    def update(self, snapshot: Mapping[str, Any]) -> None:
        """Take the present state, a few times per second.

        Keys: `step`, `max_steps`, `stages` (name -> count, in the order of the flow), `ready`, `batch`, `pass_rate`,
        `staleness`, `tokens_per_s`, `loss`, `usd`, `eta_s`, `phase`.
        """
        ...

    def step(self, row: Mapping[str, Any]) -> None:
        """Show a finished step, given its row of metrics.jsonl."""
        ...

    def message(self, text: str) -> None:
        """Show a sentence, such as a start-up phase with its expected duration."""
        ...

    def close(self) -> None:
        """Write what is left and give the terminal back; a second call does nothing."""
        ...


class QuietProgress:
    """Shows nothing."""

    def update(self, snapshot: Mapping[str, Any]) -> None:
        """Do nothing."""

    def step(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def message(self, text: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class LineProgress:
    """Plain lines for files, pipes and CI: one per step, and a heartbeat when a step takes long."""

    def __init__(self, stream: TextIO | None = None, heartbeat_s: float = HEARTBEAT_S) -> None:
        self._writer = Writer(stream or sys.stdout)
        self._heartbeat_s = heartbeat_s
        self._snapshot: Mapping[str, Any] = {}
        self._last_line = time.monotonic()

    def update(self, snapshot: Mapping[str, Any]) -> None:
        """Keep the state; write the heartbeat when no line was written for `heartbeat_s`."""
        self._snapshot = snapshot
        if time.monotonic() - self._last_line >= self._heartbeat_s:
            self.message(heartbeat_line(snapshot))

    def step(self, row: Mapping[str, Any]) -> None:
        """Write the step's line."""
        self.message(step_line(row, self._snapshot))

    def message(self, text: str) -> None:
        """Write one line."""
        self._last_line = time.monotonic()
        self._writer.put(text)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class Writer:
    """A thread that writes lines; `put` never blocks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Queue one line."""
        self._lines.put(line)

    def close(self) -> None:
        """Write what is queued, waiting at most CLOSE_S seconds for a terminal that does not take it."""
        self._lines.put(None)
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        gone = False
        while (line := self._lines.get()) is not None:
            if gone:
                continue
            try:
                self.write(line)
            except (OSError, ValueError):  # the reader left, or the stream was closed
                gone = True

    def write(self, line: str) -> None:
        """Write one line to the stream, on the thread."""
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")
        self._stream.flush()


def make_progress(
    console: Literal["auto", "live", "lines", "quiet"], run: str = "", stream: TextIO | None = None
) -> Progress:
    """Choose the view of `telemetry.console`; `auto` is live on a terminal and lines elsewhere."""
    out: TextIO = stream or sys.stdout
    if console == "quiet":
        return QuietProgress()
    if is_live(console, out):
        from fd_async.telemetry.live import LiveProgress  # rich costs 60 ms, which only this view should pay

        return LiveProgress(run, out)
    return LineProgress(out)


def is_live(console: Literal["auto", "live", "lines", "quiet"], stream: TextIO | None = None) -> bool:
    """Say whether `make_progress` gives the live view, which owns the terminal."""
    return console == "live" or (console == "auto" and is_terminal(stream or sys.stdout))


def is_terminal(stream: TextIO) -> bool:
    """Say whether a live view works there."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def step_line(row: Mapping[str, Any], snapshot: Mapping[str, Any] | None = None) -> str:
    """Return e.g. `step 12/400  loss 1.83  solved 41%  entropy 0.62  stale 1.2 (max 3)  38k tok/s  $7.10  eta 31h`."""
    snapshot = snapshot or {}
    step, last = row.get("step"), snapshot.get("max_steps")
    parts = [f"step {step}/{last}" if last else f"step {step}"]
    parts += _parts(
        ("loss {}", row.get("loss"), decimal),
        ("solved {}", row.get("train/pass_rate"), percent),
        ("gain {}", row.get("teacher/feedback_gain"), decimal),
        ("entropy {}", row.get("policy/entropy"), decimal),
        ("ALARMS {}", row.get("alarms/raised") or None, str),
        ("rolled back to {}", row.get("alarms/rollback_to"), str),
        ("stale {}", row.get("staleness/mean"), lambda x: f"{x:.1f}"),
        ("{} tok/s", snapshot.get("tokens_per_s"), short),
        ("{}", row.get("time/step_s"), duration),
        ("waited {}", row.get("time/wait_for_batch_s"), duration),
        ("${}", snapshot.get("usd") or row.get("feedback/usd") or None, lambda x: f"{x:.2f}"),
        ("eta {}", snapshot.get("eta_s"), duration),
    )
    parts += [f"{key} {percent(value)}" for key, value in row.items() if "/pass@" in key and value is not None]
    return "  ".join(parts)


def flow_line(snapshot: Mapping[str, Any]) -> str:
    """Return e.g. `generating 96 > tools 9 > feedback 11 > ready 40/128 > learning 1`."""
    return " > ".join(f"{name} {count}" for name, count in flow(snapshot))


def flow(snapshot: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return stage and count in the order of the flow; stages after `ready` only while something is in them."""
    stages: dict[str, int] = dict(snapshot.get("stages") or {})
    names = list(stages)
    last = names.index("ready") if "ready" in stages else len(names)
    shown = [(name, str(stages[name])) for i, name in enumerate(names) if i <= last or stages[name]]
    batch = snapshot.get("batch")
    if not batch:
        return shown
    ready = ("ready", f"{snapshot.get('ready') or 0}/{batch}")
    return [ready if name == "ready" else (name, count) for name, count in shown] + [ready] * ("ready" not in stages)


def heartbeat_line(snapshot: Mapping[str, Any]) -> str:
    """Return the flow and the phase, for a step that takes long."""
    parts = _parts(
        ("step {}", snapshot.get("step"), str),
        ("{}", snapshot.get("phase") or None, str),
        ("{}", flow_line(snapshot) or None, str),
        ("{} tok/s", snapshot.get("tokens_per_s"), short),
    )
    return "  ".join(parts) or "starting"


def _parts(*items: tuple[str, Any, Any]) -> list[str]:
    return [text.format(show(value)) for text, value, show in items if value is not None]


def decimal(value: float) -> str:
    """Three significant digits, without an exponent where possible."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def percent(value: float) -> str:
    """A share as per cent."""
    return f"{100 * value:.1f}%" if value < 0.1 else f"{100 * value:.0f}%"


def short(value: float) -> str:
    """A large count: 38k, 1.2M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}{unit}" if value < 10 * limit else f"{value / limit:.0f}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """0.4s, 45s, 12m, 3h20m, 2d4h."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 100:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 24 else f"{hours // 24}d{hours % 24}h"
