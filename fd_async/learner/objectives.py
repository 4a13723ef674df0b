"""What one micro-batch contributes to a step: Feedback Distillation or GRPO.

Each objective runs the forward passes of a micro-batch, calls backward on losses already divided by the global
count, and adds to the step's totals. Divisor, totals and rollout ids arrive in a `StepContext`.
Suffix: _T sampled tokens of the micro-batch, sample after sample.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from fd_async.algorithms.distillation import StudentLoss, TeacherTargets, student_cross_entropy, teacher_top_k
from fd_async.algorithms.grpo import clipped_policy_loss, kl_k3
from fd_async.algorithms.lm_head import token_logprobs
from fd_async.config.schema import RunConfig
from fd_async.learner.batching import MicroBatch, Rows
from fd_async.learner.model import Objective, Policy, Teacher
from fd_async.learner.totals import Stopwatch, Totals


class TrainingEngine(Protocol):
    """What an objective and the trainer need of `engine.Engine`."""

    policy: Policy

    def __call__(self, rows: Rows, objective: Objective) -> Any: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, lr: float) -> float: ...
    def discard_gradients(self) -> None: ...
    def full_precision_parameters(self) -> dict[str, Tensor]: ...


@dataclass
class StepContext:
    """Shared by the micro-batches of one step."""

    step: int
    scale: float
    """Multiplies a summed loss before backward: ranks / global count, since the engine averages over ranks."""
    totals: Totals
    clock: Stopwatch
    score_ids: frozenset[str]
    gain_ids: frozenset[str]
    token_deltas: dict[str, list[float]] = field(default_factory=dict)


class FeedbackDistillation:
    """Student under its prompt follows the EMA teacher under prompt + feedback; optionally the anchor."""

    totals = (
        *("loss", "anchor_loss", "tokens", "student_entropy", "student_mass", "teacher_mass", "teacher_entropy"),
        *("teacher_p_log_p", "gain", "gain_tokens", "mismatch", "fresh_mismatch", "fresh_tokens"),
    )

    def __init__(self, config: RunConfig, teacher: Teacher) -> None:
        self._teacher, self._algorithm = teacher, config.algorithm
        self._chunk_tokens = config.learner.lm_head_chunk_tokens
        self._temperature = config.rollout.temperature

    def has_anchor(self, step: int) -> bool:
        """Tell whether the anchor is part of this step."""
        return self._algorithm.anchor_weight > 0 and step % self._algorithm.anchor_every == 0

    def run(self, batch: MicroBatch, engine: TrainingEngine, context: StepContext) -> None:
        """Forward and backward of one micro-batch."""
        with context.clock("teacher"):
            targets = self._targets(batch.teacher())
        with context.clock("student"):
            loss = self._follow(engine, batch.student(), targets)
            engine.backward(loss.loss * context.scale)
        if self.has_anchor(context.step):
            with context.clock("anchor"):
                anchor = self._follow(engine, batch.teacher(), targets)
                engine.backward(anchor.loss * (context.scale * self._algorithm.anchor_weight))
            context.totals.add("anchor_loss", anchor.loss)
        with context.clock("teacher"):
            self._measure_gain(batch, targets, context)
        self._measure(batch, targets, loss, context)

    def after_update(self, step: int, engine: TrainingEngine) -> None:
        """Move the teacher on every `ema_every`-th step. Collective."""
        if step % self._algorithm.ema_every == 0 and self._algorithm.ema_retention < 1.0:
            self._teacher.update(engine.full_precision_parameters(), self._algorithm.ema_retention)

    def metrics(self, sums: dict[str, float], divisor: float, step: int) -> dict[str, float]:
        """Turn reduced totals into metrics; `divisor` is the global token or sequence count."""
        tokens = sums["tokens"]
        metrics = {
            "loss": sums["loss"] / divisor,
            "teacher/topk_mass": sums["teacher_mass"] / tokens,
            "teacher/entropy": sums["teacher_entropy"] / tokens,
            "policy/entropy": sums["student_entropy"] / tokens,
            "policy/topk_mass": sums["student_mass"] / tokens,
            "policy/teacher_kl": (sums["loss"] + sums["teacher_p_log_p"]) / tokens,
            "policy/mismatch_kl": sums["mismatch"] / tokens,
        }
        if sums["fresh_tokens"]:
            metrics["policy/mismatch_kl_fresh"] = sums["fresh_mismatch"] / sums["fresh_tokens"]
        if sums["gain_tokens"]:
            metrics["teacher/feedback_gain"] = sums["gain"] / sums["gain_tokens"]
        if self.has_anchor(step):
            metrics["anchor/loss"] = sums["anchor_loss"] / divisor
        return metrics

    @torch.no_grad()
    def _targets(self, rows: Rows) -> TeacherTargets:
        return self._teacher.policy(
            rows,
            lambda hidden_TH, head_VH: teacher_top_k(
                hidden_TH, head_VH, rows.sampled_ids_T, top_k=self._algorithm.top_k, chunk_tokens=self._chunk_tokens
            ),
        )

    def _follow(self, model: TrainingEngine | Policy, rows: Rows, targets: TeacherTargets) -> StudentLoss:
        return model(
            rows,
            lambda hidden_TH, head_VH: student_cross_entropy(
                hidden_TH,
                head_VH,
                rows.sampled_ids_T,
                targets,
                chunk_tokens=self._chunk_tokens,
                temperature=self._temperature,
            ),
        )

    @torch.no_grad()
    def _measure_gain(self, batch: MicroBatch, targets: TeacherTargets, context: StepContext) -> None:
        """Sum p (log p with feedback - log p without) over the teacher's top-K, on a few rollouts."""
        chosen = batch.restrict(context.gain_ids)
        if not chosen.samples:
            return
        keep_T = batch.is_one_of_T(context.gain_ids)
        targets = TeacherTargets(*(column[keep_T] for column in targets))
        without = self._follow(self._teacher.policy, chosen.student(), targets)
        context.totals.add("gain", targets.negative_entropy_T.sum() + without.loss)
        context.totals.add("gain_tokens", len(targets.mass_T))

    def _measure(self, batch: MicroBatch, targets: TeacherTargets, loss: StudentLoss, context: StepContext) -> None:
        add = context.totals.add
        add("loss", loss.loss)
        add("tokens", len(targets.mass_T))
        add("student_entropy", loss.entropy_T)
        add("student_mass", loss.mass_T)
        add("teacher_mass", targets.mass_T)
        add("teacher_entropy", targets.entropy_T)
        add("teacher_p_log_p", targets.negative_entropy_T)
        add_mismatch(batch, loss.sampled_logprobs_T, context.totals)
        delta_T = targets.sampled_logprobs_T - loss.logprobs_T
        for sample, deltas in zip(batch.samples, delta_T.split(batch.num_sampled), strict=True):
            if sample.rollout_id in context.score_ids:
                values = iter(deltas.tolist())
                context.token_deltas[sample.rollout_id] = [
                    next(values) if sampled else 0.0 for sampled in sample.sampled_mask
                ]


class Grpo:
    """Clipped policy gradient on group advantages, with a KL to the frozen reference."""

    totals = (
        *("loss", "tokens", "student_entropy", "kl", "clipped", "capped"),
        *("mismatch", "fresh_mismatch", "fresh_tokens"),
    )

    def __init__(self, config: RunConfig, reference: Policy | None) -> None:
        self._reference, self._algorithm = reference, config.algorithm
        self._chunk_tokens = config.learner.lm_head_chunk_tokens
        self._temperature = config.rollout.temperature

    def run(self, batch: MicroBatch, engine: TrainingEngine, context: StepContext) -> None:
        """Forward and backward of one micro-batch."""
        rows, algorithm = batch.student(), self._algorithm

        def sampled(hidden_TH: Tensor, head_VH: Tensor) -> Any:
            return token_logprobs(
                hidden_TH, head_VH, rows.sampled_ids_T, temperature=self._temperature, chunk_tokens=self._chunk_tokens
            )

        reference_T = None
        if self._reference is not None:
            with context.clock("reference"), torch.no_grad():
                reference_T = self._reference(rows, sampled).logprobs_T
        with context.clock("student"):
            student = engine(rows, sampled)
            result = clipped_policy_loss(
                student.logprobs_T,
                batch.behaviour_T(),
                batch.per_token_T([sample.advantage for sample in batch.samples]),
                clip_low=algorithm.clip_low,
                clip_high=algorithm.clip_high,
                importance_cap=algorithm.importance_cap,
                reference_T=reference_T,
                kl_weight=algorithm.kl_weight,
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

    def after_update(self, step: int, engine: TrainingEngine) -> None:
        """Nothing moves besides the policy."""

    def metrics(self, sums: dict[str, float], divisor: float, step: int) -> dict[str, float]:
        """Turn reduced totals into metrics; `divisor` is the global token or sequence count."""
        tokens = sums["tokens"]
        metrics = {
            "loss": sums["loss"] / divisor,
            "policy/entropy": sums["student_entropy"] / tokens,
            "policy/mismatch_kl": sums["mismatch"] / tokens,
            "grpo/clip_fraction": sums["clipped"] / tokens,
            "grpo/cap_fraction": sums["capped"] / tokens,
        }
        if sums["fresh_tokens"]:
            metrics["policy/mismatch_kl_fresh"] = sums["fresh_mismatch"] / sums["fresh_tokens"]
        if self._reference is not None:
            metrics["grpo/kl"] = sums["kl"] / tokens
        return metrics


def add_mismatch(batch: MicroBatch, logprobs_T: Tensor, totals: Totals) -> None:
    """Estimate KL(engine || learner) from the engine's samples, over all of them and over those of age 0."""
    mismatch_T = kl_k3(batch.behaviour_T(), logprobs_T)
    fresh_T = batch.per_token_T([float(sample.age == 0) for sample in batch.samples])
    totals.add("mismatch", mismatch_T)
    totals.add("fresh_mismatch", mismatch_T * fresh_T)
    totals.add("fresh_tokens", fresh_T)
