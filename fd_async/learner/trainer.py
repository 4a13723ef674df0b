"""One gradient step on one rank.

Invariant: the loss is a sum over sampled tokens divided by a count over all ranks, so neither micro-batches nor
ranks change it. Every rank runs the same number of micro-batches; those it lacks are empty, with zero gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fd_async.config.schema import RunConfig
from fd_async.errors import AlignmentError, NonFiniteLoss
from fd_async.learner.batching import MicroBatch
from fd_async.learner.objectives import StepContext, StepObjective, TrainingEngine
from fd_async.learner.split import check_batch, micro_batches
from fd_async.learner.totals import Stopwatch, Totals, max_over_ranks, sum_over_ranks
from fd_async.types import StepReport, TrainingSample


def learning_rate(step: int, lr: float, warmup_steps: int, *, decay_steps: int = 0) -> float:
    """Rise linearly to `lr` at step `warmup_steps`; the first step is 1.

    Then stay, or fall along half a cosine to 0 just after step `decay_steps` where that is not 0.
    """
    if step < warmup_steps:
        return lr * step / warmup_steps
    if not decay_steps:
        return lr
    share = min(1.0, (step - warmup_steps) / max(1, decay_steps + 1 - warmup_steps))
    return lr * 0.5 * (1.0 + math.cos(math.pi * share))


class Trainer:
    """Runs gradient steps with an engine and an objective."""

    def __init__(self, config: RunConfig, engine: TrainingEngine, objective: StepObjective, world_size: int) -> None:
        self._config, self._engine, self._objective = config, engine, objective
        self._world_size, self._device = world_size, engine.policy.device

    def step(
        self,
        samples: Sequence[TrainingSample],
        *,
        step: int,
        score_ids: Sequence[str] = (),
        gain_ids: Sequence[str] = (),
        anchor_ids: Sequence[str] = (),
    ) -> StepReport:
        """Learn from this rank's share of a batch. Collective; totals in the report are those of all ranks.

        Raises:
            AlignmentError: a sample's lengths differ, or no rank has a sampled token.
            NonFiniteLoss: on every rank; weights and teacher are as before.
        """
        check_batch(samples, needs_teacher=self._config.algorithm.type == "fd")
        num_tokens, num_samples = self._global_counts(samples)
        divisor = num_tokens if self._config.algorithm.normalisation == "token_mean" else num_samples
        context = StepContext(
            step=step,
            scale=self._world_size / divisor,
            batches=self._batches,
            totals=Totals(self._objective.totals, self._device),
            clock=Stopwatch(self._device),
            score_ids=frozenset(score_ids),
            gain_ids=frozenset(gain_ids),
            anchor_ids=frozenset(anchor_ids),
            num_samples=num_samples,
        )
        self._objective.before(samples, self._engine, context)
        self._objective.learn(samples, self._engine, context)
        sums = context.totals.reduce()
        if not math.isfinite(sums["loss"] + sums.get("anchor_loss", 0.0)):
            self._engine.discard_gradients()
            raise NonFiniteLoss(f"step {step}: the loss is {sums['loss']}; no weight was changed")
        decay_steps = self._config.run.max_steps if self._config.learner.decay == "cosine" else 0
        lr = learning_rate(step, self._config.learner.lr, self._config.learner.warmup_steps, decay_steps=decay_steps)
        with context.clock("optimizer"):
            grad_norm = self._update(step, lr)
            self._objective.after(step, self._engine, sums)
        metrics = self._objective.metrics(sums, divisor, step)
        metrics |= {"grad_norm": grad_norm, "lr": lr, "tokens/trained": sums["tokens"]}
        metrics |= {f"time/{name}_s": seconds for name, seconds in context.clock.seconds.items()}
        return StepReport(
            step=step, metrics=metrics, token_deltas=context.token_deltas, teacher_choices=context.teacher_choices
        )

    def _batches(self, samples: Sequence[TrainingSample]) -> list[MicroBatch]:
        """Cut this rank's samples into micro-batches, as many as on any rank. Collective."""
        learner = self._config.learner
        packed = learner.packing and not self._engine.policy.why_padded
        groups = micro_batches(samples, learner.micro_batch_tokens, packed=packed)
        groups += [[]] * (max_over_ranks(len(groups), self._device) - len(groups))
        return [MicroBatch(group, self._device, packed=packed) for group in groups]

    def _global_counts(self, samples: Sequence[TrainingSample]) -> tuple[float, float]:
        """Count sampled tokens and samples over all ranks."""
        num_tokens, num_samples = sum_over_ranks(
            [sum(sum(sample.sampled_mask) for sample in samples), len(samples)], self._device
        )
        if not num_tokens:
            raise AlignmentError("the batch holds no sampled token on any rank")
        return num_tokens, num_samples

    def _update(self, step: int, lr: float) -> float:
        try:
            return self._engine.step(lr)
        except NonFiniteLoss as error:
            self._engine.discard_gradients()
            raise NonFiniteLoss(f"step {step}: {error}") from error
