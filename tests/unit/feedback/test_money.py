"""The bill is exact and the budget holds, whatever happens in between."""

from __future__ import annotations

import random
from decimal import Decimal

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackBudgetExceeded
from fd_async.feedback.limits import Limits
from fd_async.feedback.money import Budget, Prices, Usage, dollars
from fd_async.feedback.provider import open_provider
from tests.fakes.claude_server import ClaudeServer, message
from tests.unit.feedback.conftest import make_rollout

TABLE = FeedbackTable(usd_per_million_input_tokens=3.3, usd_per_million_output_tokens=0.1)


def test_a_million_small_answers_cost_exactly_a_million_times_one() -> None:
    """Floats would be off from the seventh digit on."""
    price = Prices(TABLE).of(Usage(input_tokens=1, output_tokens=1))
    assert price == Decimal("0.0000034")
    budget = Budget(0.0)
    for _ in range(100_000):
        budget.settle(Decimal(0), price)
    assert budget.spent_usd == Decimal("0.34")
    assert dollars(0.1 + 0.2) == Decimal("0.3")


def test_cache_tokens_have_their_own_price() -> None:
    """Where the table names none they cost what other input does."""
    usage = Usage(input_tokens=1000, cache_read_tokens=600, cache_write_tokens=300, output_tokens=0)
    assert Prices(TABLE).of(usage) == Decimal("0.0033")
    table = FeedbackTable(
        usd_per_million_input_tokens=10.0,
        usd_per_million_cache_read_tokens=1.0,
        usd_per_million_cache_write_tokens=12.5,
    )
    assert Prices(table).of(usage) == Decimal("0.00535")
    assert Prices(table).dearest(1000, 0) == Decimal("0.0125")


@given(
    seed=st.integers(0, 2**32),
    max_cents=st.integers(1, 60),
    callers=st.integers(1, 30),
    concurrency=st.integers(1, 8),
    is_estimate_right=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_schedule_passes_the_budget(
    seed: int, max_cents: int, callers: int, concurrency: int, is_estimate_right: bool
) -> None:
    """Answers, failures, cancellations in any order: spent stays inside, but for wrong estimates in flight."""
    table = FeedbackTable(
        max_usd=max_cents / 100, usd_per_million_input_tokens=7.0, usd_per_million_output_tokens=11.0,
        concurrency=concurrency,
    )  # fmt: skip
    worst = Prices(table).dearest(1000, 2000)
    overrun = Decimal(0) if is_estimate_right else 2 * worst * concurrency

    async def main() -> None:
        dice = random.Random(seed)
        limits = Limits(table)

        async def call() -> None:
            with anyio.CancelScope() as scope:
                try:
                    async with limits.slot(), limits.request(1000, 2000) as charge:
                        for _ in range(dice.randrange(4)):
                            await anyio.lowlevel.checkpoint()
                        fate = dice.random()
                        if fate < 0.15:
                            scope.cancel()
                        elif fate < 0.3:
                            raise ConnectionError
                        else:
                            most = 1000 if is_estimate_right else 3000
                            usage = Usage(input_tokens=dice.randint(0, most), output_tokens=dice.randint(0, 2000))
                            charge.settle(usage)
                        assert limits.budget.reserved_usd >= 0
                        await anyio.lowlevel.checkpoint()
                except (ConnectionError, FeedbackBudgetExceeded):
                    pass
            assert limits.budget.spent_usd <= limits.budget.max_usd + overrun

        async with anyio.create_task_group() as tasks:
            for _ in range(callers):
                tasks.start_soon(call)
        assert limits.budget.reserved_usd == 0
        assert limits.waiting == 0

    anyio.run(main)


@pytest.mark.anyio
async def test_claudes_cache_tokens_are_on_the_bill(claude: ClaudeServer, claude_table: type[FeedbackTable]) -> None:
    """They stand beside `input_tokens` there, not inside."""
    reply = message(input_tokens=100, output_tokens=10)
    assert isinstance(reply.body, dict)
    reply.body["usage"] |= {"cache_read_input_tokens": 1000, "cache_creation_input_tokens": 200}
    claude.then(reply)
    table = claude_table(usd_per_million_cache_read_tokens=0.5, usd_per_million_cache_write_tokens=6.25)
    async with open_provider(table) as provider:
        feedback = await provider.feedback(make_rollout())
    assert feedback.input_tokens == 1300
    assert feedback.usd == pytest.approx((100 * 5 + 1000 * 0.5 + 200 * 6.25 + 10 * 25) / 1e6, abs=1e-15)
    assert 0 < feedback.asked_unix_s <= feedback.answered_unix_s
