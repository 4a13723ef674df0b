"""Dividing samples over ranks and micro-batches."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fd_async.errors import AlignmentError
from fd_async.learner.split import check_alignment, cost_of, evenly_spaced, micro_batches, split_by_tokens
from fd_async.types import TrainingSample


def sample_of(length: int, name: str = "a") -> TrainingSample:
    return TrainingSample(
        rollout_id=name,
        prompt_ids=[1],
        completion_ids=[2] * length,
        sampled_mask=[True] * length,
        logprobs=[-1.0] * length,
        teacher_prompt_ids=[1],
    )


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 900), st.integers(1, 900)), max_size=24),
    st.integers(1, 7),
    st.randoms(),
)
def test_ranks_get_every_sample_once_and_near_equal_work(
    sizes: list[tuple[int, int, int]], num_ranks: int, rng: random.Random
) -> None:
    """Loads differ by at most the largest sample, teacher's prompts counted, whatever order samples arrive in."""
    samples = [
        msgspec.structs.replace(
            sample_of(completion, str(index)), prompt_ids=[1] * prompt, teacher_prompt_ids=[1] * hint
        )
        for index, (prompt, hint, completion) in enumerate(sizes)
    ]
    parts = split_by_tokens(samples, num_ranks)
    assert len(parts) == num_ranks
    assert sorted(s.rollout_id for part in parts for s in part) == sorted(s.rollout_id for s in samples)
    loads = [sum(map(cost_of, part)) for part in parts]
    assert max(loads) - min(loads) <= max(map(cost_of, samples), default=0)
    assert sum(not part for part in parts) == max(0, num_ranks - len(samples))
    shuffled = rng.sample(samples, len(samples))
    assert split_by_tokens(shuffled, num_ranks) == parts


def test_a_long_feedback_is_work_too() -> None:
    """Of two equal completions the one with long feedback goes first, and the short ones gather elsewhere."""
    plain = [sample_of(100, name) for name in "abc"]
    long = msgspec.structs.replace(plain[0], rollout_id="long", teacher_prompt_ids=[1] * 2000)
    parts = split_by_tokens([*plain, long], 2)
    assert [[s.rollout_id for s in part] for part in parts] == [["long"], ["a", "b", "c"]]


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(2, 2000))
def test_micro_batches_stay_within_the_padded_budget(lengths: list[int], budget: int) -> None:
    """Rows times longest row fits, unless a single sample is longer than the budget."""
    batches = micro_batches([sample_of(length, str(index)) for index, length in enumerate(lengths)], budget)
    assert sum(len(batch) for batch in batches) == len(lengths)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(s.num_tokens for s in batch) <= budget


@given(st.lists(st.integers(1, 500), max_size=40), st.integers(2, 2000))
def test_packed_micro_batches_count_real_tokens_and_leave_no_room(lengths: list[int], budget: int) -> None:
    """Sums fit, unless a single sample is longer than the budget; no sample would fit into an earlier group."""
    samples = [sample_of(length, str(index)) for index, length in enumerate(lengths)]
    batches = micro_batches(samples, budget, packed=True)
    assert sorted(s.rollout_id for batch in batches for s in batch) == sorted(s.rollout_id for s in samples)
    loads = [sum(s.num_tokens for s in batch) for batch in batches]
    for index, batch in enumerate(batches):
        assert len(batch) == 1 or loads[index] <= budget
        assert all(load + s.num_tokens > budget for load in loads[:index] for s in batch)
    assert batches == micro_batches(samples, budget, packed=True)


def test_packing_takes_fewer_passes_than_padding() -> None:
    """Short samples fill the room beside a long one."""
    samples = [sample_of(length, str(length)) for length in (999, 499, 449, 1)]
    assert [[s.num_tokens for s in batch] for batch in micro_batches(samples, 1002, packed=True)] == [
        [1000, 2],
        [500, 450],
    ]
    assert len(micro_batches(samples, 1002)) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampled_mask": [True]}, "sampled_mask has 1 entries, completion_ids 3"),
        ({"logprobs": [0.0] * 4}, "logprobs has 4 entries, completion_ids 3"),
        ({"sampled_mask": [False] * 3}, "no sampled token"),
        ({"prompt_ids": []}, "prompt_ids is empty"),
        ({"teacher_prompt_ids": []}, "teacher_prompt_ids is empty"),
    ],
)
def test_misaligned_samples_are_refused_by_name(changes: dict[str, list], message: str) -> None:
    """Each inconsistency names the sample and the field."""
    broken = msgspec.structs.replace(sample_of(3, "train-7"), **changes)
    with pytest.raises(AlignmentError, match=message) as caught:
        check_alignment(broken, needs_teacher=True)
    assert "train-7" in str(caught.value)


def test_grpo_needs_no_teacher_prompt() -> None:
    """The teacher's prompt matters under Feedback Distillation alone."""
    check_alignment(msgspec.structs.replace(sample_of(3), teacher_prompt_ids=[]), needs_teacher=False)


def test_evenly_spaced_picks_distinct_samples() -> None:
    """Never more than there are, spread over the batch."""
    samples = [sample_of(1, str(index)) for index in range(10)]
    assert evenly_spaced(samples, 3) == ["0", "3", "6"]
    assert len(set(evenly_spaced(samples, 99))) == 10
    assert evenly_spaced([], 4) == []
