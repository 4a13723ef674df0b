"""Divides samples: over ranks by tokens, inside a rank into micro-batches by padded tokens. Plain Python.

Invariant: every sample has consistent lengths before it reaches a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

from fd_async.errors import AlignmentError
from fd_async.types import TrainingSample


def check_alignment(sample: TrainingSample, *, needs_teacher: bool) -> None:
    """Refuse a sample whose ids, mask and log-probs do not describe the same tokens.

    Raises:
        AlignmentError: lengths differ, a prompt is empty, or nothing was sampled.
    """
    num = len(sample.completion_ids)
    lengths = {"sampled_mask": len(sample.sampled_mask), "logprobs": len(sample.logprobs)}
    for name, length in lengths.items():
        if length != num:
            raise AlignmentError(f"sample {sample.rollout_id}: {name} has {length} entries, completion_ids {num}")
    if not any(sample.sampled_mask):
        raise AlignmentError(f"sample {sample.rollout_id}: no sampled token; drop it before the learner")
    if not sample.prompt_ids:
        raise AlignmentError(f"sample {sample.rollout_id}: prompt_ids is empty")
    if needs_teacher and not sample.teacher_prompt_ids:
        raise AlignmentError(f"sample {sample.rollout_id}: teacher_prompt_ids is empty under algorithm.type = 'fd'")


def split_by_tokens(samples: Sequence[TrainingSample], num_parts: int) -> list[list[TrainingSample]]:
    """Deal samples to parts so that token counts are nearly equal: longest first, to the lightest part."""
    parts: list[list[TrainingSample]] = [[] for _ in range(num_parts)]
    loads = [0] * num_parts
    for sample in sorted(samples, key=lambda sample: -sample.num_tokens):
        lightest = loads.index(min(loads))
        parts[lightest].append(sample)
        loads[lightest] += sample.num_tokens
    return parts


def micro_batches(samples: Sequence[TrainingSample], max_tokens: int) -> list[list[TrainingSample]]:
    """Group samples of similar length; rows times longest row stays within `max_tokens`, one sample always fits."""
    batches: list[list[TrainingSample]] = []
    for sample in sorted(samples, key=lambda sample: sample.num_tokens):
        if batches and sample.num_tokens * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(sample)
        else:
            batches.append([sample])
    return batches


def evenly_spaced(samples: Sequence[TrainingSample], count: int) -> list[str]:
    """Pick `count` rollout ids (or all) at equal distances."""
    count = min(count, len(samples))
    return [samples[index * len(samples) // count].rollout_id for index in range(count)]
