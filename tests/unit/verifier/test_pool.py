"""Workers and their queue: affinity, order, deadlines, restarts, and nothing left behind."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from fd_async.errors import PreflightError, VerifierError
from fd_async.verifier.repl import upkeep
from fd_async.verifier.repl.pool import ReplPool, open_pool
from fd_async.verifier.repl.process import ReplDesync, ReplExited, ReplProcess, ReplSpec, ReplTimeout, clean_environment
from fd_async.verifier.repl.upkeep import PoolSettings
from fd_async.verifier.sandbox.room import unsandboxed_wrapper
from tests.unit.verifier.conftest import FAKE_REPL

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def pool_of(
    workers: int = 1, *, max_uses: int = 100, queue_timeout_s: float = 10.0, header: str = "", **limits: Any
) -> AsyncIterator[ReplPool]:
    argv = (sys.executable, "-S", "-E", FAKE_REPL)
    spec = ReplSpec(argv=argv, env=clean_environment(), import_timeout_s=10.0, wrapper=unsandboxed_wrapper())
    settings = PoolSettings(
        workers=workers, max_uses=max_uses, queue_timeout_s=queue_timeout_s, default_header=header, **limits
    )
    async with open_pool(spec, settings) as pool:
        yield pool


async def run(pool: ReplPool, text: str, header: str = "", timeout_s: float = 5.0) -> int:
    """Run one command and return the worker's process id."""
    async with pool.lease(header) as repl:
        await repl.command(f"theorem t : p := {text}", env=repl.header_env, timeout_s=timeout_s)
        return repl.pid


async def until(condition: object) -> None:
    with anyio.fail_after(10):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110  nothing tells of it
            await anyio.sleep(0.005)


async def test_a_worker_is_used_again_for_the_same_header() -> None:
    """Affinity: no restart between checks of one header."""
    async with pool_of() as pool:
        assert len({await run(pool, "h") for _ in range(5)}) == 1
        assert pool.statistics()["restarts"] == 0


async def test_a_new_header_gets_a_fresh_process_and_never_a_used_one() -> None:
    """One header per process, ever."""
    async with pool_of(2) as pool:
        first = await run(pool, "h")
        other = await run(pool, "h", header="open Nat")
        assert first != other
        assert await run(pool, "h", header="open Nat") == other
        assert pool.statistics()["busy"] == 0


async def test_headers_take_turns_on_one_worker() -> None:
    """With fewer workers than headers everybody is served all the same."""
    async with pool_of(1) as pool:
        done: list[str] = []

        async def check(header: str) -> None:
            await run(pool, "h", header=header)
            done.append(header)

        async with anyio.create_task_group() as tasks:
            for header in ("open A", "open B", "open A", "", "open B"):
                tasks.start_soon(check, header)
        assert sorted(done) == ["", "open A", "open A", "open B", "open B"]


async def test_callers_are_served_in_their_order() -> None:
    """First come, first served."""
    async with pool_of(1) as pool:
        order: list[int] = []

        async def check(number: int) -> None:
            async with pool.lease(""):
                order.append(number)

        async with anyio.create_task_group() as tasks:
            async with pool.lease(""):
                for number in range(20):
                    tasks.start_soon(check, number)
                    await until(lambda wanted=number + 1: pool.statistics()["waiting"] == wanted)
                assert order == []
        assert order == list(range(20))


async def test_no_free_worker_in_time_is_an_infrastructure_failure() -> None:
    """The message names the config keys, and the place in the queue is given up."""
    async with pool_of(1, queue_timeout_s=0.05) as pool, pool.lease(""):
        with pytest.raises(VerifierError, match=r"verifier\.queue_timeout_s = 0\.05"):
            await run(pool, "h")
        assert pool.statistics()["waiting"] == 0


async def test_a_broken_worker_is_replaced_in_the_background() -> None:
    """Timeout, crash and lost step each cost one process; the next caller finds a good one."""
    async with pool_of(1) as pool:
        pids = {await run(pool, "h")}
        for marker, failure in (("fake_hang", ReplTimeout), ("fake_die", ReplExited), ("fake_double", ReplDesync)):
            with pytest.raises(failure):
                await run(pool, marker, timeout_s=0.2 if failure is ReplTimeout else 5.0)
            pids.add(await run(pool, "h"))
        assert len(pids) == 4
        assert pool.statistics()["restarts"] == 3
        assert pool.statistics()["desyncs"] == 1


async def test_a_worker_is_replaced_after_its_uses() -> None:
    """Environments only grow, so processes do not live for ever."""
    async with pool_of(1, max_uses=2) as pool:
        pids = [await run(pool, "h") for _ in range(6)]
        assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]


async def test_a_worker_that_dies_while_idle_is_noticed() -> None:
    """The next caller gets a living process and no error."""
    async with pool_of(1) as pool:
        pid = await run(pool, "h")
        os.kill(pid, 9)
        await until(lambda: not all(slot.repl is None or slot.repl.is_usable() for slot in pool.slots))
        assert await run(pool, "h") != pid


async def test_a_rejected_header_fails_its_callers_and_not_the_pool() -> None:
    """Lean's words reach the caller, later callers fail at once, other headers go on."""
    async with pool_of(1) as pool:
        for _ in range(2):
            with pytest.raises(VerifierError, match=r"header was rejected.*import Nowhere"):
                await run(pool, "h", header="import Nowhere")
        await run(pool, "h")
        assert pool.statistics()["failed_starts"] == 1


async def test_a_pool_that_cannot_start_says_so_at_once() -> None:
    """A wrong default header is found before the run begins."""
    with pytest.raises(PreflightError, match="does not start: the Lean header was rejected"):
        async with pool_of(1, header="import Nowhere"):
            pass


async def test_cancelled_callers_leave_no_place_taken() -> None:
    """In the queue or in the middle of a check: the pool is whole afterwards."""
    async with pool_of(2) as pool:
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(run, pool, "fake_hang")
            await until(lambda: pool.statistics()["waiting"] == 4)
            await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
        await until(lambda: pool.statistics()["idle"] == 2)
        assert pool.statistics()["waiting"] == pool.statistics()["busy"] == 0
        await run(pool, "h")


async def test_closing_ends_every_process() -> None:
    """Also those that hang in the middle of a check."""
    pids: list[int] = []
    with anyio.CancelScope() as scope:
        async with pool_of(3) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(run, pool, "fake_hang")
            await until(lambda: len(pool.pids()) == 3 and pool.statistics()["busy"] == 1)
            pids = pool.pids()
            scope.cancel()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_hundreds_of_callers_are_all_answered_once() -> None:
    """Backpressure: they wait, nobody is lost, nobody is served twice."""
    async with pool_of(2) as pool:
        served: list[int] = []

        async def check(number: int) -> None:
            async with pool.lease("") as repl:
                answer = await repl.command(f"theorem t{number} : fake_error_{number}", env=0, timeout_s=10)
                assert answer.errors[0].data == f"unknown identifier 'fake_error_{number}'"
            served.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(300):
                tasks.start_soon(check, number)
        assert sorted(served) == list(range(300))


def gauges(pool: ReplPool) -> tuple[float, ...]:
    statistics = pool.statistics()
    return tuple(statistics[name] for name in ("waiting", "busy", "parked", "idle"))


def state_of(pid: int) -> str:
    """The letter that the kernel gives: R, S, T for stopped, Z for a zombie; X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


async def test_a_broken_worker_costs_no_wait_when_there_is_a_spare() -> None:
    """The next caller gets the spare at once, while the replacement loads its header."""
    async with pool_of(1, spares=1) as pool:
        await until(lambda: pool.statistics()["idle"] == 2)
        with pytest.raises(ReplExited):
            await run(pool, "fake_die")
        with anyio.fail_after(5):
            async with pool.lease(""):
                assert pool.statistics()["restarts"] <= 1
        await until(lambda: pool.statistics()["idle"] == 2)


async def test_spares_do_not_run_more_checks_at_once() -> None:
    """The rights to run are the workers, however many processes are ready."""
    async with pool_of(1, spares=2, queue_timeout_s=0.05) as pool:
        await until(lambda: pool.statistics()["idle"] == 3)
        async with pool.lease(""):
            with pytest.raises(VerifierError, match=r"verifier\.queue_timeout_s"):
                await run(pool, "h")


async def test_a_long_check_is_set_aside_for_a_short_one_and_finishes() -> None:
    """Its process stops, the short one runs in the spare, and nothing of the long one is lost or repeated."""
    async with pool_of(1, spares=1, first_budget_s=0.1) as pool:
        await until(lambda: pool.statistics()["idle"] == 2)
        done: list[str] = []

        async def long() -> None:
            async with pool.lease("") as repl:
                for number in range(12):
                    await repl.command(f"theorem t{number} : p := fake_slow", env=0, timeout_s=10)
                assert repl.running_s < anyio.current_time() - repl.started_at
            done.append("long")

        async def short() -> None:
            await run(pool, "h")
            done.append("short")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(long)
            await until(lambda: pool.statistics()["busy"] == 1)
            tasks.start_soon(short)
        assert done == ["short", "long"]
        assert pool.statistics()["set_aside"] >= 1
        assert pool.statistics()["restarts"] == 0
        await until(lambda: gauges(pool) == (0, 0, 0, 2))


async def test_a_worker_that_is_never_idle_is_recycled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Age counts also in a backlog, where every process that becomes free is taken at once."""
    monkeypatch.setattr(upkeep, "SAMPLE_S", 0.02)
    async with pool_of(1, spares=1, max_uses=10**6, max_age_s=0.2) as pool:
        used: set[int] = set()

        async def ask_again_and_again() -> None:
            while len(used) < 3:
                used.add(await run(pool, "fake_slow"))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(ask_again_and_again)
        assert pool.statistics()["restarts"] >= 1


async def test_long_checks_take_turns_and_advance_together() -> None:
    """Where nobody else waits, the stopped check that ran least goes on in place of the one that ran most."""
    async with pool_of(1, spares=1, first_budget_s=0.1) as pool:
        await until(lambda: pool.statistics()["idle"] == 2)
        steps = [0, 0]
        when_one_ended: list[int] = []

        async def long(which: int) -> None:
            async with pool.lease("") as repl:
                for number in range(32):
                    await repl.command(f"theorem t{number} : p := fake_slow", env=0, timeout_s=10)
                    steps[which] += 1
            when_one_ended.append(min(steps))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(long, 0)
            tasks.start_soon(long, 1)
        assert when_one_ended[0] >= 6, "the other had done nothing much yet"
        assert pool.statistics()["set_aside"] >= 3
        assert pool.statistics()["restarts"] == 0
        await until(lambda: gauges(pool) == (0, 0, 0, 2))


async def test_a_check_that_is_set_aside_stops_with_its_deadline_and_can_be_cancelled() -> None:
    """While it is stopped it uses neither processor nor time; cancelling it replaces its process."""
    async with pool_of(1, spares=1, first_budget_s=0.05) as pool:
        await until(lambda: pool.statistics()["idle"] == 2)
        leased: list[ReplProcess] = []

        async def spin() -> None:
            async with pool.lease("") as repl:
                leased.append(repl)
                await repl.command("theorem t : p := fake_spin", env=0, timeout_s=10)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(spin)
            await until(lambda: leased)
            async with pool.lease("") as other:  # comes when the first is set aside, and then keeps the right to run
                assert gauges(pool) == (0, 1, 1, 0)
                await until(lambda: state_of(leased[0].pid) in "Tt")
                left_s = leased[0].left_s
                await anyio.sleep(0.1)
                assert leased[0].left_s == left_s > 0
                assert gauges(pool) == (0, 1, 1, 0)
                assert other.pid != leased[0].pid
                tasks.cancel_scope.cancel()
        await until(lambda: gauges(pool) == (0, 0, 0, 2))
        assert leased[0].pid not in pool.pids()


async def test_nobody_is_set_aside_without_need_or_without_a_spare() -> None:
    """With an empty queue, or with spares 0, a long check simply runs on."""
    for spares in (0, 1):
        async with pool_of(1, spares=spares, first_budget_s=0.02) as pool, anyio.create_task_group() as tasks:
            await until(lambda pool=pool, num=spares + 1: pool.statistics()["idle"] == num)
            tasks.start_soon(run, pool, "fake_slow")
            await until(lambda pool=pool: pool.statistics()["busy"] == 1)
            if spares == 0:
                await run(pool, "h")
            await until(lambda pool=pool: pool.statistics()["busy"] == 0)
            assert pool.statistics()["set_aside"] == 0


@pytest.mark.parametrize("limit", ["max_age_s", "recycle_gib"])
async def test_a_worn_out_idle_process_is_replaced_in_the_background(
    limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old or large processes go one at a time, and callers always find another one."""
    monkeypatch.setattr(upkeep, "SAMPLE_S", 0.05)
    limits: dict[str, Any] = {limit: 1e-6}
    async with pool_of(2, **limits) as pool:
        await until(lambda: pool.statistics()["recycled"] >= 1)
        await run(pool, "h")
