"""Requests that broke off: what was sent may be on the bill, what was not is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.abc
import pytest

from fd_async.config.schema import FeedbackTable
from fd_async.feedback.anthropic import open_anthropic
from fd_async.feedback.failures import MOST_TOKENS, TransientFailure
from fd_async.feedback.openai import open_openai
from fd_async.feedback.provider import Backoff, open_provider
from tests.fakes.claude_server import ClaudeServer, message
from tests.fakes.openai_server import OpenAIServer, completion
from tests.unit.feedback.conftest import make_rollout

pytestmark = pytest.mark.anyio
Table = Callable[..., FeedbackTable]

HALF = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
OPENERS = {"openai": open_openai, "anthropic": open_anthropic}


async def failure_at(kind: str, port: int, **changes: Any) -> TransientFailure:
    """Return how one request to this port failed."""
    table = FeedbackTable(type=kind, model="m", base_url=f"http://127.0.0.1:{port}", api_key_env="KEY", **changes)  # type: ignore[arg-type]
    async with OPENERS[kind](table) as generate_text:
        with anyio.fail_after(10), pytest.raises(TransientFailure) as caught:
            await generate_text("system", "user", 10)
    return caught.value


@pytest.mark.parametrize("kind", sorted(OPENERS))
@pytest.mark.parametrize("answer", [b"", HALF[:20], HALF], ids=["nothing", "half a head", "half a body"])
async def test_a_connection_that_is_lost_after_the_request_may_be_billed(
    kind: str, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model may have read the whole attempt before the connection went."""
    monkeypatch.setenv("KEY", "x")

    async def drop(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            if answer:
                await stream.send(answer)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, drop)
        failure = await failure_at(kind, listener.extra(anyio.abc.SocketAttribute.local_port))
        tasks.cancel_scope.cancel()
    assert failure.maybe_billed
    assert "broke off: RemoteProtocolError" in str(failure)


@pytest.mark.parametrize("kind", sorted(OPENERS))
async def test_a_request_that_reached_nobody_costs_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of hours must not eat the budget."""
    monkeypatch.setenv("KEY", "x")
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
    failure = await failure_at(kind, port)
    assert not failure.maybe_billed
    assert f"http://127.0.0.1:{port}" in str(failure)


async def test_the_sdks_own_time_limit_is_a_failure_like_any(openai_server: OpenAIServer, openai_table: Table) -> None:
    """It may come a moment before ours."""
    openai_server.then(completion(hang=True))
    async with open_openai(openai_table(request_timeout_s=0.05)) as generate_text:
        with anyio.fail_after(10), pytest.raises(TransientFailure, match=r"broke off: ReadTimeout") as caught:
            await generate_text("system", "user", 10)
    assert caught.value.maybe_billed


async def test_an_answer_that_was_lost_is_on_the_bill_with_its_input(
    claude: ClaudeServer, claude_table: Table, backoff: Backoff
) -> None:
    """The second try is paid for in full; the first is named unconfirmed."""
    claude.then(message(cut=True))
    async with open_provider(claude_table(), backoff=backoff) as provider:
        feedback = await provider.feedback(make_rollout())
        statistics = provider.statistics()
    assert statistics["usd_unconfirmed"] > 0
    assert feedback.usd == pytest.approx(1000 * 5e-6 + 100 * 25e-6 + statistics["usd_unconfirmed"])


@pytest.mark.parametrize(
    "body",
    [
        {"usage": {"prompt_tokens": -1, "completion_tokens": 1}},
        {"usage": {"prompt_tokens": 10, "completion_tokens": MOST_TOKENS + 1}},
        {"usage": {"prompt_tokens": "many", "completion_tokens": 1}},
        {"model": ["tutor"]},
    ],
    ids=["negative", "absurd", "a text", "a list for a name"],
)
async def test_a_bill_that_makes_no_sense_is_no_answer(
    body: dict[str, Any], openai_server: OpenAIServer, openai_table: Table, backoff: Backoff
) -> None:
    """One absurd usage would end the run as overspent; the question is put again and the input counted."""
    good = completion()
    assert isinstance(good.body, dict)
    openai_server.default = lambda _: good
    openai_server.then(type(good)(body=good.body | body))
    async with open_provider(openai_table(max_usd=1.0), backoff=backoff) as provider:
        feedback = await provider.feedback(make_rollout())
        statistics = provider.statistics()
    assert (statistics["retries"], feedback.asked) == (1, 1)
    assert feedback.usd == pytest.approx(0.0012 + statistics["usd_unconfirmed"])
    assert statistics["usd_unconfirmed"] > 0
