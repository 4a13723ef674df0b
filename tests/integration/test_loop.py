"""The whole loop as a user runs it, on the real vLLM and DeepSpeed: killed, resumed, interrupted, continued by GRPO."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from fd_async.telemetry.sinks import read_rows

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = {
    "run.max_steps": 6,
    "learner.prompts_per_step": 8,
    "eval.every_steps": 0,
    "eval.at_start": "false",
    "eval.at_end": "false",
    "checkpoint.every_steps": 2,
    "admission.max_staleness": 1,
    "telemetry.console": '"lines"',
}


def start(config: str, runs: Path, name: str, *options: str, **sets: Any) -> subprocess.Popen[str]:
    """Start fd-run in a session of its own, output to a file beside the run."""
    values = SMALL | {key.replace("__", "."): value for key, value in sets.items()} | {"run.dir": f'"{runs}"'}
    command = [
        sys.executable,
        "-m",
        "fd_async.cli",
        "run",
        "--config",
        f"configs/{config}.toml",
        "--run",
        name,
        *options,
    ]
    for key, value in values.items():
        command += ["--set", f"{key}={value}"]
    with (runs / f"{name}.out").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True, text=True)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline, "the run takes too long"
        time.sleep(0.05)


def last_step(run_dir: Path) -> int:
    rows = read_rows(run_dir / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0


def family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all runs of this module."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(runs: Path) -> Path:
    """A Feedback Distillation run that was killed with SIGKILL after step 3 and resumed to its end."""
    run_dir = runs / "loop"
    process = start("tiny_fd", runs, "loop")
    wait_until(lambda: last_step(run_dir) >= 3, process)
    members = family(process.pid)
    process.kill()
    process.wait(10)
    _, alive = psutil.wait_procs(members, timeout=20)
    assert not alive, f"orphans after SIGKILL: {alive}"
    resumed = start("tiny_fd", runs, "loop", "--resume")
    assert resumed.wait(300) == 0, (runs / "loop.out").read_text()[-3000:]
    return run_dir


def test_a_killed_and_resumed_run_trains_every_prompt_once(finished: Path) -> None:
    """Ordinals 0..47 are trained, each once; every metrics row stands once."""
    with closing(sqlite3.connect(finished / "ledger.db")) as db:
        rows = db.execute("SELECT ordinal FROM rollouts WHERE outcome='trained' ORDER BY ordinal").fetchall()
        batches = db.execute("SELECT COUNT(*) FROM batches").fetchone()[0]
    assert [row[0] for row in rows] == list(range(48))
    assert batches == 6
    assert [row["step"] for row in read_rows(finished / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_engine_and_learner_agree_after_every_push(finished: Path) -> None:
    """The probe prompt's log-probs differ by at most 1e-4 nats at every step (float32)."""
    rows = read_rows(finished / "metrics.jsonl")
    assert all(row["push/probe_max_abs"] <= 1e-4 for row in rows)
    fresh = [row["policy/mismatch_kl_fresh"] for row in rows if row.get("policy/mismatch_kl_fresh") is not None]
    assert fresh, "the first batch is sampled by the weights that it trains"
    assert max(fresh) < 1e-6


def test_accounts_close_and_staleness_keeps_its_bound(finished: Path) -> None:
    """generated = trained + queued + dropped; staleness <= admission.max_staleness."""
    for row in read_rows(finished / "metrics.jsonl"):
        assert row["tokens/generated"] == row["tokens/trained"] + row["tokens/queued"] + row["tokens/dropped"]
        assert row["staleness/max"] <= 1


def test_feedback_says_something_to_the_teacher(finished: Path) -> None:
    """The known proof in its prompt raises the teacher's log-prob of its own target."""
    rows = read_rows(finished / "metrics.jsonl")
    assert all(row["teacher/feedback_gain"] > 0.01 for row in rows)
    assert all(0.9 < row["teacher/topk_mass"] <= 1.0 + 1e-6 for row in rows)


def test_run_folder_holds_what_scripts_rely_on(finished: Path) -> None:
    """config.toml, metrics.jsonl, ledger.db, checkpoints/, logs/, status.json, report.html."""
    for name in (
        "config.toml",
        "metrics.jsonl",
        "ledger.db",
        "checkpoints/latest",
        "logs",
        "status.json",
        "report.html",
    ):
        assert (finished / name).exists(), name
    assert msgspec.json.decode((finished / "status.json").read_bytes())["phase"] == "done"
    keys = set(read_rows(finished / "metrics.jsonl")[-1])
    assert keys >= {
        "step", "weight_version", "loss", "teacher/topk_mass", "teacher/entropy", "teacher/feedback_gain",
        "policy/entropy", "policy/mismatch_kl", "grad_norm", "lr", "train/pass_rate", "train/response_tokens",
        "staleness/mean", "staleness/max", "queue/depth", "tokens/generated", "tokens/trained", "tokens/dropped",
        "time/step_s", "time/wait_for_batch_s", "time/push_stall_s", "loop/lag_p99_ms", "lean/checks",
        "lean/infra_errors", "feedback/calls", "feedback/usd",
    }  # fmt: skip
    assert "statement" in (finished / "report.html").read_text().lower()


def test_export_of_the_run_loads(finished: Path, tmp_path: Path) -> None:
    """fd-export writes a Hugging Face folder that transformers loads."""
    command = [sys.executable, "-m", "fd_async.cli", "export", str(finished), "--to", str(tmp_path / "model")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").num_parameters() > 0


def test_grpo_over_fd_starts_from_the_checkpoint_and_stops_on_ctrl_c(finished: Path, runs: Path) -> None:
    """GRPO takes the weights of the other run; SIGINT to the whole group ends with 130 and a checkpoint, no orphan."""
    run_dir = runs / "grpo"
    process = start(
        "tiny_grpo_over_fd", runs, "grpo",
        model__init_from=f'"{finished}"', rollout__samples_per_prompt=2, run__max_steps=50, checkpoint__every_steps=0,
    )  # fmt: skip
    wait_until(lambda: last_step(run_dir) >= 1, process)
    members = family(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(90) == 130, (runs / "grpo.out").read_text()[-3000:]
    step = last_step(run_dir)
    assert (run_dir / "checkpoints" / f"step_{step:06d}" / "manifest.json").is_file()
    row = read_rows(run_dir / "metrics.jsonl")[0]
    assert row["grpo/kl"] == pytest.approx(0.0, abs=1e-4)
    _, alive = psutil.wait_procs(members, timeout=10)
    assert not alive, f"orphans after SIGINT: {alive}"
