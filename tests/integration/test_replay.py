"""A real asynchronous run, killed and resumed, replays bit for bit with the real learner."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from fd_async.telemetry.sinks import read_rows

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SMALL = {
    "run.max_steps": "8",
    "learner.prompts_per_step": "8",
    "learner.cpu_threads": "1",
    "eval.every_steps": "4",
    "eval.limit": "8",
    "eval.at_start": "false",
    "eval.at_end": "false",
    "checkpoint.every_steps": "3",
    "admission.max_staleness": "1",
    "telemetry.console": '"lines"',
}


@contextmanager
def fd_run(runs: Path, *options: str, **keys: str) -> Iterator[subprocess.Popen[str]]:
    """Run fd-run below `runs`, its output in out.txt there; nothing of it outlives the block."""
    command = [sys.executable, "-m", "fd_async.cli", "run", *options]
    for key, value in keys.items():
        command += ["--set", f"{key}={value}"]
    with (runs / "out.txt").open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True, text=True)
    members: list[psutil.Process] = []
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            members = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.kill()
        process.wait(10)
        psutil.wait_procs(members, timeout=20)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Feedback Distillation run of 8 steps that was killed with SIGKILL after step 4 and resumed."""
    runs = tmp_path_factory.mktemp("runs")
    keys = SMALL | {"run.dir": f'"{runs}"'}
    with fd_run(runs, "--config", "configs/tiny_fd.toml", "--run", "a", **keys) as process:
        deadline = time.monotonic() + 400
        while len(read_rows(runs / "a" / "metrics.jsonl")) < 4:
            assert process.poll() is None, (runs / "out.txt").read_text()[-3000:]
            assert time.monotonic() < deadline, "the run takes too long"
            time.sleep(0.05)
    with fd_run(runs, "--config", "configs/tiny_fd.toml", "--run", "a", "--resume", **keys) as resumed:
        assert resumed.wait(400) == 0, (runs / "out.txt").read_text()[-3000:]
    return runs / "a"


def replay(recorded: Path, name: str) -> tuple[int, str]:
    """Replay into run NAME; return the exit code and the last line."""
    command = [sys.executable, "-m", "fd_async.cli", "run", "--replay", str(recorded), "--run", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ, check=False)
    return done.returncode, (done.stdout.splitlines() or [done.stderr[-3000:]])[-1]


def test_every_loss_is_equal_bit_for_bit(recorded: Path) -> None:
    """Eight steps, eight losses, nine weight versions; no engine is started."""
    code, line = replay(recorded, "again")
    assert code == 0, line
    assert line.startswith("replayed 8 steps, 8 losses equal bit for bit (")
    assert "weights of 9 versions" in line
    assert not list((recorded.parent / "again" / "logs").glob("*engine*"))


def test_a_loss_that_was_altered_is_named(recorded: Path) -> None:
    """The comparison can fail: one digit of one row is enough."""
    path = recorded / "metrics.jsonl"
    rows, text = read_rows(path), path.read_text()
    loss = next(row["loss"] for row in rows if row["step"] == 5 and row["loss"] is not None)
    path.write_text(text.replace(repr(loss), repr(loss * (1 + 2**-52)), 1))
    try:
        code, line = replay(recorded, "altered")
    finally:
        path.write_text(text)
    assert code == 1
    assert line.startswith("the replay differs: step 5, loss: ")
