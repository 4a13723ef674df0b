"""Divides samples: over ranks by tokens, inside a rank into micro-batches. Plain Python.

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


def check_batch(samples: Sequence[TrainingSample], *, needs_teacher: bool) -> None:
    """Refuse a batch with a bad sample, or with two of the same rollout: what the teacher says is kept by rollout.

    Raises:
        AlignmentError: see `check_alignment`, or a rollout stands there twice.
    """
    seen: set[str] = set()
    for sample in samples:
        check_alignment(sample, needs_teacher=needs_teacher)
        if sample.rollout_id in seen:
            raise AlignmentError(f"sample {sample.rollout_id} is in the batch twice")
        seen.add(sample.rollout_id)


def cost_of(sample: TrainingSample) -> int:
    """Estimate a sample's work in tokens of one forward pass: the student's pass and its backward (twice as much),
    and the teacher's under its own prompt. What attention adds is small beside the layers at these lengths.
    """
    completion = len(sample.completion_ids)
    teacher = len(sample.teacher_prompt_ids) + completion if sample.teacher_prompt_ids else 0
    return 3 * (len(sample.prompt_ids) + completion) + teacher


def split_by_tokens(samples: Sequence[TrainingSample], num_parts: int) -> list[list[TrainingSample]]:
    """Deal samples to parts so that their work is nearly equal: largest first, to the part with the least.

    Parts are empty where there are fewer samples. The order in which samples arrive does not matter.
    """
    parts: list[list[TrainingSample]] = [[] for _ in range(num_parts)]
    loads = [0] * num_parts
    for sample in sorted(samples, key=lambda sample: (-cost_of(sample), sample.rollout_id)):
        lightest = loads.index(min(loads))
        parts[lightest].append(sample)
        loads[lightest] += cost_of(sample)
    return parts


def micro_batches(
    samples: Sequence[TrainingSample], max_tokens: int, packed: bool = False
) -> list[list[TrainingSample]]:
    """Group samples so that a forward pass takes at most `max_tokens`; a longer sample goes alone.

    Packed, real tokens count: longest first, to the first group with room. Padded, similar lengths go together and
    the number of rows times the longest counts.
    """
    return _first_fit(samples, max_tokens) if packed else _similar_lengths(samples, max_tokens)


def _first_fit(samples: Sequence[TrainingSample], max_tokens: int) -> list[list[TrainingSample]]:
    batches: list[list[TrainingSample]] = []
    loads: list[int] = []
    for sample in sorted(samples, key=lambda sample: -sample.num_tokens):
        fitting = (index for index, load in enumerate(loads) if load + sample.num_tokens <= max_tokens)
        index = next(fitting, len(loads))
        if index == len(loads):
            batches.append([])
            loads.append(0)
        batches[index].append(sample)
        loads[index] += sample.num_tokens
    return batches


def _similar_lengths(samples: Sequence[TrainingSample], max_tokens: int) -> list[list[TrainingSample]]:
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
