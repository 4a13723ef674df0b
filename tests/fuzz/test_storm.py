"""A thousand calls to a provider on its worst day: every attempt gets its feedback, and the bill is exact."""

from __future__ import annotations

import os
import random
from decimal import Decimal
from typing import Any

import anyio
import pytest

from fd_async.config.schema import FeedbackTable
from fd_async.feedback.provider import Backoff, open_provider
from tests.fakes import claude_server, openai_server
from tests.fakes.scripted_http import Reply
from tests.unit.feedback.conftest import make_rollout

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

CALLS = 1000
USD_IN, USD_OUT = Decimal(3), Decimal(15)


class WorstDay:
    """Fails four requests in ten, in every way there is; keeps what it served."""

    def __init__(self, kind: str, seed: int) -> None:
        self._dice = random.Random(seed)
        self._module: Any = claude_server if kind == "anthropic" else openai_server
        self.failures = 0

    def __call__(self, _: dict[str, Any]) -> Reply:
        dice, module = self._dice, self._module
        fate = dice.random()
        self.failures += fate < 0.4
        if fate < 0.1:
            headers = dice.choice(({}, {"retry-after": "0.01"}, {"x-ratelimit-remaining-requests": "0"}, _told(dice)))
            return module.error(429, "rate_limit_error", headers=headers)
        if fate < 0.2:
            return module.error(dice.choice((500, 502, 503, 529)), "overloaded_error")
        if fate < 0.21:
            return self._good(dice, hang=True)
        if fate < 0.3:
            return self._good(dice, cut=True)
        if fate < 0.4:
            return Reply(body=dice.choice(("", "<html>", '{"id": "x"', "null", "[]", "{}", '{"choices": []}')))
        return self._good(dice, delay_s=dice.choice((0.0, 0.0, 0.0, 0.05)))

    def _good(self, dice: random.Random, **how: Any) -> Reply:
        usage = (dice.randint(1, 2000), dice.randint(1, 500))
        if self._module is claude_server:
            return claude_server.message(input_tokens=usage[0], output_tokens=usage[1], **how)
        return openai_server.completion(usage=usage, **how)


def _told(dice: random.Random) -> dict[str, str]:
    return {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": f"{dice.randint(1, 30)}ms"}


@pytest.mark.parametrize("kind", ["anthropic", "openai"])
async def test_a_thousand_calls_survive_the_worst_day(kind: str) -> None:
    """None lost, none paid twice; what broke off is on the bill with its input, and said to be unconfirmed."""
    os.environ["FD_STORM_KEY"] = "none"
    server = claude_server.ClaudeServer() if kind == "anthropic" else openai_server.OpenAIServer()
    day = server.default = WorstDay(kind, seed=3)
    feedback: dict[str, Any] = {}
    async with server:
        table = FeedbackTable(
            type=kind, model="m", base_url=server.base_url, api_key_env="FD_STORM_KEY", concurrency=64,
            request_timeout_s=1.0, deadline_s=60.0, max_retry_after_s=0.1, outage_probe_s=0.1,
            usd_per_million_input_tokens=float(USD_IN), usd_per_million_output_tokens=float(USD_OUT), max_usd=100.0,
        )  # type: ignore[arg-type]  # fmt: skip
        async with open_provider(table, backoff=Backoff(first_s=0.002, max_s=0.05)) as provider:

            async def ask(index: int) -> None:
                name = f"r{index}"
                feedback[name] = await provider.feedback(make_rollout(id=name))

            with anyio.fail_after(100):
                async with anyio.create_task_group() as tasks:
                    for index in range(CALLS):
                        tasks.start_soon(ask, index)
            statistics = provider.statistics()
    assert len(feedback) == CALLS
    assert day.failures > 300
    assert statistics["answered"] == CALLS
    assert statistics["drops"] == {}
    inputs = sum(each.input_tokens for each in feedback.values())
    outputs = sum(each.output_tokens for each in feedback.values())
    bought = (inputs * USD_IN + outputs * USD_OUT) / 1_000_000
    assert sum(each.asked for each in feedback.values()) == CALLS
    bill = Decimal(repr(statistics["usd"])) - Decimal(repr(statistics["usd_unconfirmed"]))
    questions = statistics["input_tokens"] - inputs  # whether the provider is there: on the bill, part of no feedback
    assert questions >= 0
    extra = statistics["output_tokens"] - outputs
    assert bill == pytest.approx(bought + (questions * USD_IN + extra * USD_OUT) / 1_000_000, abs=Decimal("1e-9"))
    assert sum(each.usd for each in feedback.values()) == pytest.approx(statistics["usd"], abs=1e-9)
