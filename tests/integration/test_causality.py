"""Feedback causality on real DeepSpeed ranks: one number for all, and a step that it does not touch by a bit."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from fd_async.learner.feedback_distillation import FeedbackDistillation
from fd_async.learner.split import split_by_tokens
from fd_async.types import TrainingSample
from tests.fakes.rank_group import run_ranks
from tests.fakes.tiny_policy import tiny_config, tiny_samples
from tests.integration.test_exactness import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WAYS: tuple[dict[str, Any], ...] = (
    {"zero_stage": 0},
    {"zero_stage": 2, "micro_batch_tokens": 60},
    {"zero_stage": 3, "micro_batch_tokens": 1},
    {"zero_stage": 3, "packing": False},
)
Result = tuple[np.ndarray, dict[str, float]]


def marked(num_measured: int) -> list[TrainingSample]:
    """Return nine samples, of which the first few are measured, with the hint of the next as another's feedback."""
    samples = tiny_samples(9)
    hints = [sample.teacher_prompt_ids[2 : len(sample.teacher_prompt_ids)] for sample in samples]
    return [
        msgspec.structs.replace(sample, shuffled_prompt_ids=[*sample.prompt_ids[:2], *hints[(index + 1) % 9]])
        if index < num_measured
        else sample
        for index, sample in enumerate(samples)
    ]


def two_steps(way: dict[str, Any], num_measured: int, every: int) -> Result:
    """Train two steps, the second one measured; return all weights and its `causality/*`. Runs on every rank."""
    world_size, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    config = tiny_config(learner={"ranks": world_size} | way, algorithm={"causality_every": every, "ema_every": 1})
    engine, trainer, objective = build(config, world_size)
    assert isinstance(objective, FeedbackDistillation)
    share = split_by_tokens(marked(num_measured), world_size)[rank]
    reports = [trainer.step(share, step=step, gain_ids=[share[0].rollout_id]) for step in (1, 2)]
    assert not any(key.startswith("causality/") for key in reports[0].metrics)
    with engine.gathered(list(engine.shapes)) as whole:
        flat = torch.cat([tensor.float().reshape(-1) for tensor in whole.values()]).numpy().copy()
    return flat, {key: value for key, value in reports[1].metrics.items() if key.startswith("causality/")}


def results(num_measured: int) -> list[tuple[Result, Result]]:
    """Return each way's result without and with the measurement. Runs on every rank."""
    return [(two_steps(way, num_measured, 0), two_steps(way, num_measured, 2)) for way in WAYS]


@pytest.mark.parametrize("num_measured", [5, 1])
def test_ranks_agree_and_the_step_is_untouched(num_measured: int) -> None:
    """Also where one rank has nothing to measure."""
    (expected,) = (found[0][1][1] for found in run_ranks(1, results, num_measured))
    assert len(expected) == 5
    for rank, found in enumerate(run_ranks(2, results, num_measured)):
        for way, (without, measuring) in zip(WAYS, found, strict=True):
            assert np.array_equal(without[0], measuring[0]), f"rank {rank}, {way}"
            assert without[1] == {}
            assert measuring[1] == pytest.approx(expected, rel=1e-4, abs=1e-6), f"rank {rank}, {way}"
