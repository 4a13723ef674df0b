"""Does the teacher listen to what the feedback says? Measured on some steps (`algorithm.causality_every`).

For the attempts that carry `shuffled_prompt_ids`, per sampled token and over the teacher's top K under that prompt:

    kl_X    sum p_X (log p_X - log q)           X: prompt + true feedback, + another attempt's, + none
    gain_X  sum p_X (log p_X - log p_empty)     how far the feedback alone moves the teacher, with its own weights

q is the student under its own prompt, before the step. Nothing here touches gradients, weights or the division of the
batch: a step is the same to the bit with and without. Truncated to the top K, a sum may lie a little below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import msgspec
import torch
from torch import Tensor

from fd_async.algorithms.distillation import StudentLoss, student_cross_entropy
from fd_async.algorithms.lm_head import Head
from fd_async.algorithms.targets import TeacherTargets, teacher_top_k
from fd_async.config.schema import RunConfig
from fd_async.learner.batching import MicroBatch, Rows
from fd_async.learner.kept_targets import KeptTargets
from fd_async.learner.objectives import StepContext, TrainingEngine
from fd_async.learner.totals import Totals
from fd_async.types import TrainingSample

_SUMS = ("kl_true", "kl_shuffled", "kl_empty", "gain_true", "gain_shuffled")


class Causality:
    """Keeps what the teacher says under other contexts until the student's pass over the same tokens."""

    totals: ClassVar = (*(f"causality_{name}" for name in _SUMS), "causality_tokens", "causality_shuffled_tokens")

    def __init__(self, config: RunConfig, true: KeptTargets) -> None:
        """Measure beside an objective that fills `true` with the targets under true feedback."""
        self._true = true
        self._every, self._top_k = config.algorithm.causality_every, config.algorithm.top_k
        self._chunk_tokens = config.learner.lm_head_chunk_tokens
        self._shuffled, self._empty = KeptTargets(self._top_k), KeptTargets(self._top_k)

    def is_due(self, step: int) -> bool:
        """Tell whether this step measures; the same on every rank, whatever its samples."""
        return self._every > 0 and step % self._every == 0

    def clear(self) -> None:
        """Forget the step before."""
        self._shuffled.clear()
        self._empty.clear()

    def look(self, samples: Sequence[TrainingSample], engine: TrainingEngine, context: StepContext) -> None:
        """Ask the teacher under other feedback and under none; the module wears it. Collective."""
        measured = [sample for sample in samples if sample.shuffled_prompt_ids is not None]
        others = [msgspec.structs.replace(s, teacher_prompt_ids=s.shuffled_prompt_ids) for s in _exchanged(measured)]
        for batch in context.batches(others):
            rows = batch.teacher()
            self._shuffled.keep(batch, engine(rows, self._top(rows)))
        for batch in context.batches(measured):
            rows = batch.student()
            self._empty.keep(batch, engine(rows, self._top_and_gains(rows, batch, context.totals)))

    def compare(
        self, batch: MicroBatch, rows: Rows, hidden_TH: Tensor, head: Head, loss: StudentLoss, context: StepContext
    ) -> None:
        """Add a micro-batch's distances, from the pass of the student that is made anyway.

        Args:
            batch: any; what is not measured is left out.
            rows: its rows under the student's prompt.
            hidden_TH: the student's hidden states of all sampled tokens.
            head: to logits.
            loss: the student's, of the same rows and the true targets.
            context: of the step.
        """
        measured = [sample for sample in batch.samples if sample.shuffled_prompt_ids is not None]
        if not measured:
            return
        add, own_T = context.totals.add, batch.is_one_of_T(_ids(measured))
        add("causality_tokens", own_T)
        add("causality_kl_true", loss.cross_entropy_T[own_T] + self._true.of(measured, batch.device).negative_entropy_T)
        empty = self._empty.of(measured, batch.device)
        add("causality_kl_empty", self._distance(hidden_TH, head, rows, own_T, empty))
        if exchanged := _exchanged(measured):
            other_T = batch.is_one_of_T(_ids(exchanged))
            shuffled = self._shuffled.of(exchanged, batch.device)
            add("causality_shuffled_tokens", other_T)
            add("causality_kl_shuffled", self._distance(hidden_TH, head, rows, other_T, shuffled))

    @staticmethod
    def metrics(sums: dict[str, float]) -> dict[str, float]:
        """Turn reduced totals into `causality/*`; none on a step that measured nothing."""
        tokens = dict.fromkeys(_SUMS, sums["causality_tokens"])
        tokens |= dict.fromkeys(("kl_shuffled", "gain_shuffled"), sums["causality_shuffled_tokens"])
        return {f"causality/{name}": sums[f"causality_{name}"] / tokens[name] for name in _SUMS if tokens[name]}

    def _top(self, rows: Rows) -> Callable[[Tensor, Head], TeacherTargets]:
        return lambda hidden_TH, head: teacher_top_k(
            hidden_TH, head, rows.sampled_ids_T, top_k=self._top_k, chunk_tokens=self._chunk_tokens
        )

    def _top_and_gains(self, rows: Rows, batch: MicroBatch, totals: Totals) -> Callable[[Tensor, Head], TeacherTargets]:
        """Take the bare teacher's targets, and its distance from itself under both kinds of feedback."""
        exchanged = _exchanged(batch.samples)
        sides = (
            ("causality_gain_true", batch.samples, self._true),
            ("causality_gain_shuffled", exchanged, self._shuffled),
        )

        def follow(hidden_TH: Tensor, head: Head) -> TeacherTargets:
            for name, samples, kept in sides:
                if samples:
                    rows_T = batch.is_one_of_T(_ids(samples))
                    targets = kept.of(samples, batch.device)
                    totals.add(name, self._distance(hidden_TH, head, rows, rows_T, targets))
            return self._top(rows)(hidden_TH, head)

        return follow

    @torch.no_grad()
    def _distance(self, hidden_TH: Tensor, head: Head, rows: Rows, rows_T: Tensor, targets: TeacherTargets) -> Tensor:
        """Return sum p (log p - log q) of the marked rows, p being the targets and q what the hidden states say."""
        found = student_cross_entropy(
            hidden_TH[rows_T], head, rows.sampled_ids_T[rows_T], targets, chunk_tokens=self._chunk_tokens
        )
        return targets.negative_entropy_T + found.cross_entropy_T


def _exchanged(samples: Sequence[TrainingSample]) -> list[TrainingSample]:
    return [sample for sample in samples if sample.shuffled_prompt_ids]


def _ids(samples: Sequence[TrainingSample]) -> frozenset[str]:
    return frozenset(sample.rollout_id for sample in samples)
