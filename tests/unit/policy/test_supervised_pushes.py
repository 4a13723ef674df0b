"""Weights of an engine that is opened again when it is lost: the next one serves none but the last that were proven."""

from __future__ import annotations

import anyio
import pytest
from msgspec.structs import replace

from fd_async.errors import EngineDied, EngineError, LearnerRankDied, PushFailed, PushRefused
from fd_async.types import StagedWeights, VersionSpan
from tests.fakes.mortal_engine import Plan
from tests.unit.policy.supervised_world import CONFIG, _no_pause, numbers, opened
from tests.unit.policy.test_manifest import staged

pytestmark = pytest.mark.anyio
__all__ = ["_no_pause", "staged"]


async def test_the_last_weights_are_there_before_any_request(staged: StagedWeights) -> None:
    """The version stays what it was; the first engine needs none."""
    async with opened(Plan(), Plan()) as world:
        await world.generate()
        await world.engine.push(replace(staged, version=4))
        await world.lose()
        assert world.opener.last.pushed == [4]
        assert (await world.generate()).spans == [VersionSpan(4, 0, 8)]
        assert world.engine.weight_version == 4


async def test_weights_that_are_gone_are_waited_for(staged: StagedWeights) -> None:
    """The learner removed them because it stages others; requests run when these have come."""
    async with opened(Plan(), Plan(pushes=[PushRefused("the file is gone")])) as world:
        await world.engine.push(replace(staged, version=1))
        async with anyio.create_task_group() as group:
            world.opener.last.die()
            group.start_soon(world.generate)
            await anyio.wait_all_tasks_blocked()
            assert world.completions == []
            assert world.engine.weight_version == 1
            await world.engine.push(replace(staged, version=2))
        assert world.completions == [numbers(3, 8, VersionSpan(2, 0, 8))]


async def test_a_learner_that_starts_anew_may_take_longer_than_a_push(staged: StagedWeights) -> None:
    """Its weights went with it: the engine is not to blame, and waits for those that it will bring."""
    config = replace(CONFIG, push_timeout_s=0.01, max_restarts=1)
    async with opened(Plan(), Plan(pushes=[PushRefused("the file is gone")]), config=config) as world:
        await world.engine.push(replace(staged, version=2))
        await anyio.Path(staged.path).unlink()
        async with anyio.create_task_group() as group:
            world.opener.last.die()
            group.start_soon(world.generate)
            await anyio.sleep(0.05)
            await world.engine.push(replace(staged, version=1))
        assert len(world.opener.engines) == 2
        assert world.completions == [numbers(3, 8, VersionSpan(1, 0, 8))]


async def test_weights_that_never_come_end_it_with_a_reason(staged: StagedWeights) -> None:
    """Not a wait without end."""
    config = replace(CONFIG, push_timeout_s=0.01, max_restarts=1)

    async def wait() -> None:
        async with opened(Plan(), Plan(pushes=[PushRefused("the file differs")]), config=config) as world:
            await world.engine.push(staged)
            world.opener.last.die()
            await world.generate()

    with pytest.raises(EngineDied, match=r"the file differs.* no others came within policy\.push_timeout_s = 0\.01 s"):
        await wait()


@pytest.mark.parametrize("failure", [EngineDied("gone"), PushFailed("in doubt")])
async def test_a_push_that_meets_the_death_is_made_again(staged: StagedWeights, failure: EngineError) -> None:
    """The caller's push succeeds; running requests never see weights that are in doubt."""
    async with opened(Plan(sampled=3, pushes=[None, failure]), Plan()) as world:
        await world.engine.push(replace(staged, version=1))
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate)
            await anyio.wait_all_tasks_blocked()
            report = await world.engine.push(replace(staged, version=2))
        assert (report.version, world.engine.weight_version) == (2, 2)
        assert world.opener.last.pushed[-1] == 2
        assert world.completions[0].token_ids == numbers(3, 8).token_ids
        assert world.events[0] == ("engine_died", str(failure))


async def test_a_refused_push_stays_refused(staged: StagedWeights) -> None:
    """Nothing changed, so nothing is restarted, and what is brought back later are the weights before it."""
    async with opened(Plan(pushes=[None, PushRefused("a tensor is missing")]), Plan()) as world:
        await world.engine.push(replace(staged, version=1))
        with pytest.raises(PushRefused, match="a tensor is missing"):
            await world.engine.push(replace(staged, version=2))
        assert world.events == []
        await world.lose()
        assert world.opener.last.pushed == [1]


async def test_a_group_that_cannot_be_joined_again_ends_the_run(staged: StagedWeights) -> None:
    """The learner's NCCL group holds the dead workers for good."""

    async def die() -> None:
        async with opened(Plan(), config=replace(CONFIG, push="nccl")) as world:
            await world.engine.push(staged)
            await world.lose()
            pytest.fail("the block goes on")

    with pytest.raises(EngineDied, match=r'policy\.push = "nccl" cannot take a new engine'):
        await die()


async def test_a_push_by_nccl_whose_sender_failed_is_another_learners_to_make(staged: StagedWeights) -> None:
    """The next engine waits for it: the old weights have nobody to send them, and the old group is gone."""
    failure = PushFailed("loading weights failed")
    failure.__cause__ = LearnerRankDied("killed")
    async with opened(Plan(pushes=[None, failure]), Plan(), config=replace(CONFIG, push="nccl")) as world:
        address = replace(staged, path="nccl://127.0.0.1:1")
        await world.engine.push(replace(address, version=1))
        with pytest.raises(PushFailed, match="loading weights failed"):
            await world.engine.push(replace(address, version=2))
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate)
            await anyio.wait_all_tasks_blocked()
            assert (len(world.opener.engines), world.opener.last.pushed, world.completions) == (2, [], [])
            await world.engine.push(replace(address, version=1))
        assert world.completions == [numbers(3, 8, VersionSpan(1, 0, 8))]
