"""Memory, cancelled callers and killed parents: whatever happens to a worker, nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from fd_async.errors import VerifierError
from fd_async.verifier.repl import upkeep
from fd_async.verifier.repl.pool import ReplPool
from fd_async.verifier.repl.process import ReplExited
from tests.unit.verifier.test_pool import gauges, pool_of, run, state_of, until

pytestmark = pytest.mark.anyio


async def test_a_worker_over_its_memory_is_killed_and_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller learns the key; the process is replaced."""
    monkeypatch.setattr(upkeep, "SAMPLE_S", 0.05)
    async with pool_of(1, resident_limit_gib=0.0001) as pool:
        with pytest.raises(ReplExited, match=r"out of memory.*verifier\.resident_limit_gib = 0\.0001") as caught:
            await run(pool, "fake_hang", timeout_s=10.0)
        assert caught.value.is_out_of_memory
        assert pool.statistics()["out_of_memory"] == 1


async def test_a_caller_cancelled_at_any_tick_leaks_nothing() -> None:
    """After k steps of the loop, for every k until the check is through: counts, descriptors and processes agree."""
    async with pool_of(2, spares=1, first_budget_s=0.02) as pool:
        await until(lambda: gauges(pool) == (0, 0, 0, 3))
        descriptors = len(os.listdir("/proc/self/fd"))
        for ticks in range(40):
            marker = ("h", "fake_slow", "fake_die", "fake_bytewise")[ticks % 4]
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(_survive, pool, marker)
                for _ in range(ticks):
                    await anyio.lowlevel.checkpoint()
                if ticks % 3 == 2:
                    await anyio.sleep(0.03)
                tasks.cancel_scope.cancel()
            assert gauges(pool)[:3] == (0, 0, 0)
        await until(lambda: gauges(pool) == (0, 0, 0, 3))
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert all(state_of(pid) in "SRD" for pid in pool.pids())
        await run(pool, "h")


async def _survive(pool: ReplPool, marker: str) -> None:
    try:
        await run(pool, marker)
    except ReplExited:
        assert marker == "fake_die"


async def test_a_fresh_process_is_cancelled_without_a_trace() -> None:
    """Also while it starts, and the places for fresh processes are all free afterwards."""
    async with pool_of(1, fresh_at_once=1) as pool:
        descriptors = len(os.listdir("/proc/self/fd"))
        for ticks in (0, 1, 2, 5, 20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_use_fresh, pool)
                for _ in range(ticks):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        await _use_fresh(pool)
        assert len(os.listdir("/proc/self/fd")) == descriptors


async def _use_fresh(pool: ReplPool) -> None:
    async with pool.fresh("") as repl:
        await repl.command("theorem t : p := h", env=0, timeout_s=5)


async def test_workers_end_with_a_parent_that_is_killed() -> None:
    """A busy worker without a sandbox does not outlive a run that had no time to say goodbye."""
    program = """
import anyio
from tests.unit.verifier.test_pool import pool_of, run
async def main():
    async with pool_of() as pool, anyio.create_task_group() as tasks:
        print(pool.pids()[0], flush=True)
        await run(pool, "fake_spin", timeout_s=60)
anyio.run(main)
"""
    root = str(Path(__file__).parents[3])
    async with await anyio.open_process([sys.executable, "-c", program], cwd=root, env={**os.environ}) as parent:
        assert parent.stdout is not None
        with anyio.fail_after(20):
            pid = int(await parent.stdout.receive())
        await until(lambda: state_of(pid) == "R")
        parent.send_signal(signal.SIGKILL)
        await until(lambda: state_of(pid) in "XZ")


async def test_a_fresh_worker_waits_for_its_start_only_so_long() -> None:
    """Also where all places to start are taken for good."""
    async with pool_of(1, queue_timeout_s=0.05, starts_at_once=1) as pool:
        async with pool.workers.starting:
            with anyio.fail_after(20), pytest.raises(VerifierError, match="queue_timeout_s"):
                async with pool.fresh(""):
                    pass
        assert pool.statistics()["failed_starts"] == 0
