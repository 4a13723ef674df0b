"""GRPO: the clipped policy gradient on group advantages, with a KL to the frozen reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fd_async.algorithms.grpo import clipped_policy_loss
from fd_async.algorithms.importance import sequence_weights
from fd_async.algorithms.lm_head import token_logprobs
from fd_async.config.schema import RunConfig
from fd_async.learner.batching import MicroBatch, Rows
from fd_async.learner.model import Objective
from fd_async.learner.objectives import StepContext, TrainingEngine, add_mismatch, mismatch_metrics
from fd_async.learner.shadow import Shadow
from fd_async.types import TrainingSample


class Grpo:
    """Clipped policy gradient on group advantages, with a KL to the frozen reference."""

    totals: ClassVar = (
        *("loss", "tokens", "student_entropy", "kl", "clipped", "capped"),
        *("mismatch", "fresh_mismatch", "fresh_tokens"),
    )

    def __init__(self, config: RunConfig, reference: Shadow | None) -> None:
        self.shadow, self._algorithm = reference, config.algorithm
        self._chunk_tokens = config.learner.lm_head_chunk_tokens
        self._temperature = config.rollout.temperature
        self._reference_logprobs: dict[str, Tensor] = {}
        self.progress = {}

    def before(self, samples: Sequence[TrainingSample], engine: TrainingEngine, context: StepContext) -> None:
        """Score all samples with the reference."""
        if self.shadow is None:
            return
        self._reference_logprobs = {}
        with context.clock("reference"), engine.wearing(self.shadow):
            for batch in context.batches(samples):
                rows = batch.student()
                logprobs_T = engine(rows, self._sampled(rows)).logprobs_T
                parts = logprobs_T.split(batch.num_sampled)
                self._reference_logprobs |= {
                    sample.rollout_id: part for sample, part in zip(batch.samples, parts, strict=True)
                }

    def learn(self, samples: Sequence[TrainingSample], engine: TrainingEngine, context: StepContext) -> None:
        """Forward and backward of every micro-batch."""
        with context.clock("student"):
            for batch in context.batches(samples):
                self._learn_batch(engine, batch, context)

    def after(self, step: int, engine: TrainingEngine, sums: dict[str, float]) -> None:
        """Nothing moves besides the policy."""

    def metrics(self, sums: dict[str, float], divisor: float, step: int) -> dict[str, float]:
        """Turn reduced totals into metrics; `divisor` is the global token or sequence count."""
        tokens = sums["tokens"]
        metrics = {
            "loss": sums["loss"] / divisor,
            "policy/entropy": sums["student_entropy"] / tokens,
            "grpo/clip_fraction": sums["clipped"] / tokens,
            "grpo/cap_fraction": sums["capped"] / tokens,
        } | mismatch_metrics(sums)
        if self.shadow is not None:
            metrics["grpo/kl"] = sums["kl"] / tokens
        return metrics

    def _sampled(self, rows: Rows) -> Objective:
        return lambda hidden_TH, head: token_logprobs(
            hidden_TH, head, rows.sampled_ids_T, temperature=self._temperature, chunk_tokens=self._chunk_tokens
        )

    def _learn_batch(self, engine: TrainingEngine, batch: MicroBatch, context: StepContext) -> None:
        rows, algorithm = batch.student(), self._algorithm
        references = [self._reference_logprobs[sample.rollout_id] for sample in batch.samples if self.shadow]
        student = engine(rows, self._sampled(rows))
        result = clipped_policy_loss(
            student.logprobs_T,
            batch.behaviour_T(),
            batch.per_token_T([sample.advantage for sample in batch.samples]),
            clip_low=algorithm.clip_low,
            clip_high=algorithm.clip_high,
            importance_cap=algorithm.importance_cap,
            reference_T=torch.cat(references) if references else None,
            kl_weight=algorithm.kl_weight,
            kl_estimator=algorithm.kl_estimator,
            weights_T=sequence_weights(batch.num_sampled, batch.device)
            if algorithm.normalisation == "sequence_mean"
            else None,
        )
        engine.backward(result.loss * context.scale)
        add = context.totals.add
        add("loss", result.loss)
        add("tokens", len(rows.sampled_ids_T))
        add("student_entropy", student.entropy_T)
        add("kl", result.kl_T)
        add("clipped", result.clipped_T)
        add("capped", result.capped_T)
        add_mismatch(batch, student.logprobs_T.detach(), context.totals)
