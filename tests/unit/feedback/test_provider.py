"""What all providers share: opening, the key, many callers at once, the budget, the frozen copy."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import anyio
import pytest

from fd_async.config.schema import FeedbackTable
from fd_async.errors import ConfigError, FeedbackBudgetExceeded, FeedbackError, FeedbackOutage
from fd_async.feedback.provider import Backoff, Provider, TextAnswer, open_provider, prompt_hash
from fd_async.types import Rollout
from tests.fakes.openai_server import OpenAIServer, completion, error
from tests.fakes.scripted_http import FEEDBACK_TEXT
from tests.unit.feedback.conftest import make_rollout

pytestmark = pytest.mark.anyio
Table = Callable[..., FeedbackTable]


def test_importing_the_room_imports_no_sdk() -> None:
    """An SDK costs about a second and is wanted by one type only."""
    program = "import sys, fd_async.feedback.provider; print({'anthropic', 'openai', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_hash_depends_on_every_part_and_keeps_them_apart() -> None:
    """Moving a character from one part to the next changes it; the same parts give the same hash."""
    parts = ("openai", "model", "system", "user")
    others = [("anthropic", *parts[1:]), ("openai", "models", "ystem", "user"), ("openai", "model", "systemu", "ser")]
    assert len({prompt_hash(*each) for each in [parts, parts, *others]}) == 4
    assert len(prompt_hash(*parts)) == 64


async def test_key_ignores_the_address_and_follows_the_attempt(openai_table: Table) -> None:
    """A moved proxy buys nothing again; another attempt or another prompt does."""
    keys = set()
    for changes in ({}, {"base_url": "http://127.0.0.1:9/v1"}):
        async with open_provider(openai_table(**changes)) as provider:
            keys.add(provider.key(make_rollout()))
            keys.add(provider.key(make_rollout(id="other", ordinal=9)))
    assert len(keys) == 1
    async with open_provider(openai_table(prompt=1)) as provider:
        keys.add(provider.key(make_rollout()))
    async with open_provider(openai_table()) as provider:
        keys.add(provider.key(make_rollout(end_reason="token_budget")))
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": ""}, "feedback.model is empty"),
        ({"max_usd": 1.0, "usd_per_million_input_tokens": 0.0}, "cannot be watched without prices"),
    ],
)
async def test_incomplete_tables_are_refused(openai_table: Table, changes: dict[str, object], said: str) -> None:
    """Before any client is made."""
    with pytest.raises(ConfigError, match=said):
        async with open_provider(openai_table(**changes)):
            raise AssertionError("opened")


async def _ask_many(provider: Provider, number: int) -> list[FeedbackError]:
    """Ask for `number` attempts at once; return the errors."""
    errors: list[FeedbackError] = []

    async def ask(index: int) -> None:
        try:
            feedback = await provider.feedback(make_rollout(id=f"r{index}"))
            assert feedback.rollout_id == f"r{index}"
        except FeedbackError as error:
            errors.append(error)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for index in range(number):
                tasks.start_soon(ask, index)
    return errors


async def test_concurrency_is_kept_and_used(openai_server: OpenAIServer, openai_table: Table) -> None:
    """Never more than the table allows on the wire, and not fewer when there is work."""
    openai_server.default = lambda _: completion(delay_s=0.05)
    async with open_provider(openai_table(concurrency=4)) as provider:
        assert await _ask_many(provider, 12) == []
        statistics = provider.statistics()
    assert openai_server.max_in_flight == 4
    assert (statistics["calls"], statistics["answered"], statistics["waiting"]) == (12, 12, 0)
    assert 0 < statistics["latency_p50_s"] <= statistics["latency_p90_s"]


async def test_waiting_for_a_place_never_counts_against_the_deadline() -> None:
    """Our own back-pressure drops nobody: the last caller waits longer than its deadline and is answered."""

    async def generate_text(system: str, user: str, max_tokens: int) -> TextAnswer:
        await anyio.sleep(0.02)
        return TextAnswer(text=FEEDBACK_TEXT)

    table = FeedbackTable(type="self", concurrency=1, deadline_s=0.4)
    async with open_provider(table, generate_text=generate_text) as provider:
        assert await _ask_many(provider, 25) == []


async def test_a_rest_asked_of_one_caller_is_taken_by_all(openai_server: OpenAIServer, openai_table: Table) -> None:
    """Whoever begins during the rest waits for its end."""
    rest_s = 0.3
    openai_server.then(error(429, "rate_limit_exceeded", headers={"retry-after": str(rest_s)}))
    async with open_provider(openai_table()) as provider:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(provider.feedback, make_rollout())
            while not provider.statistics()["retries"]:  # noqa: ASYNC110  (a counter has no event)
                await anyio.sleep(0.005)
            tasks.start_soon(provider.feedback, make_rollout(id="later"))
    refused, *others = [seen.at for seen in openai_server.seen]
    assert len(others) == 2
    assert min(others) >= refused + rest_s


async def test_spend_never_passes_the_budget(openai_server: OpenAIServer, openai_table: Table) -> None:
    """20 callers compete for a budget of about 5 answers; what is spent stays under it and most of it is used."""
    # One answer costs 0.0012 dollars; the most it could cost is about 0.0049.
    async with open_provider(openai_table(max_usd=0.009, concurrency=8), spent_usd=0.001) as provider:
        openai_server.default = lambda _: completion(delay_s=0.01)
        errors = await _ask_many(provider, 20)
        usd = provider.statistics()["usd"]
    answered = 20 - len(errors)
    assert all(isinstance(error, FeedbackBudgetExceeded) for error in errors)
    assert usd == pytest.approx(0.001 + 0.0012 * answered)
    assert 0.009 - 0.0049 < usd <= 0.009
    assert len(openai_server.seen) == answered


async def test_a_spent_budget_sends_nothing(openai_server: OpenAIServer, openai_table: Table, rollout: Rollout) -> None:
    """A resumed run remembers what it has paid."""
    async with open_provider(openai_table(max_usd=1.0), spent_usd=1.0) as provider:
        with pytest.raises(FeedbackBudgetExceeded):
            await provider.feedback(rollout)
    assert openai_server.seen == []


async def test_the_frozen_copy_is_asked_like_any_model(rollout: Rollout) -> None:
    """System prompt, message and limit arrive; a wrong format is asked again; it costs nothing."""
    asked: list[tuple[str, str, int]] = []

    async def generate_text(system: str, user: str, max_tokens: int) -> TextAnswer:
        asked.append((system, user, max_tokens))
        return TextAnswer(text="no" if len(asked) == 1 else FEEDBACK_TEXT, input_tokens=10, output_tokens=5)

    table = FeedbackTable(type="self", max_output_tokens=99, usd_per_million_output_tokens=25.0)
    async with open_provider(table, generate_text=generate_text) as provider:
        feedback = await provider.feedback(rollout)
    assert (feedback.text, feedback.provider, feedback.usd, feedback.asked) == (FEEDBACK_TEXT, "self", 0.0, 2)
    assert [limit for _, _, limit in asked] == [99, 99]


async def test_a_frozen_copy_that_hangs_meets_the_deadline(rollout: Rollout, backoff: Backoff) -> None:
    """The same retry layer watches it."""

    async def generate_text(system: str, user: str, max_tokens: int) -> TextAnswer:
        await anyio.sleep_forever()
        raise AssertionError

    table = FeedbackTable(type="self", deadline_s=0.15, request_timeout_s=0.05, max_outage_s=0.1)
    async with open_provider(table, generate_text=generate_text, backoff=backoff) as provider:
        with pytest.raises(FeedbackOutage, match=r"no answer within"):
            await provider.feedback(rollout)
        assert provider.statistics()["in_flight"] == 0


async def test_cancelling_a_call_frees_its_place(openai_server: OpenAIServer, openai_table: Table) -> None:
    """After an interrupt nothing is held: place, reservation, connection."""
    openai_server.then(completion(hang=True))
    async with open_provider(openai_table(concurrency=1, max_usd=1.0)) as provider:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(provider.feedback, make_rollout())
                await openai_server.arrived.wait()
                assert provider.statistics()["in_flight"] == 1
                tasks.cancel_scope.cancel()
            await provider.feedback(make_rollout())
        statistics = provider.statistics()
    assert (statistics["in_flight"], statistics["waiting"], statistics["answered"]) == (0, 0, 1)
