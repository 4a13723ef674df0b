"""What ui.perfetto.dev is given."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fd_async.telemetry import trace as module
from fd_async.telemetry.trace import GROUPS, Trace


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def read(path: Path) -> list[dict]:
    """Parse a trace as Perfetto does: the closing bracket may be missing, and an event that a kill cut is left out."""
    text = path.read_text(encoding="utf-8").rstrip()
    try:
        return json.loads(text if text.endswith("]") else text + "]")
    except json.JSONDecodeError:
        return json.loads(text[: text.rindex(",\n")] + "]")


def tracks(events: list[dict]) -> dict[tuple[str, int], list[tuple[str, float, float | None]]]:
    """Return (group, lane) -> its slices as (name, begin, end), seconds; checks that they nest."""
    groups = {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}
    open_: dict[tuple[str, int], list[int]] = defaultdict(list)
    slices: dict[tuple[str, int], list[tuple[str, float, float | None]]] = defaultdict(list)
    for event in events:
        track = (groups[event["pid"]], event["tid"])
        if event["ph"] == "B":
            open_[track].append(len(slices[track]))
            slices[track].append((event["name"], event["ts"] / 1e6, None))
        elif event["ph"] == "E":
            index = open_[track].pop()
            slices[track][index] = (*slices[track][index][:2], event["ts"] / 1e6)
    return dict(slices)


def test_an_attempt_is_a_slice_with_its_stages_inside_and_feedback_has_lanes_of_its_own(tmp_path: Path) -> None:
    """Two attempts at once take two lanes; the third takes the lane that is free again."""
    clock = Clock()
    trace = Trace(tmp_path / "trace.json", 1 << 20, clock, epoch_s=0.0)
    moves = [
        (1, "a", "generating"), (1, "b", "generating"), (2, "a", "tools"), (3, "a", "generating"), (4, "a", ""),
        (5, "a", "feedback"), (6, "c", "generating"), (7, "b", ""), (8, "a", ""), (9, "c", ""),
    ]  # fmt: skip
    for clock.now, item, stage in moves:
        trace.moved(item, "", stage)
    trace.close()
    assert tracks(read(tmp_path / "trace.json")) == {
        ("attempts", 1): [
            ("a", 1, 4), ("generating", 1, 2), ("tools", 2, 3), ("generating", 3, 4), ("c", 6, 9), ("generating", 6, 9),
        ],
        ("attempts", 2): [("b", 1, 7), ("generating", 1, 7)],
        ("feedback", 1): [("feedback", 5, 8)],
    }  # fmt: skip


def test_the_learner_shows_what_it_does_and_a_push_also_shows_at_the_engine(tmp_path: Path) -> None:
    """Both sides of a push are on the screen."""
    clock = Clock()
    trace = Trace(tmp_path / "trace.json", 1 << 20, clock, epoch_s=0.0)
    moves = [(0, "learner", "waiting"), (2, "learner", ""), (2, "step-1", "learning"), (5, "step-1", ""),
             (5, "push-1", "pushing"), (6, "push-1", "")]  # fmt: skip
    for clock.now, item, stage in moves:
        trace.moved(item, "", stage)
    trace.event("engine_died", "EngineDeadError", {"pid": 7})
    trace.event("provider down", "no answer", {})
    trace.event("anything else", "", {})
    trace.snapshot({"ready": 3, "usd": None, "engine": {"kv_usage": 0.5}, "stages": {"tools": 2}})
    trace.close()
    events = read(tmp_path / "trace.json")
    assert tracks(events) == {
        ("learner", 1): [("waiting", 0, 2), ("learning", 2, 5), ("pushing", 5, 6)],
        ("engine", 1): [("pushing", 5, 6)],
    }
    assert [(GROUPS[e["pid"] - 1], e["name"], e["args"]) for e in events if e["ph"] == "i"] == [
        ("engine", "engine_died", {"subject": "EngineDeadError", "pid": 7}),
        ("feedback", "provider down", {"subject": "no answer"}),
        ("run", "anything else", {"subject": ""}),
    ]
    assert {e["name"]: e["args"]["value"] for e in events if e["ph"] == "C"} == {
        "ready": 3, "engine kv_usage": 0.5, "items tools": 2,
    }  # fmt: skip


def test_256_attempts_at_a_time_make_256_lanes_however_many_there_are(tmp_path: Path) -> None:
    """Lanes are used again, and slices on a lane always nest."""
    trace = Trace(tmp_path / "trace.json", 64 << 20)
    chance = random.Random(0)
    under_way: dict[str, str] = {}
    for number in range(3000):
        if len(under_way) == 256:
            gone = chance.choice(list(under_way))
            trace.moved(gone, under_way.pop(gone), "")
        item = f"train-{number:07d}-00"
        under_way[item] = "generating"
        trace.moved(item, "", "generating")
        changed = chance.choice(list(under_way))
        under_way[changed] = chance.choice(["generating", "tools"])
        trace.moved(changed, "", under_way[changed])
    trace.close()
    found = tracks(read(tmp_path / "trace.json"))
    assert len(found) == 256
    assert sum(name.startswith("train-") for slices in found.values() for name, _, _ in slices) == 3000


def test_a_large_trace_begins_anew_and_keeps_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is under way at the change ends in the old part and goes on in the new one."""
    monkeypatch.setattr(module, "WRITE_EVERY_S", 0.01)
    clock = Clock()
    trace = Trace(tmp_path / "trace.json", 20_000, clock, epoch_s=0.0)
    trace.moved("long", "", "generating")
    for number in range(3):
        for step in range(200):
            clock.now += 1
            trace.moved(f"step-{number}-{step}", "", "learning")
            trace.moved(f"step-{number}-{step}", "", "")
        while trace._events:
            pass
    clock.now += 1
    trace.moved("long", "", "")
    trace.close()
    old, new = read(tmp_path / "trace.1.json"), read(tmp_path / "trace.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trace.1.json", "trace.json"]
    (_, _, end), _ = tracks(old)["attempts", 1]
    (name, begin, last), _ = tracks(new)["attempts", 1]
    assert end is not None
    assert (name, last) == ("long", clock.now)
    assert end <= begin


def test_a_new_process_keeps_the_trace_of_the_one_before(tmp_path: Path) -> None:
    """A resume begins a new file."""
    for item in ("first", "second"):
        trace = Trace(tmp_path / "trace.json", 1 << 20)
        trace.moved(item, "", "generating")
        trace.close()
    assert "first" in (tmp_path / "trace.1.json").read_text()
    assert "second" in (tmp_path / "trace.json").read_text()


def test_a_killed_process_leaves_a_trace_that_can_be_opened_and_shows_what_was_under_way(tmp_path: Path) -> None:
    """SIGKILL leaves no time for the closing bracket."""
    path = tmp_path / "trace.json"
    code = (
        "import sys, time; from pathlib import Path; from fd_async.telemetry.trace import Trace\n"
        "trace = Trace(Path(sys.argv[1]), 1 << 20)\n"
        "trace.moved('a', '', 'tools')\n"
        "for i in range(10**9): trace.moved('b', '', 'learning'); trace.moved('b', '', ''); time.sleep(0.001)\n"
    )
    root = str(Path(module.__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    with subprocess.Popen([sys.executable, "-c", code, str(path)], env=env) as process:
        while not path.exists() or path.stat().st_size < 4000:
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert not path.read_text().endswith("]\n")
    found = tracks(read(path))
    assert [(name, end) for name, _, end in found["attempts", 1]] == [("a", None), ("tools", None)]
    assert len(found["learner", 1]) > 10


class FullDisk(io.FileIO):
    """Takes 3000 bytes, the last of them in the middle of a write."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        room = 3000 - self.tell()
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data[:room]) or 0


def test_a_full_disk_leaves_whole_events(tmp_path: Path) -> None:
    """What did not fit is taken back."""
    path = tmp_path / "trace.json"
    writer = module._Writer(path, 1 << 20, 0.0)
    with FullDisk(path, "wb") as file:
        file.write(b"[")
        writer._file, writer._size, writer._full = file, 1, 1 << 20
        writer.event(0.0, "run_began", {})
        writer.flush(0.0)
        for number in range(100):
            writer.event(0.0, "run_event", {"number": number})
        with pytest.raises(OSError, match="No space left"):
            writer.flush(0.0)
    assert [event["name"] for event in read(path)] == ["run_began"]


def test_a_trace_that_cannot_be_written_ends_with_one_line_and_not_the_run(tmp_path: Path) -> None:
    """Later events are thrown away; closing returns."""
    with capture_logs() as logs:
        trace = Trace(tmp_path / "missing" / "trace.json", 1 << 20)
        trace.moved("a", "", "tools")
        trace.close()
    assert [entry["event"] for entry in logs] == ["trace_ended"]


def test_a_trace_that_cannot_keep_up_throws_away_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded while the disk hangs, and the slices nest afterwards."""
    monkeypatch.setattr(module, "MAX_QUEUED", 10)
    monkeypatch.setattr(module, "WRITE_EVERY_S", 3600.0)
    trace = Trace(tmp_path / "trace.json", 1 << 20)
    trace.moved("early", "", "generating")
    for number in range(100):
        trace.moved(f"a{number}", "", "generating")
    assert len(trace._events) == 10
    trace.close()
    events = read(tmp_path / "trace.json")
    assert [e["name"] for e in events if e["ph"] == "i"] == ["trace_overflowed"]
    assert all(end is not None for slices in tracks(events).values() for _, _, end in slices)
