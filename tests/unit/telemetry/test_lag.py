"""The event-loop lag monitor."""

from __future__ import annotations

import time

import anyio
import pytest

from fd_async.telemetry import lag as lag_module
from fd_async.telemetry.lag import LoopLag

pytestmark = pytest.mark.anyio


def block_50_ms() -> None:
    """Do what no coroutine should."""
    time.sleep(0.05)


async def test_a_blocked_loop_is_seen() -> None:
    """Whoever blocks the loop for 50 ms raises the maximum to about that."""
    lag = LoopLag(interval_s=0.001)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lag.run)
            await anyio.sleep(0.01)
            block_50_ms()
            await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
    assert (lag.max_ms() or 0) > 40


def test_a_block_stands_for_the_samples_that_it_hid() -> None:
    """A 1 s block among 99 good samples is what 1 in 10 events would have met, so p99 shows it."""
    lag = LoopLag(interval_s=0.1, warn_ms=1e9)
    for _ in range(99):
        lag.record(0.0)
    lag.record(1.0)
    assert lag.max_ms() == 1000
    assert lag.p50_ms() == 0
    assert (lag.p99_ms() or 0) > 850


def test_no_samples_give_none_and_reset_forgets() -> None:
    """Nothing measured is not 0 ms."""
    lag = LoopLag()
    assert (lag.p50_ms(), lag.p99_ms(), lag.max_ms()) == (None, None, None)
    lag.record(0.01)
    lag.reset()
    assert lag.p99_ms() is None


def test_a_long_block_warns_once_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line per step is enough."""
    warnings: list[float] = []
    monkeypatch.setattr(lag_module.log, "warning", lambda _, ms: warnings.append(ms), raising=False)
    lag = LoopLag()
    lag.record(0.3)
    lag.record(0.4)
    lag.reset()
    lag.record(0.5)
    assert warnings == [300, 500]
