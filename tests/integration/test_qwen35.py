"""A tiny hybrid model (Qwen3.5: gated delta layers beside attention) through vLLM, learner, push, probe and export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from transformers import AutoModelForCausalLM

from fd_async.config.schema import Policy
from fd_async.errors import PushRefused
from fd_async.learner.client import Learner, start_learner
from fd_async.policy import LocalEngine, open_engine
from fd_async.telemetry.sinks import read_rows
from fd_async.types import Completion, StagedWeights
from tests.fakes.tiny_policy import tiny_config, tiny_samples
from tests.fakes.tiny_qwen35 import tiny_qwen35
from tests.fakes.weights import PROBE, logprobs, stage

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <function Context.__del__"),
]

NOISE, MEAN_NOISE = 0.25, 0.05
"""What two right computations in bfloat16 may differ by, nats: at most, and on average over tokens."""
SAME = 0.05
"""What two orders of the same sums may make, nats."""
FAR = 0.3
"""Average difference, nats, that other weights make: far more than the noise."""
CONFIG = Policy(
    max_num_seqs=16,
    max_model_len=1024,
    kv_cache_gib=0.25,
    enforce_eager=True,
    cpu_threads=1,
    probe_tolerance=NOISE,
    start_timeout_s=400,
)
FD = {"top_k": 25, "ema_every": 2, "ema_retention": 0.9, "anchor_weight": 0.5, "anchor_every": 2}


def open_bfloat16(folder: Path, log_dir: Path) -> Any:
    """Open an engine on a checkpoint folder in bfloat16, as every hybrid model needs it on a CPU."""
    return open_engine(str(folder), CONFIG, dtype="bfloat16", seed=0, stop_token_ids=[2], log_dir=log_dir)


async def generate(engine: LocalEngine, prompt: list[int] = PROBE, temperature: float = 0.0) -> Completion:
    """Greedily where completions are compared: with recurrent layers and a prefix cache a CPU engine takes no seeds."""
    return await engine.generate(prompt, max_tokens=40, temperature=temperature, top_p=1.0, request_id="r", seed=1)


def gap(one: list[float], other: list[float]) -> tuple[float, float]:
    """Return the largest and the average difference, nats."""
    differences = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return max(differences), sum(differences) / len(differences)


def assert_close(one: list[float], other: list[float]) -> None:
    largest, average = gap(one, other)
    assert largest < NOISE
    assert average < MEAN_NOISE


async def compare_with_transformers(engine: LocalEngine, model: Any) -> None:
    """Log-probs of sampled tokens are Hugging Face's, also behind a long prompt that is cached and cut in chunks."""
    for prompt in (PROBE, PROBE * 80, PROBE * 80):
        completion = await generate(engine, prompt, temperature=1.0)
        expected = logprobs(model, prompt + completion.token_ids)[len(prompt) - 1 :]
        assert_close(completion.logprobs, expected)


async def train_and_push(engine: LocalEngine, learner: Learner) -> list[float]:
    """Take a few steps, push, and return the engine's scores of the probe with the new weights."""
    before, sampled = await engine.score(PROBE), await generate(engine)
    first = await learner.stage(1, PROBE)
    assert_close(first.probe_logprobs, before)
    for step in (1, 2, 3):
        report = await learner.step(tiny_samples(8, seed=step), step=step)
        assert report.metrics["grad_norm"] > 0
    staged = await learner.stage(2, PROBE)
    pushed = await engine.push(staged)
    assert pushed.probe_max_abs < NOISE
    assert engine.weight_version == 2
    after = await engine.score(PROBE)
    assert_close(after, staged.probe_logprobs)
    assert gap(after, before)[1] > FAR, "the steps changed too little to tell old weights from new ones"
    assert (await generate(engine)).token_ids != sampled.token_ids
    return after


async def refuse(engine: LocalEngine, staged: StagedWeights) -> None:
    """A push that lacks a tensor is refused, and the engine goes on as it was."""
    before, version = await generate(engine), engine.weight_version
    names = {field: getattr(staged, field)[:-1] for field in ("names", "dtypes", "shapes", "offsets")}
    with pytest.raises(PushRefused, match="is missing"):
        await engine.push(replace(staged, **names).sealed())
    assert await generate(engine) == before
    assert engine.weight_version == version


@pytest.mark.anyio
async def test_a_hybrid_model_goes_from_engine_to_learner_and_back(tmp_path: Path) -> None:
    """Sampling, scoring, steps, push, probe, refusal, restoring and export agree between vLLM and the learner."""
    torch.set_num_threads(1)
    folder, exported = tiny_qwen35(tmp_path / "model"), tmp_path / "export"
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    config = tiny_config(
        str(folder),
        model={"dtype": "bfloat16"},
        algorithm=FD,
        learner={"lr": 1e-2, "zero_stage": 2, "cpu_threads": 1, "start_timeout_s": 400},
    )
    async with open_bfloat16(folder, tmp_path) as engine:
        await compare_with_transformers(engine, base)
        async with start_learner(config, run_dir=tmp_path) as learner:
            trained = await train_and_push(engine, learner)
            await learner.export(exported)
            (tmp_path / "checkpoint").mkdir()
            await learner.save(tmp_path / "checkpoint")
        await engine.push(stage(base, tmp_path / "weights.bin", 3))
        original = await generate(engine)
        await refuse(engine, stage(AutoModelForCausalLM.from_pretrained(exported), tmp_path / "weights.bin", 4))
        await engine.push(stage(base, tmp_path / "weights.bin", 5))
        again = await generate(engine)
        assert (again.token_ids, again.logprobs) == (original.token_ids, original.logprobs)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.bfloat16).eval()
    assert_close(logprobs(model, PROBE), trained)
    async with open_bfloat16(exported, tmp_path) as engine:
        loaded = await engine.score(PROBE)
        # vLLM runs an export in its text class, which computes the same in another order.
        assert gap(loaded, trained)[0] < SAME
        await engine.push(stage(model, tmp_path / "weights.bin", 1))
        assert await engine.score(PROBE) == loaded


LOOP = {
    "model.dtype": "bfloat16",
    "model.tool_format": "qwen3_5",
    "run.max_steps": 3,
    "policy.max_model_len": 1408,
    "policy.max_num_seqs": 8,
    "policy.kv_cache_gib": 0.25,
    "policy.probe_tolerance": NOISE,
    "policy.start_timeout_s": 400.0,
    "rollout.concurrency": 8,
    "rollout.max_prompt_tokens": 1024,
    "rollout.max_response_tokens": 96,
    "rollout.max_turns": 2,
    "learner.prompts_per_step": 4,
    "learner.cpu_threads": 1,
    "learner.start_timeout_s": 400.0,
    "algorithm.ema_every": 1,
    "algorithm.anchor_every": 1,
    "checkpoint.every_steps": 3,
    "eval.every_steps": 0,
    "eval.at_start": False,
    "eval.at_end": False,
    "telemetry.console": "lines",
}


def command(*words: str, timeout_s: float = 800.0) -> None:
    """Run a command of the project and show the end of its output if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "fd_async.cli", *words], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_a_hybrid_model_goes_through_the_whole_loop(tmp_path: Path) -> None:
    """fd-run samples, gets feedback, learns, pushes and saves; fd-export writes what vLLM's class reads."""
    folder = tiny_qwen35(tmp_path / "model")
    sets = LOOP | {"model.path": str(folder), "run.dir": str(tmp_path)}
    values = [f"{key}={json.dumps(value)}" for key, value in sets.items()]
    options = [word for value in values for word in ("--set", value)]
    command("run", "--config", "configs/tiny_fd.toml", "--run", "hybrid", *options)
    rows = read_rows(tmp_path / "hybrid" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["weight_version"] for row in rows] == [1, 2, 3]
    assert all(0.0 < row["push/probe_max_abs"] < NOISE for row in rows)
    assert all(row["tokens/trained"] > 0 and row["grad_norm"] > 0 for row in rows)
    # Sampled by vLLM and scored by the learner under the same weights: only bfloat16 is between them.
    assert rows[0]["policy/mismatch_kl_fresh"] < 0.01
    command("export", str(tmp_path / "hybrid"), "--to", str(tmp_path / "export"))
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3_5ForCausalLM"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.bfloat16)
    start = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert model.state_dict().keys() == start.state_dict().keys()
    assert gap(logprobs(model.eval(), PROBE), logprobs(start.eval(), PROBE))[1] > 0.0
