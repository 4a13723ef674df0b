"""How a supervised engine ends: with its block, or when opening it again does not help."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from fd_async.errors import EngineDied, EngineError
from fd_async.types import StagedWeights
from tests.fakes.mortal_engine import Plan, no_start
from tests.unit.policy.supervised_world import CONFIG, World, _no_pause, numbers, opened
from tests.unit.policy.test_manifest import staged

pytestmark = pytest.mark.anyio
__all__ = ["_no_pause", "staged"]


async def test_too_many_deaths_end_it_with_one_line(staged: StagedWeights) -> None:
    """How often, why, where to read more; a successful push begins the count anew, what is pushed back does not."""
    message = (
        r"^vLLM was lost: 3 times without a successful push between \(policy\.max_restarts = 2\); "
        r"last: killed again; see logs/vllm\.log$"
    )

    async def die() -> None:
        async with opened(Plan(), config=replace(CONFIG, max_restarts=2)) as world:
            for _ in range(2):
                await world.lose()
                await world.lose()
                await world.engine.push(staged)
            await world.lose()
            await world.lose()
            assert world.opener.last.pushed == [staged.version]
            await world.lose("killed again")
            pytest.fail("the block goes on")

    with pytest.raises(EngineDied, match=message):
        await die()


async def test_calls_that_wait_are_told_of_the_end() -> None:
    """None of them hangs, and none gets an answer."""
    failures: list[Exception] = []
    worlds: list[World] = []

    async def fails(call: Awaitable[Any]) -> None:
        with anyio.CancelScope(shield=True):  # as in a caller's own clean-up
            try:
                await call
            except EngineDied as error:
                failures.append(error)

    async def die() -> None:
        async with opened(Plan(sampled=3), config=replace(CONFIG, max_restarts=0)) as world:
            worlds.append(world)
            async with anyio.create_task_group() as group:
                group.start_soon(fails, world.generate())
                group.start_soon(fails, world.engine.score([1, 2]))
                await anyio.wait_all_tasks_blocked()
                world.opener.last.die()

    with pytest.raises(EngineDied, match=r"once .*max_restarts = 0"):
        await die()
    assert [str(error).startswith("vLLM was lost: once") for error in failures] == [True, True]
    assert worlds[0].salvaged == [numbers(3, 3, reason="abort")]


async def test_a_start_that_fails_counts_as_a_death() -> None:
    """And is tried again."""
    async with opened(Plan(), no_start(), Plan()) as world:
        await world.lose()
        assert await world.generate() == numbers(3, 8)
        assert ("engine_died", "the restart failed: vLLM did not start: no memory") in world.events


async def test_starts_that_go_on_failing_end_it() -> None:
    """With the reason of the last."""

    async def die() -> None:
        async with opened(Plan(), no_start(), config=replace(CONFIG, max_restarts=2)) as world:
            await world.lose()
            await world.generate()

    with pytest.raises(EngineDied, match=r"3 times .*: vLLM did not start: no memory"):
        await die()


async def test_a_first_start_that_fails_is_told_as_it_is() -> None:
    """Nothing ran yet: the reason is the configuration or the machine."""
    with pytest.raises(EngineError, match=r"^vLLM did not start: no memory$"):
        async with opened(no_start()):
            pytest.fail("the block is entered")


async def test_leaving_the_block_ends_a_restart() -> None:
    """Nothing opens any more."""
    async with opened(Plan()) as world:
        world.opener.may_open = anyio.Event()
        await world.lose()
        assert world.opener.num_open == 0
    assert len(world.opener.engines) == 1


async def test_an_error_of_the_block_comes_out_as_it_is() -> None:
    """Not wrapped into a group."""
    with pytest.raises(KeyError, match="mine"):
        async with opened(Plan()):
            raise KeyError("mine")
