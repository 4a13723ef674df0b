"""Faults injected into the real loop, vLLM and DeepSpeed included: it goes on, or ends clearly, and leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from fd_async.learner.checkpoints import list_checkpoints
from fd_async.telemetry.sinks import read_rows
from tests.integration import test_loop
from tests.integration.test_loop import family, last_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CACHES = ("torchinductor_", "triton", "vllm")
"""What torch and vLLM keep for the next start."""


class Home:
    """Runs of this module and their temporary files."""

    def __init__(self, runs: Path, temporary: Path) -> None:
        self.runs, self.temporary = runs, temporary
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, name: str, *options: str, **sets: Any) -> subprocess.Popen[str]:
        """Start fd-run with a small learner that is saved at every second step."""
        self.processes.append(
            test_loop.start("tiny_fd", self.runs, name, *options, **{"learner__cpu_threads": 1} | sets)
        )
        return self.processes[-1]

    def output(self, name: str) -> str:
        return (self.runs / f"{name}.out").read_text()

    def status(self, name: str) -> dict[str, Any]:
        path = self.runs / name / "status.json"
        return msgspec.json.decode(path.read_bytes()) if path.exists() else {}

    def ends(self, process: subprocess.Popen[str], members: list[psutil.Process], code: int, name: str) -> str:
        """Wait for the end; return the last line. No process, socket, shared memory or folder outlives it."""
        assert process.wait(400) == code, self.output(name)[-3000:]
        _, alive = psutil.wait_procs([member for member in members if member.pid != process.pid], timeout=20)
        assert not alive, f"orphans: {alive}"
        self.is_clean(process.pid)
        return self.output(name).splitlines()[-1]

    def is_clean(self, pid: int) -> None:
        """Look for files of a process that is gone."""
        left = [path.name for path in self.temporary.iterdir() if not path.name.startswith(CACHES)]
        assert not left, f"left in TMPDIR: {left}"
        shared = [path.name for path in Path("/dev/shm").glob(f"fd_async-*-{pid}-*")]
        assert not shared, f"left in /dev/shm: {shared}"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Give the runs a folder for temporary files of their own, short enough for sockets."""
    temporary = Path(tempfile.mkdtemp(prefix="fdt"))
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(temporary)
    home = Home(tmp_path_factory.mktemp("runs"), temporary)
    yield home
    for process in home.processes:  # of a test that failed; all that it started leaves with it
        process.kill()
        process.wait(10)
    os.environ.pop("TMPDIR")
    if before is not None:
        os.environ["TMPDIR"] = before
    shutil.rmtree(temporary, ignore_errors=True)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait, also where the machine is busy with other things."""
    test_loop.wait_until(condition, process, seconds=400)


def children(process: subprocess.Popen[str], word: str) -> list[psutil.Process]:
    """Return the descendants whose command or name has a word in it."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if word in " ".join([child.name(), *child.cmdline()]):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def history(run_dir: Path) -> list[int]:
    """Return the ordinals that were trained, in order."""
    with closing(sqlite3.connect(run_dir / "ledger.db")) as db:
        rows = db.execute("SELECT ordinal FROM rollouts WHERE outcome='trained' ORDER BY ordinal")
        return [row[0] for row in rows]


def assert_complete(run_dir: Path, steps: int) -> None:
    """Check that every prompt was trained once, that rows stand once, and that the account closes."""
    assert history(run_dir) == list(range(8 * steps))
    rows = read_rows(run_dir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row in rows:
        assert row["tokens/generated"] == row["tokens/trained"] + row["tokens/queued"] + row["tokens/dropped"]
        assert row["staleness/max"] <= 1


def wait_for_learning(home: Home, name: str, process: subprocess.Popen[str], step: int) -> None:
    """Wait until the learner is inside a gradient step after `step`."""
    wait_until(lambda: last_step(home.runs / name) >= step, process)
    wait_until(lambda: home.status(name).get("stages", {}).get("learning", 0) > 0, process)


def test_a_run_outlives_its_learner_and_its_engine(home: Home) -> None:
    """A rank and vLLM's core are killed in the middle of a run: exit 0, every prompt trained once."""
    run_dir = home.runs / "survivor"
    process = home.start("survivor", run__max_steps=10, telemetry__status_every_s=0.05)
    wait_for_learning(home, "survivor", process, 3)
    members = family(process.pid)
    (rank,) = children(process, "entry.py")
    rank.kill()
    wait_until(lambda: home.status("survivor").get("restarts") == 1, process)
    wait_until(lambda: last_step(run_dir) >= 6, process)
    members += family(process.pid)
    for core in children(process, "EngineCore"):
        core.kill()
    wait_until(lambda: last_step(run_dir) >= 9, process)
    members += family(process.pid)
    home.ends(process, members, 0, "survivor")
    assert_complete(run_dir, 10)
    assert "starting the learner anew from the checkpoint of step" in home.output("survivor")
    assert home.status("survivor")["restarts"] == 1


def test_a_killed_controller_resumes_and_a_second_ctrl_c_leaves_at_once(home: Home) -> None:
    """SIGKILL leaves folders that the resume sweeps; two Ctrl-C end it within seconds, and it resumes again."""
    run_dir = home.runs / "killed"
    process = home.start("killed", run__max_steps=200)
    wait_until(lambda: last_step(run_dir) >= 3, process)
    members = family(process.pid)
    process.kill()
    process.wait(10)
    _, alive = psutil.wait_procs(members, timeout=20)
    assert not alive, f"orphans after SIGKILL: {alive}"
    resumed = home.start("killed", "--resume", run__max_steps=200)
    wait_until(lambda: last_step(run_dir) >= 6, resumed)
    members = family(resumed.pid)
    os.killpg(resumed.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(resumed.pid, signal.SIGINT)
    asked = time.monotonic()
    line = home.ends(resumed, members, 130, "killed")
    assert time.monotonic() - asked < 30
    assert "leaving now" in home.output("killed")
    assert "Traceback" not in line
    assert home.status("killed")["phase"] == "interrupted"


def test_a_rank_that_hangs_is_ended(home: Home) -> None:
    """SIGSTOP: after learner.step_timeout_s the run ends with 5; its last line names rank, log and count."""
    process = home.start("hung", run__max_steps=200, learner__step_timeout_s=8, learner__max_restarts=0)
    wait_until(lambda: last_step(home.runs / "hung") >= 2, process)
    members = family(process.pid)
    (rank,) = children(process, "entry.py")
    rank.send_signal(signal.SIGSTOP)
    line = home.ends(process, members, 5, "hung")
    assert line.startswith("fd-run: ")
    assert f"learner rank 0 (pid {rank.pid})" in line
    assert "learner.step_timeout_s = 8 s" in line
    assert "given up after 0 restarts from step" in line
    assert "logs" in line


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_while_parts_start_leaves_nothing(home: Home, asked: signal.Signals) -> None:
    """130 at once, whether ranks or vLLM's processes are there yet."""
    name = f"early-{asked.name}"
    process = home.start(name)
    waits_for = {signal.SIGTERM: "entry.py", signal.SIGHUP: "EngineCore", signal.SIGINT: "minilean"}[asked]
    wait_until(lambda: bool(children(process, waits_for)), process)
    members = family(process.pid)
    process.send_signal(asked)
    began = time.monotonic()
    home.ends(process, members, 130, name)
    assert time.monotonic() - began < 45
    assert not list_checkpoints(home.runs / name / "checkpoints")


def test_a_signal_to_every_process_of_a_job_still_leaves_a_checkpoint(home: Home) -> None:
    """Slurm may signal ranks, vLLM and verifier too: 130 within run.shutdown_s, and the last step is kept."""
    process = home.start("job", run__max_steps=200, checkpoint__every_steps=0, run__shutdown_s=60)
    wait_until(lambda: last_step(home.runs / "job") >= 2, process)
    members = family(process.pid)
    asked = time.monotonic()
    for member in members:
        with suppress(psutil.NoSuchProcess):  # a worker goes with its sandbox
            member.terminate()
    home.ends(process, members, 130, "job")
    assert time.monotonic() - asked < 60
    assert list(list_checkpoints(home.runs / "job" / "checkpoints")) == [last_step(home.runs / "job")]
