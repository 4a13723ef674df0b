"""Service times read from a run: what is put in comes out again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.simulation import recorded
from bench.simulation.recorded import Slice, Speed, slowdown_of_learner
from fd_async.types import Rollout, Statement, Turn, Verdict

BASE_S, PER_S, BESIDE = 0.01, 0.001, 1.5


def rollout(name: str, tokens: list[int]) -> Rollout:
    """An attempt of turns that are all sampled, with a second of tools after each."""
    turns, end = [], 0
    for number in tokens:
        turns.append(Turn(role="assistant", start=end, end=end + number, text="", seconds=1.0))
        turns.append(Turn(role="tool", start=end + number, end=end + number + 5, text="", tool="t", seconds=1.0))
        end += number + 5
    return Rollout(
        id=name, ordinal=0, sample=0, purpose="train", statement=Statement(name="t", formal_statement="theorem t"),
        prompt_ids=[1], completion_ids=[1] * end, sampled_mask=[True] * end, logprobs=[0.0] * end, spans=[],
        turns=turns, verdict=Verdict(kind="failed"), end_reason="stopped", seconds=2.0 * len(tokens) + 0.5,
        generate_s=len(tokens), tool_s=len(tokens),
    )  # fmt: skip


def test_the_engine_speed_comes_out_of_turns_that_ran_at_it() -> None:
    """Groups of 2, 10 and 40 at once, alone and beside the learner, each at base + per sequence * n (times 1.5)."""
    slices, rollouts, learning, now = [], {}, [], 100.0
    for number in (2, 10, 40):
        for slow in (1.0, BESIDE):
            tokens = 50
            end = now + tokens * slow * (BASE_S + PER_S * number)
            for index in range(number):
                name = f"{number}-{slow}-{index}"
                rollouts[name] = rollout(name, [tokens])
                slices.append(Slice(name, "generating", now, end))
            if slow > 1.0:
                learning.append((now, end))
            now = end + 1.0
    speed = recorded._speed(slices, rollouts, learning)
    assert speed.beside == pytest.approx(BESIDE)
    for number in (2, 10, 40):
        assert speed.step_s(number) == pytest.approx(BASE_S + PER_S * number)
    assert speed.step_s(1) == pytest.approx(BASE_S + PER_S * 2)
    assert speed.step_s(25) == pytest.approx(BASE_S + PER_S * 25)
    assert speed.step_s(99) == pytest.approx(BASE_S + PER_S * 40)


def test_a_run_without_overlap_does_not_say_what_sharing_costs() -> None:
    """A synchronous run leaves `beside` open."""
    speed = recorded._speed([Slice("a", "generating", 0.0, 1.0)], {"a": rollout("a", [100])}, [(2.0, 3.0)])
    assert speed == Speed([(1.0, pytest.approx(0.01))], None)


def test_two_processes_share_what_cores_there_are() -> None:
    """Two cores: an engine slowed to 1 / 1.5 of a core leaves the learner 4/3 of its two; a third core gives more."""
    assert slowdown_of_learner(1.5, 2) == pytest.approx(1.5)
    assert slowdown_of_learner(1.0, 2) == 1.0
    assert slowdown_of_learner(1.5, 4) == pytest.approx(1.2)


def test_the_share_of_a_step_beside_the_engine_is_that_of_generating() -> None:
    """Overlapping turns count once."""
    parts = [Slice("a", "generating", 0.0, 2.0), Slice("b", "generating", 1.0, 3.0), Slice("c", "generating", 8.0, 9.0)]
    assert recorded._overlaps([(2.0, 4.0), (5.0, 7.0), (8.0, 9.0)], parts) == [0.5, 0.0, 1.0]


def test_turns_keep_tokens_and_seconds() -> None:
    """What an attempt took beyond engine and tools goes to its turns in equal parts."""
    first, second = recorded._turns(rollout("a", [7, 9]))
    assert (first.sampled_tokens, first.tool_tokens, first.check_s, first.proves) == (7, 5, 1.25, False)
    assert (second.sampled_tokens, second.check_s, second.proves) == (9, 1.25, True)


def test_the_trace_is_read_up_to_where_a_kill_cut_it(tmp_path: Path) -> None:
    """Nested slices come back with their stage; open ones and other tracks do not."""
    events = [
        {"ph": "B", "pid": 4, "tid": 1, "name": "train-0", "ts": 1e6, "args": {"item": "train-0"}},
        {"ph": "B", "pid": 4, "tid": 1, "name": "generating", "ts": 1e6, "args": {"item": "train-0"}},
        {"ph": "E", "pid": 4, "tid": 1, "ts": 3e6},
        {"ph": "B", "pid": 6, "tid": 1, "name": "feedback", "ts": 3e6, "args": {"item": "x"}},
    ]
    text = b"[\n" + b",\n".join(map(msgspec.json.encode, events))
    (tmp_path / "trace.json").write_bytes(text)
    slices = recorded._read_trace(tmp_path / "trace.json")
    assert slices == {"learner": [], "attempts": [Slice("train-0", "generating", 1.0, 3.0)]}
