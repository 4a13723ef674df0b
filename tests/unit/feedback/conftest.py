"""A finished attempt, the two fake servers, and tables that point at them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from fd_async.config.schema import FeedbackTable
from fd_async.feedback.provider import Backoff
from fd_async.types import Rollout, Statement, Turn, Verdict
from tests.fakes.claude_server import ClaudeServer
from tests.fakes.openai_server import OpenAIServer

STATEMENT = Statement(
    name="add_pos",
    formal_statement="theorem add_pos {x y : Int} (h : 0 < x) (k : 0 < y) : 0 < x + y := by sorry",
    proof="by\n  omega",
)


def make_rollout(**changes: Any) -> Rollout:
    """Return a failed attempt with one tool call; any field can be replaced."""
    fields: dict[str, Any] = {
        "id": "train-0000000-00",
        "ordinal": 0,
        "sample": 0,
        "purpose": "train",
        "statement": STATEMENT,
        "prompt_ids": [1],
        "completion_ids": [2, 3],
        "sampled_mask": [True, False],
        "logprobs": [-0.1, 0.0],
        "spans": [],
        "turns": [
            Turn(role="assistant", start=0, end=1, text="Let me check {x} first."),
            Turn(role="tool", start=1, end=2, text="error: linarith failed", tool="lean_check_file", ok=False),
        ],
        "verdict": Verdict(kind="failed", reason="linarith failed", output="3:2: error: linarith failed"),
        "end_reason": "stopped",
    }
    return Rollout(**(fields | changes))


@pytest.fixture
def rollout() -> Rollout:
    """A failed attempt with one tool call."""
    return make_rollout()


@pytest.fixture
def backoff() -> Backoff:
    """Rests short enough for a test."""
    return Backoff(first_s=0.01, max_s=0.02)


@pytest.fixture
async def claude() -> AsyncIterator[ClaudeServer]:
    """A running fake of Claude's API."""
    async with ClaudeServer() as server:
        yield server


@pytest.fixture
async def openai_server() -> AsyncIterator[OpenAIServer]:
    """A running fake of an OpenAI-compatible API."""
    async with OpenAIServer() as server:
        yield server


@pytest.fixture
def claude_table(claude: ClaudeServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FeedbackTable]:
    """Make `[feedback]` tables that ask the fake Claude, at 5 and 25 dollars per million tokens."""
    monkeypatch.setenv("TUTOR_KEY", "secret-claude")

    def table(**changes: Any) -> FeedbackTable:
        fields: dict[str, Any] = {
            "type": "anthropic",
            "model": "claude-test",
            "base_url": claude.base_url,
            "api_key_env": "TUTOR_KEY",
            "usd_per_million_input_tokens": 5.0,
            "usd_per_million_output_tokens": 25.0,
        }
        return FeedbackTable(**(fields | changes))

    return table


@pytest.fixture
def openai_table(openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FeedbackTable]:
    """Make `[feedback]` tables that ask the fake OpenAI server, at 1 and 2 dollars per million tokens."""
    monkeypatch.setenv("TUTOR_KEY", "secret-openai")

    def table(**changes: Any) -> FeedbackTable:
        fields: dict[str, Any] = {
            "type": "openai",
            "model": "tutor-test",
            "base_url": openai_server.base_url,
            "api_key_env": "TUTOR_KEY",
            "usd_per_million_input_tokens": 1.0,
            "usd_per_million_output_tokens": 2.0,
        }
        return FeedbackTable(**(fields | changes))

    return table
