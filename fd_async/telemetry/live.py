"""The live view on a terminal: a panel that redraws four times per second below the lines of finished steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fd_async.telemetry.progress import Writer, decimal, duration, flow, percent, short, step_line

REFRESH_HZ = 4
BAR_WIDTH = 24


class LiveProgress:
    """Draws in rich's own thread. While it is open, `sys.stdout` and `sys.stderr` write above the panel."""

    def __init__(self, run: str = "", stream: TextIO | None = None) -> None:
        self._run = run
        self._snapshot: Mapping[str, Any] = {}
        self._start = time.monotonic()
        self._phase_start = self._start
        self._console = Console(file=stream, force_terminal=True if stream is None else None)
        self._live = Live(console=self._console, refresh_per_second=REFRESH_HZ, get_renderable=self._draw)
        self._live.start()
        self._writer: _Above | None = _Above(self._console)

    def update(self, snapshot: Mapping[str, Any]) -> None:
        """Keep the state for the next redraw."""
        if snapshot.get("phase") != self._snapshot.get("phase"):
            self._phase_start = time.monotonic()
        self._snapshot = snapshot

    def step(self, row: Mapping[str, Any]) -> None:
        """Write the step's line above the panel."""
        self.message(step_line(row, self._snapshot))

    def message(self, text: str) -> None:
        """Write a line above the panel."""
        if self._writer is not None:
            self._writer.put(text)

    def close(self) -> None:
        """Draw once more and give the terminal back."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._live.stop()

    def _draw(self) -> RenderableType:
        now = time.monotonic()
        return draw(self._snapshot, self._run, now - self._start, now - self._phase_start)


class _Above(Writer):
    def __init__(self, console: Console) -> None:
        self._console = console
        super().__init__(console.file)  # type: ignore[arg-type]

    def write(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def draw(snapshot: Mapping[str, Any], run: str, elapsed_s: float, phase_s: float) -> RenderableType:
    """Return the panel for one snapshot."""
    step, last = snapshot.get("step"), snapshot.get("max_steps")
    phase = snapshot.get("phase") or "starting"
    head = Table.grid(padding=(0, 2))
    cells: list[RenderableType] = [Text(f"step {step if step is not None else '-'}/{last or '-'}", style="bold")]
    if last:
        cells.append(ProgressBar(total=last, completed=step or 0, width=BAR_WIDTH))
    cells.append(Text(f"{phase} {duration(phase_s)}", style="cyan"))
    cells.append(Text(f"elapsed {duration(elapsed_s)}", style="dim"))
    if snapshot.get("eta_s") is not None:
        cells.append(Text(f"eta {duration(snapshot['eta_s'])}", style="dim"))
    head.add_row(*cells)
    lines = [head, _flow(snapshot), _figures(snapshot)]
    title = Text(run or "fd_async", style="bold")
    return Panel(Group(*(line for line in lines if line is not None)), title=title, title_align="left")


def _flow(snapshot: Mapping[str, Any]) -> RenderableType | None:
    text = Text()
    for name, count in flow(snapshot):
        text.append(" › " if text else "", style="dim")
        text.append(f"{name} ", style="dim")
        text.append(count, style="dim" if count.split("/")[0] == "0" else "bold")
    return text or None


def _figures(snapshot: Mapping[str, Any]) -> RenderableType | None:
    shown = (
        ("solved", "pass_rate", percent),
        ("loss", "loss", decimal),
        ("staleness", "staleness", decimal),
        ("tokens/s", "tokens_per_s", short),
        ("spent", "usd", lambda usd: f"${usd:.2f}"),
    )
    text = Text()
    for label, key, show in shown:
        if snapshot.get(key) is not None:
            text.append(f"{label} ", style="dim")
            text.append(f"{show(snapshot[key])}  ", style="bold")
    return text or None
