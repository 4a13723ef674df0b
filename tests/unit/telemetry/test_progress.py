"""What a person sees."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from fd_async.telemetry.live import LiveProgress, draw
from fd_async.telemetry.progress import (
    LineProgress,
    QuietProgress,
    duration,
    flow_line,
    heartbeat_line,
    make_progress,
    percent,
    short,
    step_line,
)

SNAPSHOT = {
    "step": 12,
    "max_steps": 400,
    "stages": {"generating": 96, "tools": 9, "feedback": 0, "ready": 40, "learning": 1, "pushing": 0},
    "ready": 40,
    "batch": 128,
    "pass_rate": 0.41,
    "staleness": 1.2,
    "tokens_per_s": 38_123.0,
    "loss": 1.834,
    "usd": 7.1,
    "eta_s": 111_600.0,
    "phase": "learning",
}
FLOW = "generating 96 > tools 9 > feedback 0 > ready 40/128 > learning 1"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_step_is_one_line_of_what_is_known() -> None:
    """Missing and null figures are left out."""
    row = {"step": 12, "loss": 1.834, "train/pass_rate": 0.41, "policy/entropy": None, "eval/tiny/pass@1": 0.25}
    assert step_line(row, SNAPSHOT) == (
        "step 12/400  loss 1.83  solved 41%  38k tok/s  $7.10  eta 1d7h  eval/tiny/pass@1 25%"
    )
    assert step_line({"step": 0}) == "step 0"
    assert step_line({"step": 3, "alarms/raised": 0}) == "step 3"
    assert step_line({"step": 3, "alarms/raised": 2, "alarms/rollback_to": 1}) == "step 3  ALARMS 2  rolled back to 1"


def test_a_heartbeat_shows_the_flow_when_no_line_came_for_a_while() -> None:
    """A slow step and a hung one look different."""
    stream = io.StringIO()
    progress = LineProgress(stream, heartbeat_s=0.0)
    progress.update(SNAPSHOT)
    progress.close()
    assert FLOW in stream.getvalue()
    assert heartbeat_line({}) == "starting"


def test_the_flow_ends_with_the_queue_when_no_stage_is_named_ready() -> None:
    """And it is empty when nothing is known."""
    assert flow_line({"stages": {"generating": 2}, "ready": 1, "batch": 8}) == "generating 2 > ready 1/8"
    assert flow_line({"stages": {"generating": 2}}) == "generating 2"
    assert flow_line({}) == ""


def test_no_heartbeat_before_its_time() -> None:
    """Updates four times per second write nothing."""
    stream = io.StringIO()
    progress = LineProgress(stream, heartbeat_s=3600.0)
    for _ in range(100):
        progress.update(SNAPSHOT)
    progress.message("loading the model (about 40 s)")
    progress.step({"step": 12})
    progress.close()
    assert stream.getvalue().splitlines() == [
        "loading the model (about 40 s)",
        "step 12/400  38k tok/s  $7.10  eta 1d7h",
    ]


def test_a_terminal_that_does_not_take_text_never_blocks_the_caller() -> None:
    """Only the writing thread waits."""
    free = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            free.wait(10)
            return super().write(text)

    stream = Stuck()
    progress = LineProgress(stream)
    for step in range(1000):
        progress.step({"step": step})
    assert stream.getvalue() == ""
    free.set()
    progress.close()
    assert stream.getvalue().count("\n") == 1000


def test_a_closed_pipe_silences_the_view_and_nothing_else() -> None:
    """`fd-run | head` does not end the run."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    progress = LineProgress(Broken())
    progress.message("one")
    progress.step({"step": 1})
    progress.close()


def test_auto_is_live_on_a_terminal_and_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dumb terminal gets lines too."""
    monkeypatch.setenv("TERM", "xterm-256color")
    live = make_progress("auto", "demo", Terminal())
    assert isinstance(live, LiveProgress)
    live.close()
    assert isinstance(make_progress("auto", stream=io.StringIO()), LineProgress)
    assert isinstance(make_progress("quiet", stream=Terminal()), QuietProgress)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_progress("auto", stream=Terminal()), LineProgress)


def test_the_live_view_draws_stages_figures_and_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of the snapshot is on the panel, messages and steps stand above it."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    progress = LiveProgress("demo", stream)
    progress.message("[not markup] loading")
    progress.update(SNAPSHOT)
    progress.step({"step": 12, "loss": 1.834})
    progress.close()
    progress.close()
    text = stream.getvalue()
    assert "[not markup] loading" in text
    assert "step 12/400  loss 1.83" in text
    console = Console(file=io.StringIO(), width=100)
    console.print(draw(SNAPSHOT, "demo", 70.0, 3.0))
    panel = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("step 12/400", "generating 96", "ready 40/128", "solved 41%", "spent $7.10", "eta 1d7h", "learning"):
        assert part in panel


def test_the_live_view_draws_an_empty_snapshot() -> None:
    """Before the first update nothing is known."""
    console = Console(file=io.StringIO(), width=80)
    console.print(draw({}, "", 0.0, 0.0))
    assert "starting" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4s"), (45, "45s"), (99.6, "100s"), (720, "12m"), (12_000, "3h20m"), (187_200, "2d4h"), (3599, "1h00m")],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    """Two units at most."""
    assert duration(seconds) == text


def test_numbers_are_short() -> None:
    """Shares below 10 % keep a digit."""
    assert [short(x) for x in (950, 1500, 38_123, 1_250_000)] == ["950", "1.5k", "38k", "1.2M"]
    assert [percent(x) for x in (0.004, 0.41, 1.0)] == ["0.4%", "41%", "100%"]
