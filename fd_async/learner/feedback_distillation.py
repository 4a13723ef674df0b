"""Feedback Distillation: the student under its prompt follows the teacher under prompt + feedback (paper section 3).

The anchor (`algorithm.anchor_weight`) has the student follow the teacher under feedback too, on some steps and
samples. Without it the weights that follow feedback are never trained, the average carries the loss of that skill
into the teacher, and the teacher then teaches nothing. The targets are those that the step has anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from fd_async.algorithms.distillation import StudentLoss, student_cross_entropy
from fd_async.algorithms.importance import Importance, RowWeights, effective_share, sequence_weights
from fd_async.algorithms.lm_head import Head
from fd_async.algorithms.targets import TeacherTargets, teacher_top_k, top_k_overlap
from fd_async.config.schema import RunConfig
from fd_async.learner.batching import MicroBatch, Rows
from fd_async.learner.causality import Causality
from fd_async.learner.kept_targets import KeptTargets
from fd_async.learner.objectives import StepContext, TrainingEngine, add_mismatch, chosen, mismatch_metrics
from fd_async.learner.shadow import Shadow
from fd_async.learner.token_scores import keep_scores
from fd_async.learner.totals import Totals
from fd_async.types import TrainingSample

GAIN_RETENTION = 0.9
"""Of the running mean of the gain from feedback that `algorithm.ema_min_gain` is compared with."""


class FeedbackDistillation:
    """Student under its prompt follows the EMA teacher under prompt + feedback; optionally the anchor."""

    totals: ClassVar = (
        *("loss", "anchor_loss", "tokens", "student_entropy", "student_mass", "teacher_mass", "teacher_entropy"),
        *(
            "cross_entropy",
            "teacher_p_log_p",
            "gain",
            "overlap",
            "gain_tokens",
            "mismatch",
            "fresh_mismatch",
            "fresh_tokens",
        ),
        *("importance", "importance_squared", "capped"),
        *Causality.totals,
    )

    def __init__(self, config: RunConfig, teacher: Shadow) -> None:
        self.shadow, self._algorithm = teacher, config.algorithm
        self._chunk_tokens = config.learner.lm_head_chunk_tokens
        self._temperature = config.rollout.temperature
        self._targets = KeptTargets(config.algorithm.top_k)
        """Of the current step, under true feedback."""
        self._causality = Causality(config, self._targets)
        self.progress: dict[str, float] = {"updates": 0, "held": 0, "age": 0}
        """Teacher updates made and held back, gradient steps since the last, `gain`: running mean. Checkpointed."""

    def has_anchor(self, step: int) -> bool:
        """Tell whether the anchor is part of this step."""
        return self._algorithm.anchor_weight > 0 and step % self._algorithm.anchor_every == 0

    def before(self, samples: Sequence[TrainingSample], engine: TrainingEngine, context: StepContext) -> None:
        """Take the teacher's targets of all samples, and its gain from feedback on some."""
        self._targets.clear()
        self._causality.clear()
        with context.clock("teacher"), engine.wearing(self.shadow):
            for batch in context.batches(samples):
                self._targets.keep(batch, self._look(engine, batch.teacher()))
            for batch in context.batches(chosen(samples, context.gain_ids)):
                self._measure_gain(engine, batch, context.totals)
            if self._causality.is_due(context.step):
                self._causality.look(samples, engine, context)

    def learn(self, samples: Sequence[TrainingSample], engine: TrainingEngine, context: StepContext) -> None:
        """Forward and backward of every micro-batch, then of the anchor's."""
        with context.clock("student"):
            for batch in context.batches(samples):
                self._measure(batch, self._learn_batch(engine, batch, context), context)
        if not self.has_anchor(context.step):
            return
        with context.clock("anchor"):
            taken, factor = samples, 1.0
            if self._algorithm.anchor_share < 1:
                # Few samples make a share only about that large: what counts is how many they are.
                taken, factor = chosen(samples, context.anchor_ids), context.num_samples / len(context.anchor_ids)
            for batch in context.batches(taken):
                rows, targets = batch.teacher(), self._targets_of(batch)
                anchor = engine(rows, self._following(rows, targets, self._weights(batch, "none")))
                engine.backward(anchor.loss * (context.scale * self._algorithm.anchor_weight * factor))
                context.totals.add("anchor_loss", anchor.loss * factor)

    def after(self, step: int, engine: TrainingEngine, sums: dict[str, float]) -> None:
        """Move the teacher on every `ema_every`-th step, unless its gain from feedback has fallen too low."""
        algorithm, progress, gain = self._algorithm, self.progress, self._gain(sums)
        progress["age"] += 1
        if gain is not None and math.isfinite(gain):  # one that is not would stay in the mean for ever
            before = progress.get("gain", gain)
            progress["gain"] = GAIN_RETENTION * before + (1 - GAIN_RETENTION) * gain
        if step % algorithm.ema_every or algorithm.ema_retention == 1.0:
            return
        if algorithm.ema_min_gain and progress.get("gain", algorithm.ema_min_gain) < algorithm.ema_min_gain:
            progress["held"] += 1
            return
        self.shadow.follow(engine.shards.flats, algorithm.ema_retention)
        progress["updates"], progress["age"] = progress["updates"] + 1, 0

    def _gain(self, sums: dict[str, float]) -> float | None:
        """Return the step's gain from feedback, nats per token, where it was measured."""
        return sums["gain"] / sums["gain_tokens"] if sums["gain_tokens"] else None

    def metrics(self, sums: dict[str, float], divisor: float, step: int) -> dict[str, float]:
        """Turn reduced totals into metrics; `divisor` is the global token or sequence count."""
        tokens = sums["tokens"]
        metrics = {
            "loss": sums["loss"] / divisor,
            "teacher/topk_mass": sums["teacher_mass"] / tokens,
            "teacher/entropy": sums["teacher_entropy"] / tokens,
            "teacher/age_steps": self.progress["age"],
            "teacher/updates": self.progress["updates"],
            "policy/entropy": sums["student_entropy"] / tokens,
            "policy/topk_mass": sums["student_mass"] / tokens,
            "policy/teacher_kl": (sums["cross_entropy"] + sums["teacher_p_log_p"]) / tokens,
        } | mismatch_metrics(sums)
        if (gain := self._gain(sums)) is not None:
            metrics["teacher/feedback_gain"] = gain
            metrics["policy/topk_overlap"] = sums["overlap"] / sums["gain_tokens"]
        if self._algorithm.ema_min_gain:
            metrics["teacher/updates_held"] = self.progress["held"]
        if self.has_anchor(step):
            metrics["anchor/loss"] = sums["anchor_loss"] / divisor
        if self._algorithm.importance != "none":
            metrics["importance/mean"] = sums["importance"] / tokens
            metrics["importance/effective_share"] = effective_share(
                sums["importance"], sums["importance_squared"], tokens
            )
            metrics["importance/cap_fraction"] = sums["capped"] / tokens
        return metrics | self._causality.metrics(sums)

    def _look(self, engine: TrainingEngine, rows: Rows) -> TeacherTargets:
        return engine(
            rows,
            lambda hidden_TH, head: teacher_top_k(
                hidden_TH, head, rows.sampled_ids_T, top_k=self._algorithm.top_k, chunk_tokens=self._chunk_tokens
            ),
        )

    def _targets_of(self, batch: MicroBatch) -> TeacherTargets:
        return self._targets.of(batch.samples, batch.device)

    def _following(
        self, rows: Rows, targets: TeacherTargets, weights: RowWeights | None
    ) -> Callable[[Tensor, Head], StudentLoss]:
        return lambda hidden_TH, head: student_cross_entropy(
            hidden_TH,
            head,
            rows.sampled_ids_T,
            targets,
            loss=self._algorithm.loss,
            chunk_tokens=self._chunk_tokens,
            temperature=self._temperature,
            weights=weights,
        )

    def _weights(self, batch: MicroBatch, importance: Importance) -> RowWeights:
        """Weigh every token by its sequence's length and by how the policy has moved, as far as configured."""
        by_length = self._algorithm.normalisation == "sequence_mean"
        return RowWeights(
            factor_T=sequence_weights(batch.num_sampled, batch.device) if by_length else None,
            importance=importance,
            cap=self._algorithm.importance_cap,
            behaviour_T=batch.behaviour_T(),
            lengths=batch.num_sampled,
        )

    def _learn_batch(self, engine: TrainingEngine, batch: MicroBatch, context: StepContext) -> StudentLoss:
        """Take the gradient of one micro-batch."""
        rows, targets = batch.student(), self._targets_of(batch)
        weights = self._weights(batch, self._algorithm.importance)
        watched_T = batch.is_one_of_T(context.gain_ids)

        def follow(hidden_TH: Tensor, head: Head) -> tuple[StudentLoss, Tensor]:
            loss = self._following(rows, targets, weights)(hidden_TH, head)
            watched = TeacherTargets(*(column[watched_T] for column in targets))
            overlap_T = top_k_overlap(hidden_TH[watched_T], head, watched, chunk_tokens=self._chunk_tokens)
            if self._causality.is_due(context.step):
                self._causality.compare(batch, rows, hidden_TH, head, loss, context)
            return loss, overlap_T.sum()

        loss, overlap = engine(rows, follow)
        engine.backward(loss.loss * context.scale)
        context.totals.add("overlap", overlap)
        return loss

    def _measure_gain(self, engine: TrainingEngine, batch: MicroBatch, totals: Totals) -> None:
        """Sum p (log p with feedback - log p without) over the teacher's top K. The module wears the teacher."""
        targets = self._targets_of(batch)
        rows = batch.student()
        without = engine(rows, self._following(rows, targets, None))
        totals.add("gain", targets.negative_entropy_T + without.cross_entropy_T)
        totals.add("gain_tokens", len(targets.mass_T))

    def _measure(self, batch: MicroBatch, loss: StudentLoss, context: StepContext) -> None:
        targets, add = self._targets_of(batch), context.totals.add
        add("loss", loss.loss)
        add("tokens", len(targets.mass_T))
        add("cross_entropy", loss.cross_entropy_T)
        add("student_entropy", loss.entropy_T)
        add("student_mass", loss.mass_T)
        add("teacher_mass", targets.mass_T)
        add("teacher_entropy", targets.entropy_T)
        add("teacher_p_log_p", targets.negative_entropy_T)
        add("importance", loss.importance_T)
        add("importance_squared", loss.importance_T.square())
        add("capped", loss.capped_T)
        add_mismatch(batch, loss.sampled_logprobs_T, context.totals)
        keep_scores(batch, targets.sampled_logprobs_T - loss.logprobs_T, targets, context)
