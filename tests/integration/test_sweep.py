"""configs/sweeps/tiny.toml with the real fd-run: killed in the middle, sweep and run, and called again to the end."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fd_async.config.files import CHECKOUT
from fd_async.learner.checkpoints import list_checkpoints
from fd_async.telemetry.sinks import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]
NAMES = ["mini_fd", "mini_grpo", "mini_grpo_over_fd", "mini_lean_output", "mini_frozen", "mini_be_concise"]
SMALL = ["run.max_steps=2", "checkpoint.every_steps=1", "eval.limit=8", "eval.at_end=false", "eval.every_steps=0"]


def start(runs: Path) -> subprocess.Popen[str]:
    """Start the sweep as a user does, in a session of its own."""
    sets = [part for text in [*SMALL, f'run.dir="{runs}"'] for part in ("--set", text)]
    command = [sys.executable, "-m", "fd_async.cli", "sweep", "configs/sweeps/tiny.toml", *sets]
    with (runs / "sweep.out").open("a") as log:
        return subprocess.Popen(command, cwd=CHECKOUT, stdout=log, stderr=log, start_new_session=True, text=True)


def until(condition: Callable[[], bool], process: subprocess.Popen[str], runs: Path) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, (runs / "sweep.out").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_sweep_killed_in_the_middle_goes_on_where_it_was(tmp_path: Path) -> None:
    """The finished run is not started again, the interrupted one is resumed, all of them take two steps once."""
    runs = tmp_path / "runs"
    runs.mkdir()
    sweep = start(runs)
    until(lambda: bool(read_rows(runs / "mini_grpo" / "metrics.jsonl")), sweep, runs)
    [child] = psutil.Process(sweep.pid).children()
    family = [child, *child.children(recursive=True)]
    written = (runs / "mini_fd" / "checkpoints" / "step_000002" / "manifest.json").stat().st_mtime_ns
    sweep.kill()
    child.kill()
    sweep.wait(10)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, f"orphans after SIGKILL: {alive}"

    again = start(runs)
    assert again.wait(1500) == 0, (runs / "sweep.out").read_text()[-3000:]
    for name in NAMES:
        assert [row["step"] for row in read_rows(runs / name / "metrics.jsonl")] == [1, 2], name
        assert 2 in list_checkpoints(runs / name / "checkpoints"), name
    assert (runs / "mini_fd" / "checkpoints" / "step_000002" / "manifest.json").stat().st_mtime_ns == written
    said = (runs / "sweep.out").read_text()
    assert re.search("2/6 mini_grpo: resume at step [01]: bin/fd-run", said)
    assert "fd-eval test, step 2: pass@1" in said

    assert start(runs).wait(120) == 0, "a third call finds nothing to do"
    last = (runs / "sweep.out").read_text()[len(said) :]
    assert "bin/fd-run" not in last
    assert "bin/fd-eval" not in last
    assert "bin/fd-report" in last
