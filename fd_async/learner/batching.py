"""Samples of one micro-batch as tensors.

Sequences are padded on the right and the model is causal, so a real token never sees padding and no attention
mask is needed; position ids are explicit. The token at index i of a sequence is predicted by row i - 1: `rows_T`
points at those rows in the flattened [B * L] hidden states, sampled tokens only, sample after sample.
Suffixes: _B sequences, _L padded length, _T sampled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fd_async.types import TrainingSample


@dataclass(frozen=True)
class Rows:
    """Padded sequences and where their sampled tokens are predicted."""

    input_ids_BL: Tensor
    position_ids_BL: Tensor
    rows_T: Tensor
    sampled_ids_T: Tensor


def collate(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    masks: Sequence[Sequence[bool]],
    device: torch.device,
) -> Rows:
    """Pad prompt + completion of every sequence; `masks` says which completion tokens count."""
    sequences = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    longest = max(len(sequence) for sequence in sequences)
    input_ids_BL = torch.tensor([[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences])
    rows, sampled = [], []
    for index, (prompt, completion, mask) in enumerate(zip(prompts, completions, masks, strict=True)):
        first = index * longest + len(prompt) - 1
        for offset, (token, counts) in enumerate(zip(completion, mask, strict=True)):
            if counts:
                rows.append(first + offset)
                sampled.append(token)
    return Rows(
        input_ids_BL.to(device),
        torch.arange(longest, device=device).expand(len(sequences), longest),
        torch.tensor(rows, dtype=torch.long, device=device),
        torch.tensor(sampled, dtype=torch.long, device=device),
    )


class MicroBatch:
    """Samples that one forward pass takes, with the views that the losses need."""

    def __init__(self, samples: Sequence[TrainingSample], device: torch.device) -> None:
        self.samples, self.device = list(samples), device

    @property
    def num_sampled(self) -> list[int]:
        """Sampled tokens of each sample, in row order."""
        return [sum(sample.sampled_mask) for sample in self.samples]

    def student(self) -> Rows:
        """Prompt without feedback, then the completion. A micro-batch without samples gives one token and no rows."""
        if not self.samples:
            return collate([[0]], [[]], [[]], self.device)
        return self._collate([sample.prompt_ids for sample in self.samples])

    def teacher(self) -> Rows:
        """Prompt with feedback, then the same completion."""
        if not self.samples:
            return self.student()
        return self._collate([sample.teacher_prompt_ids for sample in self.samples])

    def behaviour_T(self) -> Tensor:
        """The engine's log-probs of the sampled tokens, float32."""
        values = [
            logprob
            for sample in self.samples
            for logprob, sampled in zip(sample.logprobs, sample.sampled_mask, strict=True)
            if sampled
        ]
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def per_token_T(self, values: Sequence[float]) -> Tensor:
        """Repeat one value per sample over its sampled tokens, float32."""
        repeats = torch.tensor(self.num_sampled, dtype=torch.long, device=self.device)
        return torch.tensor(values, dtype=torch.float32, device=self.device).repeat_interleave(repeats)

    def is_one_of_T(self, rollout_ids: frozenset[str]) -> Tensor:
        """Mark the sampled tokens of the given rollouts."""
        return self.per_token_T([float(sample.rollout_id in rollout_ids) for sample in self.samples]) > 0

    def restrict(self, rollout_ids: frozenset[str]) -> MicroBatch:
        """Keep only the given rollouts, in the same order."""
        return MicroBatch([s for s in self.samples if s.rollout_id in rollout_ids], self.device)

    def _collate(self, prompts: list[list[int]]) -> Rows:
        return collate(
            prompts,
            [sample.completion_ids for sample in self.samples],
            [sample.sampled_mask for sample in self.samples],
            self.device,
        )
