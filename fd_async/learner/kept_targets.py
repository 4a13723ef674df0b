"""What the teacher said of a step's attempts, kept by rollout until the student is asked about the same tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fd_async.algorithms.targets import TeacherTargets
from fd_async.learner.batching import MicroBatch
from fd_async.types import TrainingSample


class KeptTargets:
    """Targets of one step, under one kind of prompt."""

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k
        self._by_rollout: dict[str, TeacherTargets] = {}

    def clear(self) -> None:
        """Forget those of the step before."""
        self._by_rollout = {}

    def keep(self, batch: MicroBatch, targets: TeacherTargets) -> None:
        """Divide the rows of a micro-batch among its rollouts."""
        columns = zip(*(column.split(batch.num_sampled) for column in targets), strict=True)
        for sample, parts in zip(batch.samples, columns, strict=True):
            self._by_rollout[sample.rollout_id] = TeacherTargets(*parts)

    def of(self, samples: Sequence[TrainingSample], device: torch.device) -> TeacherTargets:
        """Join the targets of samples, one after another; no rows without samples."""
        found = [self._by_rollout[sample.rollout_id] for sample in samples]
        if not found:
            ids_TK = torch.zeros(0, self._top_k, dtype=torch.long, device=device)
            none_T = torch.zeros(0, device=device)
            return TeacherTargets(ids_TK, none_T.new_zeros(ids_TK.shape), none_T, none_T, none_T, none_T)
        return TeacherTargets(*(torch.cat(columns) for columns in zip(*found, strict=True)))
