"""Samples of one micro-batch as tensors, packed or padded.

Packed: sequences stand one after another in one row, position ids restart, and `packing` says where the borders
are. Padded: on the right; the model is causal, so a real token never sees padding and no mask is needed. The token at
index i of a sequence is predicted by row i - 1: `rows_T` points at those rows in the flattened hidden states,
sampled tokens only, sample after sample.
Suffixes: _B rows, _L their length (_B is 1 when packed), _T sampled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fd_async.learner.packing import Packing, pack
from fd_async.types import TrainingSample


@dataclass(frozen=True)
class Rows:
    """Sequences and where their sampled tokens are predicted."""

    input_ids_BL: Tensor
    position_ids_BL: Tensor
    rows_T: Tensor
    sampled_ids_T: Tensor
    packing: Packing | None = None
    """Borders inside the row; None where every row is one sequence."""


def collate(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    masks: Sequence[Sequence[bool]],
    device: torch.device,
    packed: bool = False,
) -> Rows:
    """Pack or pad prompt + completion of every sequence; `masks` says which completion tokens count."""
    sequences = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    lengths = [len(sequence) for sequence in sequences]
    longest = max(lengths)
    rows, sampled, start = [], [], 0
    for length, prompt, completion, mask in zip(lengths, prompts, completions, masks, strict=True):
        first = start + len(prompt) - 1
        for offset, (token, counts) in enumerate(zip(completion, mask, strict=True)):
            if counts:
                rows.append(first + offset)
                sampled.append(token)
        start += length if packed else longest
    if packed:
        ids_BL = torch.tensor([[token for sequence in sequences for token in sequence]])
        positions_BL = torch.cat([torch.arange(length) for length in lengths])[None]
    else:
        ids_BL = torch.tensor([[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences])
        positions_BL = torch.arange(longest).expand(len(sequences), longest)
    return Rows(
        ids_BL.to(device),
        positions_BL.to(device),
        torch.tensor(rows, dtype=torch.long, device=device),
        torch.tensor(sampled, dtype=torch.long, device=device),
        pack(lengths, device) if packed and len(lengths) > 1 else None,
    )


class MicroBatch:
    """Samples that one forward pass takes, with the views that the losses need."""

    def __init__(self, samples: Sequence[TrainingSample], device: torch.device, packed: bool = False) -> None:
        self.samples, self.device, self.packed = list(samples), device, packed

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

    def _collate(self, prompts: list[list[int]]) -> Rows:
        return collate(
            prompts,
            [sample.completion_ids for sample in self.samples],
            [sample.sampled_mask for sample in self.samples],
            self.device,
            self.packed,
        )
