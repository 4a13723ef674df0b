"""What every objective of a step has in common.

    before ▸ the module wears the teacher's (or the reference's) weights: everything that the losses need of it
    learn  ▸ the module has the student's weights again: forward and backward, micro-batch by micro-batch
    after  ▸ the optimizer has stepped: the teacher follows

So one module is enough, and weights change hands twice per step however many micro-batches there are. Losses are
divided by the global count before backward; totals are sums, see `totals`.
Suffix: _T sampled tokens, sample after sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

from fd_async.algorithms.grpo import kl_k3
from fd_async.learner.batching import MicroBatch, Rows
from fd_async.learner.model import Objective, Policy
from fd_async.learner.shadow import Shadow
from fd_async.learner.shards import Shards
from fd_async.learner.totals import Stopwatch, Totals
from fd_async.types import TrainingSample


class TrainingEngine(Protocol):
    """What an objective and the trainer need of `engine.Engine`."""

    policy: Policy
    shards: Shards

    def __call__(self, rows: Rows, objective: Objective) -> Any: ...
    def wearing(self, shadow: Shadow) -> Any: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, lr: float) -> float: ...
    def discard_gradients(self) -> None: ...


@dataclass
class StepContext:
    """Shared by the micro-batches of one step."""

    step: int
    scale: float
    """Multiplies a summed loss before backward: ranks / global count, since the engine averages over ranks."""
    batches: Callable[[Sequence[TrainingSample]], list[MicroBatch]]
    """Cuts samples into as many micro-batches as the rank with the most needs; those it lacks are empty. Collective."""
    totals: Totals
    clock: Stopwatch
    score_ids: frozenset[str]
    gain_ids: frozenset[str]
    anchor_ids: frozenset[str]
    num_samples: float
    """Of all ranks."""
    token_deltas: dict[str, list[float]] = field(default_factory=dict)
    teacher_choices: dict[str, dict[int, list[tuple[int, float]]]] = field(default_factory=dict)
    """Both as in `types.StepReport`."""


class StepObjective(Protocol):
    """Feedback Distillation or GRPO, as the trainer runs it."""

    totals: ClassVar[tuple[str, ...]]
    """Names of the sums over micro-batches and ranks."""
    progress: dict[str, float]
    """What besides weights a checkpoint has to keep."""

    @property
    def shadow(self) -> Shadow | None:
        """Teacher or reference."""
        ...

    def before(self, samples: Sequence[TrainingSample], engine: TrainingEngine, context: StepContext) -> None: ...
    def learn(self, samples: Sequence[TrainingSample], engine: TrainingEngine, context: StepContext) -> None: ...
    def after(self, step: int, engine: TrainingEngine, sums: dict[str, float]) -> None: ...
    def metrics(self, sums: dict[str, float], divisor: float, step: int) -> dict[str, float]:
        """Turn reduced totals into metrics; `divisor` is the global token or sequence count."""
        ...


def add_mismatch(batch: MicroBatch, logprobs_T: Tensor, totals: Totals) -> None:
    """Estimate KL(engine || learner) from the engine's samples, over all of them and over those of age 0."""
    mismatch_T = kl_k3(batch.behaviour_T(), logprobs_T)
    fresh_T = batch.per_token_T([float(sample.age == 0) for sample in batch.samples])
    totals.add("mismatch", mismatch_T)
    totals.add("fresh_mismatch", mismatch_T * fresh_T)
    totals.add("fresh_tokens", fresh_T)


def mismatch_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Return mean mismatches, that of fresh attempts only where there are some."""
    metrics = {"policy/mismatch_kl": sums["mismatch"] / sums["tokens"]}
    if sums["fresh_tokens"]:
        metrics["policy/mismatch_kl_fresh"] = sums["fresh_mismatch"] / sums["fresh_tokens"]
    return metrics


def chosen(samples: Iterable[TrainingSample], rollout_ids: frozenset[str]) -> list[TrainingSample]:
    """Keep the given rollouts, in the same order."""
    return [sample for sample in samples if sample.rollout_id in rollout_ids]
