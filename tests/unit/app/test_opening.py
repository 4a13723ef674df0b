"""Parts that start beside others and outlive them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
import pytest

from fd_async.app.opening import in_background, open_feedback
from fd_async.config.schema import RunConfig
from fd_async.data.ledger import open_ledger
from fd_async.errors import EngineError, first_cause
from fd_async.types import Feedback

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def part(events: list[str], ready: anyio.Event) -> AsyncIterator[str]:
    """Open when `ready`, and keep what happens."""
    events.append("starts")
    await ready.wait()
    try:
        yield "engine"
    finally:
        events.append("closes")


async def test_a_part_in_the_background_starts_beside_the_block_and_closes_after_it() -> None:
    """Whoever needs it waits; what was opened meanwhile closes first."""
    events: list[str] = []
    ready = anyio.Event()
    with anyio.fail_after(10):
        async with in_background(part(events, ready)) as get:
            await anyio.lowlevel.checkpoint()
            events.append("learner starts")
            ready.set()
            assert await get() == "engine"
            assert await get() == "engine"
            events.append("learner closes")
    assert events == ["starts", "learner starts", "learner closes", "closes"]


async def test_a_part_that_does_not_start_ends_the_block() -> None:
    """Nobody waits for what will not come."""

    @asynccontextmanager
    async def broken() -> AsyncIterator[str]:
        raise EngineError("no memory")
        yield ""

    with anyio.fail_after(10), pytest.raises(BaseExceptionGroup) as caught:
        async with in_background(broken()) as get:
            await get()
    assert str(first_cause(caught.value)) == "no memory"


async def test_a_block_that_is_cancelled_closes_the_part() -> None:
    """A signal while all starts leaves nothing behind."""
    events: list[str] = []
    ready = anyio.Event()
    ready.set()
    with anyio.move_on_after(0.05):
        async with in_background(part(events, ready)) as get:
            await get()
            await anyio.sleep_forever()
    assert events == ["starts", "closes"]


async def test_a_resume_goes_on_with_the_bill_of_each_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Money of the fallback counts against its own budget, and only there."""
    monkeypatch.setenv("TUTOR_KEY", "secret")
    table = {"type": "openai", "model": "tutor", "base_url": "http://127.0.0.1:9", "api_key_env": "TUTOR_KEY"}
    tables = {
        "model": {"path": "none"},
        "data": {"train": "none"},
        "feedback": {**table, "outage": "fallback"},
        "fallback": table,
    }
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await ledger.put_feedback(Feedback(rollout_id="a", text="x", provider="openai", usd=0.5, fallback_usd=0.375))
        await ledger.put_spend("feedback_format", 1.0)
        async with open_feedback(msgspec.convert(tables, RunConfig), ledger, None, lambda kind, text: None) as provider:
            statistics = provider.statistics()
    assert (statistics["usd"], statistics["fallback_usd"]) == (1.5, 0.375)
