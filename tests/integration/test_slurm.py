"""The Slurm script with the real fd-run: warned of its time limit, queued again, resumed to the end.

Slurm itself is a stand-in (tests/fakes/slurm.py); checkout, scripts, vLLM, learner and verifier are the true ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import slurm

CHECKOUT = Path(__file__).parents[2]
STEPS = 60

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
def test_a_tiny_run_goes_on_over_its_time_limit(tmp_path: Path) -> None:
    """The first start ends with 130 and a checkpoint; the next continue from it; every step is there once."""
    programs, runs = tmp_path / "programs", tmp_path / "runs"
    programs.mkdir()
    slurm.install(programs)
    place = tmp_path / "checkout"
    place.mkdir()
    for name in ("bin", "configs", "examples", "fd_async", "slurm"):
        shutil.copytree(CHECKOUT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    variables = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(place),
        "FD_PYTHON": sys.executable,
        "FD_SHUTDOWN_S": "60",
        "FAKE_TIME_S": "150",
        "FAKE_WARN_S": os.environ.get("FAKE_WARN_S", "100"),
    }
    sets = [
        "eval.at_start=false",
        "eval.at_end=false",
        "eval.every_steps=0",
        f"run.dir={runs}",
        "telemetry.report=false",
    ]
    words = ["--config", "configs/tiny_fd.toml", "--run", "limited", "--max-steps", str(STEPS)]
    words += [word for key in sets for word in ("--set", key)]
    argv = ["sbatch", "slurm/fd_async.sbatch", *words]
    done = subprocess.run(argv, cwd=place, env=os.environ | variables, timeout=580, check=False)
    (job,) = (programs / "jobs").iterdir()
    log, history = (job / "log").read_text(), (job / "history").read_text().splitlines()
    assert done.returncode == 0, log
    assert history[-1] == "ENDED 0", log
    assert len(history) >= 2, log
    assert all(line.startswith("REQUEUED") for line in history[:-1]), log
    assert "SIGTERM: finishing the step, then a checkpoint" in log
    assert "fd-run ended with 130 after Slurm's warning; queued again" in log
    assert log.count("fd-continue: starting") == 1
    assert log.count("fd-continue: continuing") == len(history) - 1
    steps = [json.loads(line)["step"] for line in (runs / "limited" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))
