"""Records as bytes: nothing is rounded, and tokens can go alone."""

from __future__ import annotations

import math
import random
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fd_async.data.ledger.packing import (
    pack,
    pack_body,
    pack_scores,
    unpack_partial,
    unpack_rollout,
    unpack_scores,
    unpack_verdict,
)
from fd_async.types import PartialRollout, TokenScores, ToolState, Turn, VersionSpan
from tests.unit.data.test_ledger import make_rollout

finite = st.floats(allow_nan=False)
ids = st.integers(min_value=0, max_value=2**31 - 1)


@given(st.lists(st.tuples(ids, finite)), st.lists(ids))
def test_whatever_was_sampled_comes_back_bit_for_bit(tokens: list[tuple[int, float]], prompt: list[int]) -> None:
    """Also log-probs that are no float32, infinities and negative zeros."""
    rollout = msgspec.structs.replace(
        make_rollout(0),
        prompt_ids=prompt,
        completion_ids=[token for token, _ in tokens],
        logprobs=[logprob for _, logprob in tokens],
        sampled_mask=[True] * len(tokens),
    )
    again = unpack_rollout(*pack(rollout))
    assert again == rollout
    assert [math.copysign(1, x) for x in again.logprobs] == [math.copysign(1, x) for x in rollout.logprobs]


def test_log_probs_of_an_engine_take_four_bytes_and_others_eight() -> None:
    """A float32 is kept as one; a single longer number keeps all of the attempt long."""
    rng = random.Random(0)
    short = [struct.unpack("<f", struct.pack("<f", -rng.random()))[0] for _ in range(4096)]
    sizes = []
    for last in (short[-1], -1 / 3):
        logprobs = [*short[:-1], last]
        rollout = msgspec.structs.replace(make_rollout(0, tokens=4095), logprobs=logprobs)
        body, tokens = pack(rollout)
        assert unpack_rollout(body, tokens).logprobs == logprobs
        sizes.append(len(tokens))
    assert 4096 * 3 < sizes[0] < 4096 * 4 < sizes[1]


def test_a_log_prob_that_is_no_number_stays_none() -> None:
    """It is the engine's fault and must be seen, not hidden."""
    rollout = msgspec.structs.replace(make_rollout(0), logprobs=[math.nan, 0.0, 0.0, 0.0])
    assert math.isnan(unpack_rollout(*pack(rollout)).logprobs[0])


def test_an_id_that_is_no_token_is_refused() -> None:
    """Nothing wraps around."""
    with pytest.raises(OverflowError):
        pack(msgspec.structs.replace(make_rollout(0), completion_ids=[2**31] * 4))


def test_without_its_tokens_an_attempt_keeps_what_people_read() -> None:
    """Verdict, texts, spans and the number of tokens stay."""
    rollout = make_rollout(0)
    bare = unpack_rollout(pack_body(rollout), None)
    assert (bare.verdict, bare.spans, bare.num_sampled_tokens) == (rollout.verdict, rollout.spans, 3)
    assert (bare.prompt_ids, bare.completion_ids, bare.logprobs) == ([], [], [])
    assert unpack_verdict(pack_body(rollout)) == rollout.verdict


def test_an_attempt_under_way_comes_back_with_files_and_open_turn() -> None:
    """What continues it is all there."""
    partial = PartialRollout(
        id="train-0000003-01",
        ordinal=3,
        sample=1,
        admitted_version=2,
        prompt_ids=[1, 2],
        completion_ids=[5, 6, 7, 8],
        logprobs=[-0.5, -1.5, 0.0, -2.5],
        spans=[VersionSpan(2, 0, 2), VersionSpan(3, 3, 4)],
        turns=[Turn(role="assistant", start=0, end=2, text="x"), Turn(role="tool", start=2, end=3, text="y")],
        tools=ToolState(files={"a.lean": "theorem"}, last_written="a.lean", last_judged="theorem", last_output="no"),
        finish="stop",
        seconds=3.5,
        open_s=0.25,
    )
    again = unpack_partial(*pack(partial))
    tokens = {key: list(getattr(again, key)) for key in ("prompt_ids", "completion_ids", "logprobs")}
    assert msgspec.structs.replace(again, **tokens) == partial
    assert partial.num_sampled_tokens == 3


def test_scores_come_back_and_so_do_differences_that_stand_alone() -> None:
    """A ledger that knows no alternatives of the teacher is read all the same."""
    choices = {3: [("Real", 0.98), ("π", 0.018)], 40: [("ℝ", 0.5)]}
    assert unpack_scores(pack_scores(TokenScores(["a"], [0.5, -math.inf], choices))) == ([0.5, -math.inf], choices)
    assert unpack_scores(msgspec.msgpack.encode([0.5, 0.0])) == ([0.5, 0.0], {})
