"""Claude through the official SDK, against a local server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from fd_async.config.schema import FeedbackTable
from fd_async.errors import (
    FeedbackAccountError,
    FeedbackBudgetExceeded,
    FeedbackOutage,
    FeedbackRejected,
    FeedbackUnavailable,
)
from fd_async.feedback.prompts import TUTOR_PROMPTS, user_message
from fd_async.feedback.provider import Backoff, open_provider
from fd_async.types import Rollout
from tests.fakes.claude_server import ClaudeServer, error, message
from tests.fakes.scripted_http import FEEDBACK_TEXT, Reply

pytestmark = pytest.mark.anyio
Table = Callable[..., FeedbackTable]

BAD = "Great work! Maybe you should try something else."


async def test_good_answer_becomes_feedback(claude: ClaudeServer, claude_table: Table, rollout: Rollout) -> None:
    """Text, tokens, price, ids and hash are all there, and the hash is the key that was announced."""
    async with open_provider(claude_table()) as provider:
        key = provider.key(rollout)
        feedback = await provider.feedback(rollout)
        statistics = provider.statistics()
    assert feedback.text == FEEDBACK_TEXT
    assert (feedback.input_tokens, feedback.output_tokens, feedback.asked) == (1000, 100, 1)
    assert feedback.usd == pytest.approx(1000 * 5e-6 + 100 * 25e-6)
    assert (feedback.provider, feedback.model, feedback.request_ids) == ("anthropic", "claude-test", ["req_01"])
    assert feedback.prompt_hash == key
    assert statistics["usd"] == pytest.approx(feedback.usd)
    assert (statistics["calls"], statistics["answered"], statistics["in_flight"]) == (1, 1, 0)


async def test_request_holds_the_prompts_and_no_sampling_arguments(
    claude: ClaudeServer, claude_table: Table, rollout: Rollout
) -> None:
    """Current models refuse a temperature; the key travels as a bearer token."""
    table = claude_table(prompt=3, max_output_tokens=777)
    async with open_provider(table) as provider:
        await provider.feedback(rollout)
    body = claude.seen[0].body
    assert body == {
        "model": "claude-test",
        "max_tokens": 777,
        "system": TUTOR_PROMPTS[3],
        "messages": [{"role": "user", "content": user_message(rollout, table.max_attempt_chars)}],
    }
    assert claude.seen[0].headers["Authorization"] == "Bearer secret-claude"


async def test_thinking_blocks_are_not_feedback(claude: ClaudeServer, claude_table: Table, rollout: Rollout) -> None:
    """Only text blocks are read, wherever they stand."""
    claude.then(message(thinking="1. you could leak"))
    async with open_provider(claude_table()) as provider:
        assert (await provider.feedback(rollout)).text == FEEDBACK_TEXT


@pytest.mark.parametrize(
    "failure",
    [
        error(429, "rate_limit_error", headers={"retry-after": "0.01"}),
        error(529, "overloaded_error"),
        error(500, "api_error"),
        Reply(status=502, body="<html>bad gateway</html>"),
        message(cut=True),
        Reply(body='{"id": "msg_01", "type": "mess'),
        Reply(body={}),
        Reply(body="<html>log in first</html>", headers={"content-type": "text/html"}),
    ],
    ids=["429", "529", "500", "html-502", "cut-connection", "half-json", "empty-object", "html"],
)
async def test_passing_failures_are_tried_again(
    failure: Reply, claude: ClaudeServer, claude_table: Table, rollout: Rollout, backoff: Backoff
) -> None:
    """Two failures, then the answer; the retries are counted and only the answer was bought."""
    claude.then(failure, failure)
    async with open_provider(claude_table(), backoff=backoff) as provider:
        feedback = await provider.feedback(rollout)
        assert provider.statistics()["retries"] == 2
    assert (feedback.text, feedback.asked, len(claude.seen)) == (FEEDBACK_TEXT, 1, 3)


async def test_a_request_that_hangs_is_given_up_and_tried_again(
    claude: ClaudeServer, claude_table: Table, rollout: Rollout, backoff: Backoff
) -> None:
    """Its input may be on the bill, so it is counted, and named as unconfirmed."""
    claude.then(message(hang=True))
    async with open_provider(claude_table(request_timeout_s=0.2), backoff=backoff) as provider:
        feedback = await provider.feedback(rollout)
        statistics = provider.statistics()
    assert statistics["usd_unconfirmed"] > 0
    assert statistics["usd"] == pytest.approx(feedback.usd)
    assert feedback.usd == pytest.approx(1000 * 5e-6 + 100 * 25e-6 + statistics["usd_unconfirmed"])


async def test_deadline_ends_a_feedback_that_never_comes(
    claude: ClaudeServer, claude_table: Table, rollout: Rollout, backoff: Backoff
) -> None:
    """Others are answered, this one never: the message names the key and how often it was tried."""
    claude.default = lambda body: message() if "there" in body["messages"][0]["content"] else error(500, "api_error")
    async with open_provider(claude_table(deadline_s=0.3), backoff=backoff) as provider:
        with pytest.raises(FeedbackUnavailable, match=r"feedback\.deadline_s = 0\.3 s; try \d+ failed"):
            await provider.feedback(rollout)
        statistics = provider.statistics()
    assert (statistics["drops"], statistics["outages"]) == ({"feedback_unavailable": 1}, 0)
    assert len(claude.seen) > 1


async def test_a_retry_after_beyond_the_deadline_is_not_slept_through(
    claude: ClaudeServer, claude_table: Table, rollout: Rollout
) -> None:
    """An hour's rest cannot fit five minutes: after one request the provider counts as down."""
    claude.default = lambda _: error(429, "rate_limit_error", headers={"retry-after": "3600"})
    table = claude_table(max_retry_after_s=0.05, max_outage_s=0.2)
    with anyio.fail_after(10):
        async with open_provider(table) as provider:
            with pytest.raises(FeedbackOutage, match="answered 429"):
                await provider.feedback(rollout)
    assert [len(seen.body["messages"][0]["content"]) < 50 for seen in claude.seen[:2]] == [False, True]


async def test_a_long_retry_after_is_capped(claude: ClaudeServer, claude_table: Table, rollout: Rollout) -> None:
    """It fits the deadline, but the table says how long we are ready to rest."""
    claude.then(error(429, "rate_limit_error", headers={"retry-after": "200"}))
    with anyio.fail_after(10):
        async with open_provider(claude_table(max_retry_after_s=0.05)) as provider:
            feedback = await provider.feedback(rollout)
    assert (feedback.text, len(claude.seen)) == (FEEDBACK_TEXT, 2)


@pytest.mark.parametrize(
    ("answer", "cause", "asked"),
    [
        (message(stop_reason="refusal"), "feedback_refused", 1),
        (message(stop_reason="model_context_window_exceeded"), "feedback_context_window", 1),
        (message(stop_reason="max_tokens"), "feedback_truncated", 2),
        (message(stop_reason="pause_turn"), "feedback_truncated", 2),
        (message(""), "feedback_empty", 2),
        (message("", thinking="all tokens went here", stop_reason="max_tokens"), "feedback_truncated", 2),
        (message(BAD), "feedback_format", 2),
    ],
    ids=["refusal", "context-window", "max-tokens", "pause", "empty", "only-thinking", "wrong-format"],
)
async def test_unusable_answers_are_dropped_with_a_cause_and_a_price(
    answer: Reply, cause: str, asked: int, claude: ClaudeServer, claude_table: Table, rollout: Rollout
) -> None:
    """What a second question may cure is asked twice; the money is reported with the rejection."""
    claude.default = lambda _: answer
    async with open_provider(claude_table()) as provider:
        with pytest.raises(FeedbackRejected) as caught:
            await provider.feedback(rollout)
        statistics = provider.statistics()
    assert (caught.value.cause, len(claude.seen)) == (cause, asked)
    assert caught.value.usd == pytest.approx(asked * 0.0075)
    assert statistics["usd"] == pytest.approx(asked * 0.0075)
    assert (statistics["drops"], statistics["rejected"]) == ({cause: 1}, asked)


async def test_wrong_format_is_asked_again_with_the_violations(
    claude: ClaudeServer, claude_table: Table, rollout: Rollout
) -> None:
    """The second question names the rules; the price covers both answers; the hash is that of the first question."""
    claude.then(message("1. You forgot omega."))
    async with open_provider(claude_table()) as provider:
        feedback = await provider.feedback(rollout)
        assert feedback.prompt_hash == provider.key(rollout)
    second = claude.seen[1].body["messages"][0]["content"]
    assert second.startswith(claude.seen[0].body["messages"][0]["content"])
    assert "1. You forgot omega." in second
    assert "Item 1 has 3 words" in second
    assert 'the answer uses "you"' in second
    assert (feedback.asked, feedback.usd, feedback.request_ids) == (2, pytest.approx(0.015), ["req_01", "req_01"])


async def test_unchecked_answers_may_have_any_format(
    claude: ClaudeServer, claude_table: Table, rollout: Rollout
) -> None:
    """`check_answers = false` takes the text as it is."""
    claude.then(message(BAD))
    async with open_provider(claude_table(check_answers=False)) as provider:
        assert (await provider.feedback(rollout)).text == BAD


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (error(401, "authentication_error", "invalid x-api-key"), "TUTOR_KEY"),
        (error(403, "permission_error"), "TUTOR_KEY"),
        (error(404, "not_found_error", "model: claude-test"), "feedback.model = 'claude-test'"),
        (error(400, "invalid_request_error", "max_tokens: too large"), "max_output_tokens"),
    ],
    ids=["401", "403", "404", "400-first"],
)
async def test_account_errors_are_final(
    failure: Reply, said: str, claude: ClaudeServer, claude_table: Table, rollout: Rollout
) -> None:
    """One request, no retry, one line that names what to check."""
    claude.then(failure)
    async with open_provider(claude_table()) as provider:
        with pytest.raises(FeedbackAccountError, match=said):
            await provider.feedback(rollout)
    assert len(claude.seen) == 1


async def test_a_bad_request_after_good_answers_drops_one_attempt(
    claude: ClaudeServer, claude_table: Table, rollout: Rollout
) -> None:
    """The configuration has proved itself, so it is the attempt's own fault."""
    claude.then(message(), error(400, "invalid_request_error", "strange characters"))
    async with open_provider(claude_table()) as provider:
        await provider.feedback(rollout)
        with pytest.raises(FeedbackRejected) as caught:
            await provider.feedback(rollout)
        await provider.feedback(rollout)
    assert caught.value.cause == "feedback_bad_request"


async def test_the_providers_monthly_cap_ends_the_run(
    claude: ClaudeServer, claude_table: Table, rollout: Rollout
) -> None:
    """A 429 without Retry-After that no waiting cures."""
    claude.then(error(429, "rate_limit_error", "monthly threshold", code="enforced_spend_limit_reached"))
    async with open_provider(claude_table()) as provider:
        with pytest.raises(FeedbackBudgetExceeded, match="monthly threshold"):
            await provider.feedback(rollout)
    assert len(claude.seen) == 1


async def test_a_missing_key_is_said_before_anything_is_asked(
    claude_table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable is named."""
    monkeypatch.delenv("TUTOR_KEY")
    with pytest.raises(FeedbackAccountError, match="TUTOR_KEY"):
        async with open_provider(claude_table()):
            raise AssertionError("opened without a key")


async def test_no_key_at_all_is_said_before_anything_is_asked(
    claude_table: Table, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """The SDK's usual variable is named."""
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_CONFIG_DIR", str(tmp_path))
    with pytest.raises(FeedbackAccountError, match="ANTHROPIC_API_KEY"):
        async with open_provider(claude_table(api_key_env="")):
            raise AssertionError("opened without a key")


async def test_a_server_of_ones_own_needs_no_key(
    claude: ClaudeServer, claude_table: Table, rollout: Rollout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The SDK refuses to send none, so a placeholder goes; Claude's own address still demands one."""
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE", "ANTHROPIC_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    async with open_provider(claude_table(api_key_env="")) as provider:
        assert (await provider.feedback(rollout)).text == FEEDBACK_TEXT
    assert claude.seen[0].headers["Authorization"] == "Bearer none"
    with pytest.raises(FeedbackAccountError, match="ANTHROPIC_API_KEY"):
        async with open_provider(claude_table(api_key_env="", base_url="")):
            raise AssertionError("opened without a key")
