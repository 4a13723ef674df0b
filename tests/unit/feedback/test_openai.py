"""OpenAI-compatible servers through the official SDK, against a local server."""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from fd_async.config.schema import FeedbackTable
from fd_async.errors import (
    FeedbackAccountError,
    FeedbackBudgetExceeded,
    FeedbackOutage,
    FeedbackRejected,
)
from fd_async.feedback.prompts import TUTOR_PROMPTS
from fd_async.feedback.provider import Backoff, open_provider
from fd_async.types import Rollout
from tests.fakes.openai_server import OpenAIServer, completion, error
from tests.fakes.scripted_http import FEEDBACK_TEXT, Reply

pytestmark = pytest.mark.anyio
Table = Callable[..., FeedbackTable]


async def test_good_answer_becomes_feedback(openai_server: OpenAIServer, openai_table: Table, rollout: Rollout) -> None:
    """Text, tokens, price and ids are there; the system prompt travels as a system message."""
    openai_server.then(completion(headers={"x-request-id": "req_07"}))
    async with open_provider(openai_table()) as provider:
        feedback = await provider.feedback(rollout)
    assert (feedback.text, feedback.provider, feedback.model) == (FEEDBACK_TEXT, "openai", "tutor-test")
    assert feedback.usd == pytest.approx(1000 * 1e-6 + 100 * 2e-6)
    assert feedback.request_ids == ["req_07"]
    body = openai_server.seen[0].body
    assert body["messages"][0] == {"role": "system", "content": TUTOR_PROMPTS[4]}
    assert {"temperature", "top_p", "max_completion_tokens"}.isdisjoint(body)
    assert body["max_tokens"] == 2048
    assert openai_server.seen[0].headers["Authorization"] == "Bearer secret-openai"


@pytest.mark.parametrize(
    "failure",
    [
        error(429, "rate_limit_exceeded", headers={"retry-after-ms": "10"}),
        error(503, "unavailable"),
        completion(cut=True),
        Reply(body='{"id": "chat'),
        Reply(body={}),
        Reply(body="<html>log in first</html>", headers={"content-type": "text/html"}),
        Reply(body={"error": {"code": 502, "message": "upstream"}}),
        Reply(body={"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": []}),
    ],
    ids=["429", "503", "cut-connection", "half-json", "empty-object", "html", "error-inside-200", "no-choices"],
)
async def test_passing_failures_are_tried_again(
    failure: Reply, openai_server: OpenAIServer, openai_table: Table, rollout: Rollout, backoff: Backoff
) -> None:
    """One failure, then the answer."""
    openai_server.then(failure)
    async with open_provider(openai_table(), backoff=backoff) as provider:
        assert (await provider.feedback(rollout)).text == FEEDBACK_TEXT
    assert len(openai_server.seen) == 2


async def test_nobody_listening_is_an_outage_and_names_the_address(openai_table: Table, rollout: Rollout) -> None:
    """When the next rest would outlast the deadline the provider is asked whether it is there; it is not."""
    table = openai_table(base_url="http://127.0.0.1:9/v1", deadline_s=5.0, max_outage_s=0.1)
    async with open_provider(table, backoff=Backoff(first_s=30.0)) as provider:
        with pytest.raises(FeedbackOutage, match=r"127\.0\.0\.1:9"):
            await provider.feedback(rollout)


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (completion(None, refusal="I cannot help with that"), "feedback_refused"),
        (completion("", finish_reason="content_filter"), "feedback_refused"),
        (completion(finish_reason="length"), "feedback_truncated"),
        (completion(None), "feedback_empty"),
        (completion("<think>on and on"), "feedback_empty"),
        (error(400, "context_length_exceeded", "maximum context length is 8192"), "feedback_context_window"),
    ],
    ids=["refusal", "content-filter", "length", "null", "only-thinking", "too-long"],
)
async def test_unusable_answers_are_dropped_with_a_cause(
    answer: Reply, cause: str, openai_server: OpenAIServer, openai_table: Table, rollout: Rollout
) -> None:
    """The same causes as for Claude."""
    openai_server.default = lambda _: answer
    async with open_provider(openai_table()) as provider:
        with pytest.raises(FeedbackRejected) as caught:
            await provider.feedback(rollout)
    assert caught.value.cause == cause


async def test_thinking_inside_the_text_is_dropped(
    openai_server: OpenAIServer, openai_table: Table, rollout: Rollout
) -> None:
    """A server without a reasoning parser leaves it there."""
    openai_server.then(completion(f"<think>\nyou...\n</think>\n\n{FEEDBACK_TEXT}"))
    async with open_provider(openai_table()) as provider:
        assert (await provider.feedback(rollout)).text == FEEDBACK_TEXT


async def test_missing_usage_is_estimated(openai_server: OpenAIServer, openai_table: Table, rollout: Rollout) -> None:
    """A budget that counted nothing would never end."""
    openai_server.then(completion(usage=None))
    async with open_provider(openai_table()) as provider:
        feedback = await provider.feedback(rollout)
    assert feedback.input_tokens > len(TUTOR_PROMPTS[4]) // 4
    assert feedback.usd > 0


async def test_the_other_name_of_the_token_limit_is_learnt(
    openai_server: OpenAIServer, openai_table: Table, rollout: Rollout
) -> None:
    """A server that wants `max_completion_tokens` gets it from all callers, those that began together included."""
    refusal = error(
        400, "unsupported_parameter", "Use 'max_completion_tokens' instead.", param="max_tokens", delay_s=0.1
    )
    openai_server.default = lambda body: refusal if "max_tokens" in body else completion()
    async with open_provider(openai_table()) as provider:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(provider.feedback, rollout)
        await provider.feedback(rollout)
    names = [[name for name in seen.body if name.startswith("max_")] for seen in openai_server.seen]
    assert names == [["max_tokens"]] * 3 + [["max_completion_tokens"]] * 4


async def test_a_server_that_knows_neither_name_ends_the_run(
    openai_server: OpenAIServer, openai_table: Table, rollout: Rollout
) -> None:
    """Both names are tried once, no more."""
    openai_server.default = lambda body: error(400, "unsupported_parameter", f"unknown: {sorted(body)}")
    async with open_provider(openai_table()) as provider:
        with pytest.raises(FeedbackAccountError, match="unknown"):
            await provider.feedback(rollout)
    assert len(openai_server.seen) == 2


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (error(401, "invalid_api_key", "Incorrect API key"), FeedbackAccountError),
        (error(404, "model_not_found"), FeedbackAccountError),
        (error(429, "insufficient_quota", "You exceeded your current quota"), FeedbackBudgetExceeded),
        (error(402, "402", "Insufficient credits"), FeedbackBudgetExceeded),
    ],
    ids=["401", "404", "quota", "credits"],
)
async def test_final_refusals_are_not_tried_again(
    failure: Reply, kind: type[Exception], openai_server: OpenAIServer, openai_table: Table, rollout: Rollout
) -> None:
    """One request, and the run ends."""
    openai_server.then(failure)
    async with open_provider(openai_table()) as provider:
        with pytest.raises(kind):
            await provider.feedback(rollout)
    assert len(openai_server.seen) == 1


async def test_a_server_of_ones_own_needs_no_key(
    openai_server: OpenAIServer, openai_table: Table, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM asks for none; OpenAI's own address does."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    async with open_provider(openai_table(api_key_env="")) as provider:
        await provider.feedback(rollout)
    with pytest.raises(FeedbackAccountError, match="OPENAI_API_KEY"):
        async with open_provider(openai_table(api_key_env="", base_url="")):
            raise AssertionError("opened without a key")
