"""The Slurm script with the real fd-run: warned of its time limit, queued again, resumed to the end.

Slurm itself is a stand-in (tests/fakes/slurm.py); checkout, scripts, vLLM, learner and verifier are the true ones.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes import slurm

CHECKOUT = Path(__file__).parents[2]
STEPS, WARNED_AT = 12, (3, 7)

pytestmark = pytest.mark.slow


def num_rows(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.timeout(900)
def test_a_tiny_run_goes_on_over_its_time_limits(tmp_path: Path) -> None:
    """Two starts end with 130 and a checkpoint, the third reaches the end; every step is there once."""
    programs, runs, place = (tmp_path / name for name in ("programs", "runs", "checkout"))
    programs.mkdir()
    slurm.install(programs)
    for name in ("bin", "configs", "examples", "fd_async", "slurm"):
        shutil.copytree(CHECKOUT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    variables = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(place),
        "FD_PYTHON": sys.executable,
        "FAKE_TIME_S": "900",
    }
    sets = ["eval.at_start=false", "eval.at_end=false", "eval.every_steps=0", "telemetry.report=false"]
    words = ["--config", "configs/tiny_fd.toml", "--run", "limited", "--max-steps", str(STEPS)]
    words += [word for key in (*sets, f"run.dir={runs}") for word in ("--set", key)]
    rows = runs / "limited" / "metrics.jsonl"
    with subprocess.Popen(["sbatch", "slurm/fd_async.sbatch", *words], cwd=place, env=variables) as job:
        for step in WARNED_AT:
            while num_rows(rows) < step and job.poll() is None:
                time.sleep(0.2)
            subprocess.run(["scancel", "--batch", "--signal=USR1", "101"], env=variables, check=True)
        code = job.wait(800)
    log, history = ((programs / "jobs" / "101" / name).read_text() for name in ("log", "history"))
    assert code == 0, log
    assert [line.split()[0] for line in history.splitlines()] == ["REQUEUED", "REQUEUED", "ENDED"], log
    assert log.count("SIGTERM: finishing the step, then a checkpoint") == 2
    assert log.count("fd-run ended with 130 after Slurm's warning; queued again") == 2
    assert (log.count("fd-continue: starting"), log.count("fd-continue: continuing")) == (1, 2)
    assert [json.loads(line)["step"] for line in rows.read_text().splitlines()] == list(range(1, STEPS + 1))
