"""Weights of rows in a loss: constants, and importance of tokens that another policy sampled.

With r the ratio learner / engine of a sampled token's probability, `token` weighs row t by r_t and `prefix` by the
product of r over the rows of its sample before t: how much likelier the learner is to be in that state, which is
what a cross-entropy given the state has to correct. Both are truncated at a cap and carry no gradient.
Suffixes: _T rows, sample after sample; _C rows of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Importance = Literal["none", "token", "prefix"]

_LARGEST_LOG = 80.0
"""Keeps a weight finite in float32 where no cap does."""


class RowWeights(NamedTuple):
    """What the rows of a loss count."""

    factor_T: Tensor | None = None
    """Constant per row, for example 1 / rows of its sample; None: 1."""
    importance: Importance = "none"
    cap: float = 0.0
    """Largest importance; 0: none."""
    behaviour_T: Tensor | None = None
    """The engine's log-probs of the sampled tokens; needed unless `importance` is none."""
    lengths: Sequence[int] = ()
    """Rows per sample, in order; needed for `prefix`."""


class ChunkWeights(NamedTuple):
    """Of one chunk's rows, float64."""

    weight_C: Tensor
    """Factor times importance."""
    importance_C: Tensor
    capped_C: Tensor
    """1 where the cap held the importance down."""


class RunningWeights:
    """Computes weights chunk by chunk, in the order of the rows; the ratio of a cut sample is carried on."""

    def __init__(self, weights: RowWeights | None, num_rows: int) -> None:
        self._weights = weights = weights or RowWeights()
        if weights.importance == "none":
            return
        if weights.behaviour_T is None or len(weights.behaviour_T) != num_rows:
            raise ValueError("importance weights need the engine's log-prob of every row")
        if weights.importance == "prefix":
            if sum(weights.lengths) != num_rows:
                raise ValueError(f"rows per sample add up to {sum(weights.lengths)}, not to {num_rows}")
            starts_T = torch.zeros(num_rows + 1, dtype=torch.bool)
            starts_T[torch.tensor([0, *weights.lengths]).cumsum(0)] = True
            self._starts_T = starts_T[:num_rows].to(weights.behaviour_T.device)
            self._total = self._base = torch.zeros((), dtype=torch.float64, device=weights.behaviour_T.device)

    def take(self, rows: slice, logprobs_C: Tensor) -> ChunkWeights:
        """Weigh the next rows, given the learner's log-probs of their tokens at the sampling temperature."""
        weights = self._weights
        importance_C = torch.ones_like(logprobs_C, dtype=torch.float64)
        capped_C = torch.zeros_like(importance_C)
        if weights.importance != "none":
            assert weights.behaviour_T is not None
            log_C = logprobs_C.detach().double() - weights.behaviour_T[rows].double()
            if weights.importance == "prefix":
                log_C = self._before(rows, log_C)
            limit = math.log(weights.cap) if weights.cap else _LARGEST_LOG
            capped_C, importance_C = (log_C > limit).double(), log_C.clamp(max=limit).exp()
        factor_C = 1.0 if weights.factor_T is None else weights.factor_T[rows].double()
        return ChunkWeights(importance_C * factor_C, importance_C, capped_C)

    def _before(self, rows: slice, log_C: Tensor) -> Tensor:
        """Sum the log-ratios of each row's sample before the row."""
        until_C = self._total + log_C.cumsum(0)
        before_C = until_C - log_C
        position_C = torch.arange(len(log_C), device=log_C.device)
        start_C = torch.where(self._starts_T[rows], position_C, -1).cummax(0).values
        base_C = torch.where(start_C >= 0, before_C[start_C.clamp(min=0)], self._base)
        self._total, self._base = until_C[-1], base_C[-1]
        return before_C - base_C


def sequence_weights(lengths: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return 1 / rows of its sample for every row, float32: the weights of `sequence_mean`."""
    lengths_N = torch.tensor(lengths, dtype=torch.long, device=device)
    return (1.0 / lengths_N).repeat_interleave(lengths_N)


def effective_share(weight_sum: float, square_sum: float, count: float) -> float:
    """Return Kish's effective sample size (sum w)^2 / sum w^2 as a share of `count` rows; 1 for equal weights."""
    return weight_sum**2 / (square_sum * count) if square_sum and count else 1.0
