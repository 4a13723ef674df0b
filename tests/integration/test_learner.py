"""Real rank processes with DeepSpeed on the CPU, driven through the client."""

from __future__ import annotations

import hashlib
import math
import os
import signal
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fd_async.errors import CheckpointError, LearnerError, LearnerRankDied, NonFiniteLoss, PreflightError
from fd_async.learner.checkpoints import checkpoint_id, find_checkpoint, model_folder, read_state
from fd_async.learner.client import Learner, start_learner
from fd_async.pipeline.checkpoints import Checkpoints
from fd_async.types import StagedWeights
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.tiny_policy import tiny_config, tiny_samples

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a random tiny model with a tokenizer to disk."""
    folder = tmp_path_factory.mktemp("model")
    return str(write_tiny_model(folder))


class Runs:
    """Starts learners on the tiny model, each with its own run folder."""

    def __init__(self, model_path: str, folder: Path) -> None:
        self._model_path, self._folder = model_path, folder

    def start(
        self, name: str, resume_from: Path | None = None, **tables: dict[str, Any]
    ) -> AbstractAsyncContextManager[Learner]:
        tables["algorithm"] = {"ema_every": 2, "anchor_weight": 0.2, "anchor_every": 2} | tables.get("algorithm", {})
        tables["learner"] = {"start_timeout_s": 120.0, "step_timeout_s": 60.0} | tables.get("learner", {})
        config = tiny_config(self._model_path, **tables)
        return start_learner(config, run_dir=self._folder / name, resume_from=resume_from)


@pytest.fixture
def runs(model_path: str, tmp_path: Path) -> Runs:
    return Runs(model_path, tmp_path)


def is_file(path: str) -> bool:
    return Path(path).is_file()


def read_staged(staged: StagedWeights) -> dict[str, torch.Tensor]:
    """Cut the staged file into tensors as a reader on the other side would."""
    data = bytearray(Path(staged.path).read_bytes())
    assert len(data) == staged.num_bytes
    assert [hashlib.sha256(data).hexdigest()] == staged.sha256  # one block
    tensors = {}
    for name, dtype, shape, offset in zip(staged.names, staged.dtypes, staged.shapes, staged.offsets, strict=True):
        count = math.prod(shape)
        tensors[name] = torch.frombuffer(data, dtype=getattr(torch, dtype), count=count, offset=offset).view(shape)
    return tensors


async def weights_after(runs: Runs, name: str, num_steps: int = 3, **tables: dict[str, Any]) -> torch.Tensor:
    """Train a few steps and return all weights as one vector."""
    async with runs.start(name, **tables) as learner:
        for step in range(1, num_steps + 1):
            await learner.step(tiny_samples(9, seed=step), step=step)
        staged = read_staged(await learner.stage(num_steps, [1, 2, 3]))
    return torch.cat([tensor.float().reshape(-1) for tensor in staged.values()])


async def test_loss_falls_weights_round_trip_and_the_export_loads(runs: Runs, model_path: str, tmp_path: Path) -> None:
    """Three steps on one batch: the loss falls, staged weights score the probe alike in Hugging Face."""
    samples, probe = tiny_samples(8), [3, 1, 4, 1, 5, 9, 2, 6]
    async with runs.start("run", learner={"lr": 5e-3}) as learner:
        first = await learner.stage(0, probe)
        reports = [await learner.step(samples, step=step) for step in (1, 2, 3)]
        staged = await learner.stage(3, probe)
        tensors = read_staged(staged)
        assert not is_file(first.path)
        folder = tmp_path / "export"
        await learner.export(folder)
    losses = [report.metrics["loss"] for report in reports]
    assert losses[0] > losses[1] > losses[2]
    assert reports[0].token_deltas.keys() <= {sample.rollout_id for sample in samples}
    for key in ("grad_norm", "lr", "teacher/topk_mass", "teacher/entropy", "teacher/feedback_gain", "policy/entropy"):
        assert math.isfinite(reports[-1].metrics[key])
    assert not is_file(staged.path)

    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    assert tensors.keys() == {name for name in model.state_dict() if name != "lm_head.weight"}
    model.load_state_dict(tensors, strict=False)
    for candidate in (model, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)):
        with torch.no_grad():
            logp_LV = candidate(input_ids=torch.tensor([probe])).logits[0].log_softmax(-1)
        scores = logp_LV[:-1].gather(1, torch.tensor(probe[1:])[:, None])[:, 0].tolist()
        assert staged.probe_logprobs == pytest.approx(scores, abs=1e-4)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(model_path).get_vocab()


async def keep(learner: Learner, root: Path, step: int) -> Path:
    """Write a complete checkpoint as a run does."""
    checkpoints = Checkpoints(root, learner, tiny_config(), "x")
    async with checkpoints.running():
        await checkpoints.take(step)
    return find_checkpoint(root, step)


def exact(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


async def train_until_killed(learner: Learner, root: Path) -> None:
    """Take three steps, write a checkpoint beside the next two, and kill all ranks inside the sixth."""
    for step in (1, 2, 3):
        await learner.step(tiny_samples(4, seed=step), step=step)
    checkpoints = Checkpoints(root, learner, tiny_config(), "x")
    async with checkpoints.running():
        await checkpoints.take(3)
        for step in (4, 5):
            await learner.step(tiny_samples(4, seed=step), step=step)
        await checkpoints.settle()
        async with anyio.create_task_group() as group:
            group.start_soon(partial(learner.step, tiny_samples(8000), step=6))  # takes seconds
            await anyio.sleep(0.5)
            for pid in learner.pids:
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "tables",
    [{}, {"learner": {"ranks": 2, "zero_stage": 1}}, {"algorithm": {"type": "grpo"}}],
    ids=["one-rank", "two-ranks", "grpo"],
)
async def test_after_a_kill_of_all_ranks_the_next_ten_steps_are_the_same(
    runs: Runs, tmp_path: Path, tables: dict
) -> None:
    """SIGKILL in step 6, resume from step 3: every metric and weight of ten steps as if nothing had happened."""
    batches = {step: tiny_samples(4, seed=step) for step in range(1, 14)}
    async with runs.start("whole", **tables) as learner:
        reports = [await learner.step(batches[step], step=step) for step in range(1, 14)]
        final = await learner.stage(13, [1, 2, 3])
    with pytest.raises(LearnerRankDied, match="SIGKILL"):
        async with runs.start("killed", **tables) as learner:
            await train_until_killed(learner, tmp_path / "checkpoints")
    checkpoint = find_checkpoint(tmp_path / "checkpoints")
    assert checkpoint.name == "step_000003"
    async with runs.start("resumed", resume_from=checkpoint, **tables) as learner:
        again = [await learner.step(batches[step], step=step) for step in range(4, 14)]
        assert (await learner.stage(13, [1, 2, 3])).sha256 == final.sha256
    assert [exact(report.metrics) for report in again] == [exact(report.metrics) for report in reports[3:]]


async def test_running_ranks_return_to_an_earlier_checkpoint(runs: Runs, tmp_path: Path) -> None:
    """A rollback takes weights, moments and teacher back, exactly, without a new process."""
    async with runs.start("run", learner={"ranks": 2, "zero_stage": 2}) as learner:
        await learner.step(tiny_samples(4, seed=1), step=1)
        checkpoint, before = await keep(learner, tmp_path / "checkpoints", 1), await learner.stage(1, [1, 2, 3])
        first = [await learner.step(tiny_samples(4, seed=step), step=step) for step in (2, 3)]
        await learner.restore(checkpoint)
        assert (await learner.stage(4, [1, 2, 3])).sha256 == before.sha256
        second = [await learner.step(tiny_samples(4, seed=step), step=step) for step in (2, 3)]
    assert [exact(report.metrics) for report in second] == [exact(report.metrics) for report in first]


async def test_a_run_started_from_a_checkpoint_takes_its_weights_alone(runs: Runs, tmp_path: Path) -> None:
    """init_from: the student's weights, a teacher or reference equal to them, a fresh optimizer."""
    async with runs.start("fd") as learner:
        for step in (1, 2):
            await learner.step(tiny_samples(6, seed=step), step=step)
        saved = await learner.stage(2, [1, 2, 3])
        checkpoint = await keep(learner, tmp_path / "runs" / "fd" / "checkpoints", 2)
    assert (model_folder(checkpoint) / "config.json").is_file()
    tables = {"algorithm": {"type": "grpo"}, "model": {"init_from": str(checkpoint)}}
    async with runs.start("grpo", **tables) as learner:
        assert (await learner.stage(0, [1, 2, 3])).sha256 == saved.sha256
        assert (await learner.step(tiny_samples(4), step=1)).metrics["grpo/kl"] == pytest.approx(0.0, abs=1e-9)
        second = await keep(learner, tmp_path / "runs" / "grpo" / "checkpoints", 1)
        kl = (await learner.step(tiny_samples(4), step=2)).metrics["grpo/kl"]
    assert kl > 0.0
    assert read_state(second).origin_id == checkpoint_id(checkpoint)
    (tmp_path / "runs").rename(tmp_path / "moved")  # the reference is found beside the run
    second = tmp_path / "moved" / second.relative_to(tmp_path / "runs")
    async with runs.start("grpo-again", resume_from=second, **tables) as learner:
        assert (await learner.step(tiny_samples(4), step=2)).metrics["grpo/kl"] == kl


async def test_ranks_and_zero_stages_do_not_change_the_weights(runs: Runs) -> None:
    """One rank, two ranks, ZeRO 1 and 2 agree within 1e-6, relative, after three steps."""
    alone = await weights_after(runs, "r1")
    for name, learner in (
        ("r2", {"ranks": 2}),
        ("r2z1", {"ranks": 2, "zero_stage": 1}),
        ("r2z2", {"ranks": 2, "zero_stage": 2}),
    ):
        other = await weights_after(runs, name, learner=learner)
        assert (other - alone).norm() <= 1e-6 * alone.norm(), name


async def test_a_rank_without_samples_takes_part(runs: Runs) -> None:
    """One sample on two ranks gives the weights of one rank."""
    results = []
    for ranks in (1, 2):
        async with runs.start(f"r{ranks}", learner={"ranks": ranks, "zero_stage": 2 * (ranks - 1)}) as learner:
            await learner.step(tiny_samples(1), step=2)
            staged = read_staged(await learner.stage(1, [1, 2]))
            results.append(torch.cat([tensor.reshape(-1) for tensor in staged.values()]))
    assert (results[0] - results[1]).norm() <= 1e-6 * results[0].norm()


async def test_a_killed_rank_ends_the_block_with_its_log(runs: Runs) -> None:
    """SIGKILL of one of two ranks in the middle of work: LearnerRankDied, at once, with signal and log."""
    pids: list[int] = []
    with pytest.raises(LearnerRankDied, match=r"learner rank 1 .*SIGKILL") as caught:
        await _train_and_kill(runs, pids)
    assert "learner-1.log" in str(caught.value)
    assert len(str(caught.value).splitlines()) > 1
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def _train_and_kill(runs: Runs, pids: list[int]) -> None:
    async with runs.start("run", learner={"ranks": 2}) as learner:
        pids.extend(learner.pids)
        await learner.step(tiny_samples(8), step=1)
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                group.start_soon(_train_forever, learner)
                await anyio.sleep(0.2)
                os.kill(pids[1], signal.SIGKILL)
                await anyio.sleep_forever()


async def _train_forever(learner: Learner) -> None:
    step = 1
    while True:
        step += 1
        await learner.step(tiny_samples(64), step=step)


@pytest.mark.parametrize(
    "tables",
    [
        {"learner": {"ranks": 2}},
        {"learner": {"ranks": 2, "zero_stage": 2}},
        {"model": {"dtype": "bfloat16"}},
    ],
    ids=["zero-0", "zero-2", "bfloat16"],
)
async def test_a_step_that_is_not_finite_leaves_weights_and_learner_usable(runs: Runs, tables: dict) -> None:
    """An infinite loss, then a finite loss with an overflowing gradient norm: refused; the next step works."""
    async with runs.start("run", algorithm={"type": "grpo"}, **tables) as learner:
        before = await learner.stage(0, [1, 2])
        for advantage, message in ((float("inf"), "step 1: the loss"), (1e37, "step 1: the gradient norm")):
            broken = [msgspec.structs.replace(s, advantage=advantage) for s in tiny_samples(2)]
            with pytest.raises(NonFiniteLoss, match=message):
                await learner.step(broken, step=1)
            assert (await learner.stage(0, [1, 2])).sha256 == before.sha256
        assert math.isfinite((await learner.step(tiny_samples(4), step=1)).metrics["loss"])
        assert (await learner.stage(1, [1, 2])).sha256 != before.sha256


async def test_a_late_step_names_its_deadline(runs: Runs) -> None:
    """The error names the config key, and the stacks of the rank are in its log."""
    with pytest.raises(LearnerError, match=r"gradient step 1 took longer than learner\.step_timeout_s") as caught:
        async with runs.start("run", learner={"step_timeout_s": 0.2}) as learner:
            await learner.step(tiny_samples(3000), step=1)
    assert "learner rank 0 (pid " in str(caught.value)


async def test_start_up_failures_name_their_key(runs: Runs, tmp_path: Path) -> None:
    """A missing model, another type on resume."""
    with pytest.raises(PreflightError, match=r"model\.path"):
        async with runs.start("missing", model={"path": str(tmp_path / "nowhere")}):
            pass
    async with runs.start("one") as learner:
        checkpoint = await keep(learner, tmp_path / "checkpoints", 0)
    with pytest.raises(CheckpointError, match=r"model\.dtype = 'float32', the configuration says 'bfloat16'"):
        async with runs.start("two", resume_from=checkpoint, model={"dtype": "bfloat16"}):
            pass
