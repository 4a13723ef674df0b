"""The health of a container: the pulse of the run that goes on in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fd_async.cli.main import main
from fd_async.preflight import health as probes
from fd_async.preflight.health import PULSE_S, health


def status(runs: Path, name: str, *, age_s: float, pid: int = 0, text: str = "") -> None:
    """Write a run's status as it was some seconds ago."""
    (runs / name).mkdir(parents=True)
    fields = {"pid": pid or os.getpid(), "updated_at": time.time() - age_s, "phase": "training", "step": 3}
    (runs / name / "status.json").write_text(text or json.dumps(fields | {"max_steps": 9}))


@pytest.fixture
def old_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every process for one that has been there for an hour."""
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: time.time() - 3600)


def test_a_run_that_writes_is_well(tmp_path: Path) -> None:
    """With its phase and step."""
    status(tmp_path, "one", age_s=0)
    found = health(tmp_path)
    assert (found.state, found.name) == ("ok", "pulse")
    assert found.found.startswith("one: training, step 3 of 9")


@pytest.mark.usefixtures("old_process")
def test_a_run_that_has_stopped_writing_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its process is there, its event loop does not turn; the command exits with 3."""
    status(tmp_path, "one", age_s=PULSE_S + 60)
    found = health(tmp_path)
    assert found.state == "missing"
    assert "last sign 180 s ago" in found.found
    assert main(["check", "--health", str(tmp_path)]) == 3
    assert "logs/controller.jsonl" in capsys.readouterr().out


def test_a_number_that_another_process_has_got_since_is_no_run(tmp_path: Path) -> None:
    """In a container that is started again, numbers begin anew."""
    status(tmp_path, "before", age_s=86400)
    assert health(tmp_path).found == f"no run is going in {tmp_path}/"


@pytest.mark.usefixtures("old_process")
def test_the_run_that_goes_on_counts_and_not_those_before(tmp_path: Path) -> None:
    """A run that was killed long ago says nothing about this one."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    status(tmp_path, "killed", age_s=0, pid=ended.pid)
    status(tmp_path, "going", age_s=1)
    os.utime(tmp_path / "killed" / "status.json", (time.time() + 9, time.time() + 9))
    assert health(tmp_path).found.startswith("going: ")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": "x"}', '{"pid": 1}', '{"pid": -4, "updated_at": 1}', '{"pid": 1e400}']
)
def test_rubbish_in_a_status_is_no_run(tmp_path: Path, text: str) -> None:
    """Half a file, another's file."""
    status(tmp_path, "one", age_s=0, text=text or " ")
    assert health(tmp_path).name == "environment"


def test_an_environment_that_lost_its_packages_is_not_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no run is going, that is what there is to ask."""
    assert health(tmp_path / "none").state == "ok"
    monkeypatch.setattr(probes, "find_spec", lambda name: None if name == "vllm" else name)
    assert health(tmp_path).found == "lacks vllm"


def test_health_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 beside a configuration, and without both."""
    assert main(["check", "--health", "--config", "f.toml"]) == 2
    assert main(["check"]) == 2
    assert "--config FILE is missing" in capsys.readouterr().err
