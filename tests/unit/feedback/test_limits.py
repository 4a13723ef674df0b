"""Rates, places and money."""

from __future__ import annotations

from decimal import Decimal

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackBudgetExceeded
from fd_async.feedback.limits import Limits, Window
from fd_async.feedback.money import Budget, Usage

pytestmark = pytest.mark.anyio


@given(
    limit=st.integers(1, 50),
    requests=st.lists(st.tuples(st.integers(1, 60), st.floats(0, 30), st.integers(0, 60)), max_size=40),
)
def test_no_window_admits_more_than_its_limit(limit: int, requests: list[tuple[int, float, int]]) -> None:
    """Whatever is asked, waited and corrected downwards, the sum of estimates in any 60 s stays inside the limit."""
    window, now = Window(limit), 0.0
    admitted: list[tuple[float, int]] = []
    for amount, pause, actual in requests:
        now += pause
        while (delay := window.wait_s(now, amount)) > 0:
            now += delay
        entry = window.charge(now, amount)
        entry.amount = min(actual, entry.amount)
        admitted.append((now, entry.amount))
        inside = sum(tokens for at, tokens in admitted[:-1] if at + 60.0 > now) + min(amount, limit)
        assert inside <= limit


def test_window_admits_a_burst_at_once_and_the_rest_as_it_expires() -> None:
    """The wait is exactly the time until enough has expired."""
    window = Window(10)
    window.charge(0.0, 4)
    window.charge(5.0, 6)
    assert window.wait_s(6.0, 4) == 54.0
    assert window.wait_s(6.0, 5) == 59.0
    assert window.wait_s(60.0, 4) == 0.0


def test_request_larger_than_the_limit_passes_alone() -> None:
    """It would wait for ever otherwise."""
    window = Window(10)
    assert window.wait_s(0.0, 99) == 0.0
    window.charge(0.0, 99)
    assert window.wait_s(0.0, 1) == 60.0


def test_zero_sets_no_limit() -> None:
    """Nothing is remembered either."""
    window = Window(0)
    window.charge(0.0, 10**9)
    assert window.wait_s(0.0, 10**9) == 0.0


def test_correction_makes_room() -> None:
    """An answer shorter than reserved gives the difference back."""
    window = Window(10)
    entry = window.charge(0.0, 10)
    entry.amount = 2
    assert window.wait_s(1.0, 8) == 0.0


async def test_corrected_tokens_wake_a_waiting_request() -> None:
    """The second request starts when the first one's answer tells that it was short, not when the window ends."""
    limits = Limits(FeedbackTable(output_tokens_per_minute=100))
    order: list[str] = []

    async def second() -> None:
        async with limits.request(1, 90):
            order.append("second")

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            async with limits.request(1, 90) as charge:
                tasks.start_soon(second)
                await anyio.wait_all_tasks_blocked()
                assert limits.waiting == 1
                order.append("first answered")
                charge.settle(Usage(input_tokens=1, output_tokens=5))
    assert order == ["first answered", "second"]


async def test_rates_hold_in_real_time() -> None:
    """Through the real clock: no window of the configured length holds more than 3 requests."""
    limits = Limits(FeedbackTable(requests_per_minute=3, concurrency=20), window_s=0.1)
    starts: list[float] = []

    async def call() -> None:
        async with limits.slot(), limits.request(1, 1):
            starts.append(anyio.current_time())

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(call)
    spans = [later - earlier for earlier, later in zip(starts, starts[3:], strict=False)]
    assert len(starts) == 10
    assert all(span >= 0.1 - 1e-3 for span in spans)


async def test_a_pause_holds_every_new_request_back() -> None:
    """A rest that the provider asked of one caller is taken by all."""
    limits = Limits(FeedbackTable())
    limits.pause(0.05)
    until = anyio.current_time() + 0.05
    async with limits.request(1, 1):
        assert anyio.current_time() >= until - 1e-3


async def test_slots_bound_the_calls_in_flight() -> None:
    """A cancelled waiter leaves no place occupied."""
    limits = Limits(FeedbackTable(concurrency=1))
    async with limits.slot():
        with anyio.move_on_after(0.01) as scope:
            async with limits.slot():
                raise AssertionError("two in one place")
        assert scope.cancelled_caught
    with anyio.fail_after(1):
        async with limits.slot():
            pass
    assert limits.waiting == 0


async def test_budget_refuses_what_can_no_longer_fit() -> None:
    """The message names the key and the way on."""
    budget = Budget(1.0, spent_usd=0.95)
    with pytest.raises(FeedbackBudgetExceeded, match=r"feedback\.max_usd = 1 .*--resume"):
        await budget.reserve(Decimal("0.10"))
    await budget.reserve(Decimal("0.05"))


async def test_budget_waits_for_calls_in_flight_before_it_refuses() -> None:
    """A reservation that turns out cheap makes room for the call that waited."""
    budget = Budget(1.0)
    await budget.reserve(Decimal("0.8"))
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(budget.reserve, Decimal("0.5"))
            await anyio.wait_all_tasks_blocked()
            assert budget.reserved_usd == Decimal("0.8")
            budget.settle(Decimal("0.8"), Decimal("0.1"))
    assert (budget.reserved_usd, budget.spent_usd) == (Decimal("0.5"), Decimal("0.1"))


async def test_cancelled_requests_give_their_reservation_back() -> None:
    """Money and tokens of a request that never ended are free again."""
    table = FeedbackTable(max_usd=1.0, usd_per_million_input_tokens=1.0, usd_per_million_output_tokens=1.0)
    limits = Limits(table)
    with anyio.move_on_after(0.01):
        async with limits.request(400_000, 500_000):
            await anyio.sleep_forever()
    assert (limits.budget.reserved_usd, limits.budget.spent_usd) == (0, 0)


async def test_a_call_that_leaves_while_a_limit_holds_it_back_frees_its_money() -> None:
    """Nothing was sent: reservation and turn are for the next one."""
    table = FeedbackTable(max_usd=1.0, usd_per_million_input_tokens=1.0, usd_per_million_output_tokens=1.0)
    limits = Limits(table)
    limits.pause(3600.0)
    with anyio.move_on_after(0.01):
        async with limits.request(400_000, 500_000):
            raise AssertionError("the provider asked for a rest")
    assert (limits.budget.reserved_usd, limits.budget.spent_usd, limits.waiting) == (0, 0, 0)
