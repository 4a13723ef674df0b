"""Seconds that close."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_async.telemetry.accounts import ENGINE, SlotAccount, TimeAccount

DELAYS = st.floats(0, 1e4, allow_nan=False)


def test_every_second_is_charged_to_the_state_it_was_spent_in() -> None:
    """The state that lasts counts up to now."""
    account = TimeAccount(ENGINE, "idle", 10.0)
    account.enter("generating", 12.0)
    account.enter("down", 17.0)
    assert account.total(18.0) == {"down": 1.0, "push": 0.0, "generating": 5.0, "idle": 2.0}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(DELAYS, st.sampled_from([*ENGINE, "step", "shift"]), DELAYS), max_size=30))
def test_seconds_sum_to_the_wall_time_whatever_happens(changes: list[tuple[float, str, float]]) -> None:
    """Over the run, and over each step; none is negative, not even where a stall is longer than there was time."""
    now, account, since = 0.0, TimeAccount(ENGINE, "idle", 0.0), 0.0
    for delay, change, stall_s in changes:
        now += delay
        if change == "step":
            step = account.step(now)
            assert sum(step.values()) == pytest.approx(now - since, abs=1e-6)
            assert min(step.values()) > -1e-6
            since = now
        elif change == "shift":
            account.shift(stall_s, "push", from_states=("generating", "idle"), now=now)
        else:
            account.enter(change, now)
    assert sum(account.total(now).values()) == pytest.approx(now, abs=1e-6)


def test_a_stall_is_taken_from_what_the_engine_seemed_to_do() -> None:
    """First from generating: requests were there and made no progress."""
    account = TimeAccount(ENGINE, "idle", 0.0)
    account.enter("generating", 1.0)
    account.shift(2.5, "push", from_states=("generating", "idle"), now=3.0)
    assert account.step(3.0) == {"down": 0.0, "push": 2.5, "generating": 0.0, "idle": 0.5}


def test_slots_in_use_and_not_in_use_sum_to_all() -> None:
    """A sample holds until the next one; a step counts from the step before."""
    account = SlotAccount(4, 0.0)
    assert account.idle() is None
    account.sample(4, 0.0)
    account.sample(1, 1.0)
    account.sample(1, 2.0)
    assert account.idle() == pytest.approx(1 - (1 + 0.25) / 2)
    assert account.step_idle() == pytest.approx(1 - (1 + 0.25) / 2)
    account.sample(9, 3.0)
    account.sample(0, 4.0)
    assert account.step_idle() == pytest.approx(1 - (0.25 + 1) / 2)
