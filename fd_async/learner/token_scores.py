"""What a step says of single tokens, for figure 1: how teacher and student differ, and what the teacher would write.

Suffixes: _T sampled tokens, _K top-K of the teacher, _N the tokens at which the two differ most.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fd_async.algorithms.targets import TeacherTargets
from fd_async.learner.batching import MicroBatch
from fd_async.learner.objectives import StepContext

NUM_PLACES = 20
"""Tokens of an attempt whose alternatives are kept."""
NUM_CHOICES = 3
"""Alternatives of each."""


def keep_scores(batch: MicroBatch, delta_T: Tensor, targets: TeacherTargets, context: StepContext) -> None:
    """Put the scores of the batch's `score_ids` into the context.

    Args:
        batch: whose sampled tokens the rows are.
        delta_T: log p_teacher - log p_student of each sampled token.
        targets: of the same rows.
        context: of the step.
    """
    columns = (column.split(batch.num_sampled) for column in (delta_T, targets.ids_TK, targets.logprobs_TK))
    for sample, own_T, ids_TK, logprobs_TK in zip(batch.samples, *columns, strict=True):
        if sample.rollout_id not in context.score_ids:
            continue
        places = [place for place, sampled in enumerate(sample.sampled_mask) if sampled]
        deltas = [0.0] * len(sample.sampled_mask)
        for place, delta in zip(places, own_T.tolist(), strict=True):
            deltas[place] = delta
        context.token_deltas[sample.rollout_id] = deltas
        context.teacher_choices[sample.rollout_id] = _choices(places, own_T, ids_TK, logprobs_TK)


def _choices(
    places: list[int], delta_T: Tensor, ids_TK: Tensor, logprobs_TK: Tensor
) -> dict[int, list[tuple[int, float]]]:
    distance_T = torch.where(delta_T.isfinite(), delta_T.abs(), 0.0)
    rows_N = distance_T.topk(min(NUM_PLACES, len(places))).indices
    best_NK, columns_NK = logprobs_TK[rows_N].topk(min(NUM_CHOICES, logprobs_TK.shape[1]), dim=-1)
    ids_NK = ids_TK[rows_N].gather(1, columns_NK)
    rows = zip(rows_N.tolist(), ids_NK.tolist(), best_NK.exp().tolist(), strict=True)
    return {places[row]: list(zip(ids, shares, strict=True)) for row, ids, shares in sorted(rows)}
