"""Sinks of other packages: fed where they work, left out where they do not, never in the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

import fd_async
from fd_async.errors import PreflightError
from fd_async.telemetry import external
from fd_async.telemetry.external import ExternalSink, demand_packages

WANDB = """
import json, os, pathlib, time
{on_import}
class Run:
    def __init__(self, settings):
        self.out = pathlib.Path(settings["dir"], "rows.jsonl").open("a")
        print(json.dumps({{"init": settings}}), file=self.out, flush=True)
    def define_metric(self, name, step_metric): pass
    def log(self, row):
        {on_log}
        print(json.dumps(row), file=self.out, flush=True)
    def finish(self):
        {on_finish}
        print(json.dumps({{"finish": True}}), file=self.out, flush=True)
def init(**settings):
    {on_init}
    return Run(settings)
"""

Fake = Callable[..., None]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """Install a package called wandb that misbehaves as told; afterwards none of its processes may be left."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    (tmp_path / "run" / "logs").mkdir(parents=True)

    def install(**acts: str) -> None:
        names = ("on_import", "on_init", "on_log", "on_finish")
        (folder / "wandb.py").write_text(WANDB.format(**{name: acts.get(name, "pass") for name in names}))

    before = set(psutil.Process().children(recursive=True))  # a helper of multiprocessing's, from an earlier test
    yield install
    left = set(psutil.Process().children(recursive=True)) - before
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []


def open_sink(tmp_path: Path, name: str = "wandb", step: int = 0) -> ExternalSink:
    return ExternalSink(name, tmp_path / "run", "project", step, {"learner": {"lr": 1e-5}})


def rows(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]


def test_rows_reach_the_package_and_it_may_finish(fake: Fake, tmp_path: Path) -> None:
    """Null values are left out; a resume continues the same run under the same id."""
    fake()
    for step in (0, 2):
        sink = open_sink(tmp_path, step=step)
        sink.row({"step": step + 1, "loss": 1.5, "lr": None})
        sink.row({"step": step + 2, "loss": float("nan")})
        sink.close()
    first, a, b, end, second, *_ = rows(tmp_path)
    assert (a, b, end) == ({"step": 1, "loss": 1.5}, {"step": 2}, {"finish": True})
    assert first["init"]["id"] == second["init"]["id"] != ""
    assert first["init"]["config"] == {"learner": {"lr": 1e-5}}


@pytest.mark.parametrize(
    ("acts", "reason"),
    [
        ({"on_import": "raise RuntimeError('no key configured')"}, "no key configured"),
        ({"on_init": "print('bye'); os._exit(7)"}, "bye"),
        ({"on_log": "raise ValueError('bad row')"}, "bad row"),
        ({"on_init": "os.kill(os.getpid(), 11)"}, ""),
    ],
)
def test_a_package_that_fails_is_left_out_with_one_line(
    fake: Fake, tmp_path: Path, acts: dict[str, str], reason: str
) -> None:
    """The line has the last words of the package and where its output is."""
    fake(**acts)
    with capture_logs() as logs:
        sink = open_sink(tmp_path)
        for step in range(3):
            sink.row({"step": step, "loss": 1.0})
        sink.close()
        sink.row({"step": 4})
    assert [entry["event"] for entry in logs] == ["sink_left_out"]
    assert logs[0]["sink"] == "wandb"
    assert reason in logs[0]["reason"]
    assert logs[0]["log"].endswith("run/logs/sink_wandb.log")


@pytest.mark.parametrize("act", ["on_init", "on_finish"])
def test_a_package_that_hangs_is_given_its_time_and_killed(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """Also where it does not listen to signals and has started a process of its own."""
    monkeypatch.setattr(external, "CLOSE_S", 0.5)
    stuck = "import signal, subprocess; signal.signal(15, signal.SIG_IGN); subprocess.Popen(['sleep', '99'])"
    fake(**{act: f"{stuck}; time.sleep(99)"})
    with capture_logs() as logs:
        sink = open_sink(tmp_path)
        sink.row({"step": 1, "loss": 1.0})
        sink.close()
    assert [entry["event"] for entry in logs] == ["sink_left_out"]
    assert "did not finish within 0.5 s" in logs[0]["reason"]


def test_a_slow_package_never_holds_up_a_step(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When too many rows wait it is left out, and ends at once."""
    monkeypatch.setattr(external, "MAX_ROWS", 5)
    fake(on_log="time.sleep(99)")
    with capture_logs() as logs:
        sink = open_sink(tmp_path)
        for step in range(5000):
            sink.row({"step": step, "loss": 1.0, "a long name of a column" * 8: 1.0})
        sink.close()
    assert [entry["reason"] for entry in logs] == ["5 rows wait for it"]
    sink._thread.join(5)
    assert not sink._thread.is_alive()


@pytest.mark.parametrize("on_log", ["time.sleep(99)", "pass"])
def test_a_killed_run_leaves_no_sink_behind(fake: Fake, tmp_path: Path, on_log: str) -> None:
    """Its standard input ends; what hangs ends by itself, and takes along what it started."""
    fake(on_init="import subprocess; subprocess.Popen(['sleep', '99'])", on_log=on_log)
    code = (
        "import sys; from pathlib import Path; from fd_async.telemetry import external\n"
        "external.CLOSE_S = 0.2\n"
        "sink = external.ExternalSink('wandb', Path(sys.argv[1]), 'p', 0, {}); sink.row({'step': 1})\n"
        "sink._thread.join()\n"
    )
    root = str(Path(fd_async.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "packages"), root])}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], env=env) as run:
        while not (tmp_path / "run" / "rows.jsonl").exists():
            assert run.poll() is None
            time.sleep(0.02)
        processes = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGKILL)
    assert len(processes) == 2
    _, left = psutil.wait_procs(processes, timeout=20)
    for process in left:
        process.kill()
    assert left == []


def test_a_package_that_is_not_installed_is_named_before_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of that name, such as wandb makes beside the run, is no package."""
    (tmp_path / "no_such_sink").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PreflightError, match=r"telemetry\.sinks names no_such_sink, not installed.*pip install"):
        demand_packages(["no_such_sink"])
    demand_packages([])


def test_tensorboard_files_hold_every_value_and_a_resume_replaces_later_steps(tmp_path: Path) -> None:
    """Read back with TensorBoard's own reader."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (tmp_path / "run" / "logs").mkdir(parents=True)
    for start, steps, value in ((0, (1, 2, 3), 1.0), (1, (2,), 5.0)):
        if start:
            time.sleep(1.0)  # the name of an event file has its second, and readers take them in that order
        sink = open_sink(tmp_path, "tensorboard", start)
        for step in steps:
            sink.row({"step": step, "loss": value * step, "eval/a/pass@1": None})
        sink.close()
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"), purge_orphaned_data=True).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 10.0)]
