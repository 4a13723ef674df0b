"""A supervised engine over fakes that die, for the tests of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from fd_async.config.schema import Policy
from fd_async.policy.supervised import SupervisedEngine, supervised
from fd_async.types import Completion, VersionSpan
from tests.fakes.mortal_engine import Opener, Plan

CONFIG = Policy(max_restarts=3, push_timeout_s=30)
STOP = 99
PROMPT = [7, 7, 7]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open the next engine at once."""
    monkeypatch.setattr("fd_async.policy.supervised._PAUSE_S", 0.0)
    monkeypatch.setattr("fd_async.policy.supervised._DEATH_FOLLOWS_S", 0.01)
    monkeypatch.setattr("fd_async.policy.supervised._CAUSE_FOLLOWS_S", 0.01)


class World:
    """A supervised engine, who opens for it, and what it told."""

    def __init__(self, engine: SupervisedEngine, opener: Opener, events: list[tuple[str, str]]) -> None:
        self.engine, self.opener, self.events = engine, opener, events
        self.completions: list[Completion] = []
        self.salvaged: list[Completion] = []

    async def generate(self, max_tokens: int = 8, seed: int | None = None) -> Completion:
        completion = await self.engine.generate(
            PROMPT,
            max_tokens=max_tokens,
            temperature=1.0,
            top_p=1.0,
            request_id="r",
            seed=seed,
            salvage=self.salvaged.append,
        )
        self.completions.append(completion)
        return completion

    async def lose(self, cause: str = "killed") -> None:
        """Have the present engine die and let everybody act on it."""
        self.opener.last.die(cause)
        await anyio.wait_all_tasks_blocked()


@asynccontextmanager
async def opened(*plans: Plan, config: Policy = CONFIG) -> AsyncIterator[World]:
    opener, events = Opener(*plans), []
    with anyio.fail_after(20):
        async with supervised(
            opener,
            config,
            stop_token_ids=[STOP],
            log="logs/vllm.log",
            on_event=lambda kind, line: events.append((kind, line)),
        ) as engine:
            yield World(engine, opener, events)
    assert opener.num_open == 0


def numbers(start: int, count: int, *spans: VersionSpan, reason: Any = "length") -> Completion:
    """Return what a request gets that is served without a gap."""
    ids = list(range(start, start + count))
    return Completion(
        token_ids=ids,
        logprobs=[-float(i) for i in ids],
        spans=list(spans or [VersionSpan(0, 0, count)]),
        finish_reason=reason,
    )
