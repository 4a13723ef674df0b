"""Workers and their queue: affinity, order, deadlines, restarts, and nothing left behind."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from fd_async.errors import PreflightError, VerifierError
from fd_async.verifier.pool import ReplPool, open_pool
from fd_async.verifier.repl import ReplDesync, ReplExited, ReplSpec, ReplTimeout, clean_environment
from tests.unit.verifier.conftest import FAKE_REPL

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def pool_of(
    workers: int = 1, *, max_uses: int = 100, queue_timeout_s: float = 10.0, header: str = ""
) -> AsyncIterator[ReplPool]:
    argv = (sys.executable, "-S", "-E", FAKE_REPL)
    spec = ReplSpec(argv=argv, env=clean_environment(), import_timeout_s=10.0)
    async with open_pool(
        spec, workers=workers, max_uses=max_uses, queue_timeout_s=queue_timeout_s, default_header=header
    ) as pool:
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
                await run(pool, marker, timeout_s=0.2)
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
    with anyio.CancelScope() as scope:
        async with pool_of(3) as pool, anyio.create_task_group() as tasks:
            tasks.start_soon(run, pool, "fake_hang")
            await until(lambda: len(pool.pids()) == 3)
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
