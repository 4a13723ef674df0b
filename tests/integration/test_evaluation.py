"""fd-eval as a user runs it, on the real vLLM and the tiny model: killed with SIGKILL, continued, refused, printed."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from fd_async.data.ledger import read_attempts

ROOT = Path(__file__).parents[2]
SAMPLES = 2
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def command(folder: Path, *options: str) -> list[str]:
    """Evaluate 64 statements of the tiny world, more at once than vLLM batches."""
    return [
        sys.executable, "-m", "fd_async.cli", "eval", str(folder.parent / "model"), "--config", "configs/tiny_fd.toml",
        "--suite", str(folder.parent / "held_out.jsonl"), "--samples", str(SAMPLES), "--k", "1,2", "--out", str(folder),
        "--set", "policy.max_num_seqs=48", *options,
    ]  # fmt: skip


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *options), cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def num_recorded(folder: Path) -> int:
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{folder / 'ledger.db'}?mode=ro", uri=True)) as db:
        return db.execute("SELECT COUNT(*) FROM rollouts").fetchone()[0]
    return 0


def kill_at(folder: Path, count: int) -> None:
    """Start an evaluation and kill it when so many attempts are recorded; nothing of it is left behind."""
    with (folder.parent / "killed.out").open("w") as log:
        process = subprocess.Popen(command(folder), cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 500
    family = [psutil.Process(process.pid)]
    try:
        while num_recorded(folder) < count:
            assert process.poll() is None, (folder.parent / "killed.out").read_text()[-2000:]
            assert time.monotonic() < deadline, (folder.parent / "killed.out").read_text()[-2000:]
            time.sleep(0.05)
        family += family[0].children(recursive=True)
    finally:
        process.kill()
    process.wait(10)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, f"orphans after SIGKILL: {alive}"


def attempts(folder: Path) -> dict[str, Any]:
    return {record.rollout.id: record.rollout for record in read_attempts(folder / "ledger.db", 10_000)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny model, a suite, an evaluation in one piece and one that was killed and continued."""
    root = tmp_path_factory.mktemp("evaluation")
    shutil.copytree(ROOT / "examples/tiny/model", root / "model")
    lines = (ROOT / "examples/tiny/data/test.jsonl").read_text().splitlines(keepends=True)
    (root / "held_out.jsonl").write_text("".join(lines[:64]))
    whole = run(root / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    kill_at(root / "killed", 40)
    before = num_recorded(root / "killed")
    continued = run(root / "killed")
    assert continued.returncode == 0, continued.stderr[-3000:]
    assert f"128 attempts, {before} of them taken over (0 failed)" in continued.stderr
    return root


def test_a_killed_and_continued_evaluation_samples_what_an_uninterrupted_one_does(world: Path) -> None:
    """Ids and verdicts of nearly all attempts: in float32 another batch changes the last bits of a log-prob at most."""
    whole, continued = attempts(world / "whole"), attempts(world / "killed")
    assert whole.keys() == continued.keys()
    assert len(whole) == 64 * SAMPLES
    same = [name for name in whole if whole[name].completion_ids == continued[name].completion_ids]
    assert len(same) >= 0.98 * len(whole)
    for name in same:
        assert whole[name].verdict.kind == continued[name].verdict.kind
        assert whole[name].logprobs == pytest.approx(continued[name].logprobs, abs=1e-4)


def test_the_same_call_prints_the_result_at_once(world: Path) -> None:
    """Without vLLM; the last line is one JSON object with the keys of training."""
    again = run(world / "killed")
    assert again.returncode == 0
    assert "vLLM" not in again.stderr
    result = json.loads((world / "killed/result.json").read_bytes())
    value, low, high = result["suites"][0]["pass_at"]["2"]
    assert 0 <= low < value < high <= 1
    last = json.loads(again.stdout.splitlines()[-1])
    assert last["eval/held_out/pass@2"] == value
    assert (last["eval/held_out/statements"], last["eval/held_out/failed"]) == (64, 0)


def test_an_evaluation_can_be_browsed_like_a_run(world: Path) -> None:
    """The viewer's report takes its folder."""
    from fd_async.viewer.report import write_report

    page = write_report(world / "killed", world / "page.html").read_text()
    assert "tiny_" in page


def test_a_model_that_was_replaced_meanwhile_is_refused_in_one_line(world: Path) -> None:
    """One byte of the weights is enough."""
    weights = world / "model/model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    try:
        refused = run(world / "killed")
    finally:
        weights.write_bytes(original)
    assert refused.returncode == 2
    assert "model was sha256 " in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
