"""Requests to an engine that is opened again when it is lost: what they notice of it, which is nothing."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from fd_async.types import StagedWeights, VersionSpan
from tests.fakes.mortal_engine import Plan
from tests.unit.policy.supervised_world import PROMPT, STOP, _no_pause, numbers, opened
from tests.unit.policy.test_manifest import staged

pytestmark = pytest.mark.anyio
__all__ = ["_no_pause", "staged"]


async def test_a_request_goes_on_from_its_tokens() -> None:
    """Two deaths on the way: one completion without a gap, and each engine is asked only for what is missing."""
    async with opened(Plan(sampled=3), Plan(sampled=2), Plan()) as world:
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate)
            await anyio.wait_all_tasks_blocked()
            await world.lose()
            await world.lose()
        assert world.completions == [numbers(3, 8)]
        assert [len(asked["prompt_ids"]) for engine in world.opener.engines for asked in engine.asked] == [3, 6, 8]
        assert [asked["max_tokens"] for engine in world.opener.engines for asked in engine.asked] == [8, 5, 3]
        assert world.salvaged == []
        assert [kind for kind, _ in world.events] == ["engine_died", "engine_restarted"] * 2
        assert world.opener.engines[0].is_killed


@pytest.mark.parametrize(("max_tokens", "reason"), [(4, "length"), (200, "stop")])
async def test_an_engine_that_died_after_the_last_token_is_not_asked_again(max_tokens: int, reason: str) -> None:
    """Only the news of the end is missing, which the tokens tell themselves."""
    sampled = 4 if reason == "length" else STOP - len(PROMPT) + 1
    async with opened(Plan(sampled=sampled), Plan()) as world:
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate, max_tokens)
            await anyio.wait_all_tasks_blocked()
            await world.lose()
        assert world.completions == [numbers(3, sampled, reason=reason)]
        assert world.opener.last.asked == []


async def test_a_request_without_a_token_starts_afresh() -> None:
    """With the same seed; a later part has one of its own, or it would repeat the random numbers of the first."""
    async with opened(Plan(sampled=0), Plan(sampled=2), Plan()) as world:
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate, 8, 5)
            await anyio.wait_all_tasks_blocked()
            await world.lose()
            await world.lose()
        assert world.completions == [numbers(3, 8)]
        first, second, third = (engine.asked[0]["seed"] for engine in world.opener.engines)
        assert first == second == 5 != third


async def test_versions_of_a_joined_completion_are_those_of_its_parts(staged: StagedWeights) -> None:
    """A span ends where the version changes, not where the engine did."""
    async with opened(Plan(sampled=3), Plan(sampled=2), Plan()) as world:
        await world.engine.push(replace(staged, version=1))
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate)
            await anyio.wait_all_tasks_blocked()
            await world.lose()
            await world.engine.push(replace(staged, version=2))
            await world.lose()
        assert world.completions == [numbers(3, 8, VersionSpan(1, 0, 5), VersionSpan(2, 5, 8))]


async def test_what_was_sampled_can_be_read_and_saved_over_a_restart() -> None:
    """Whether an engine runs or not, tokens of all parts are told, in one piece."""
    async with opened(Plan(sampled=3), Plan(sampled=2)) as world, anyio.create_task_group() as group:
        group.start_soon(world.generate)
        await anyio.wait_all_tasks_blocked()
        assert world.engine.partial("r") == numbers(3, 3, reason="abort")
        world.opener.may_open = anyio.Event()
        await world.lose()
        assert world.engine.partial("r") == numbers(3, 3, reason="abort")
        assert world.engine.statistics()["waiting"] == 1
        world.opener.may_open.set()
        await anyio.wait_all_tasks_blocked()
        assert world.engine.partial("r") == numbers(3, 5, reason="abort")
        group.cancel_scope.cancel()
    assert world.salvaged == [numbers(3, 5, reason="abort")]
    assert world.engine.partial("r") is None


async def test_cancelling_a_request_that_waits_for_an_engine_saves_its_tokens() -> None:
    """Nobody else has them any more."""
    async with opened(Plan(sampled=3)) as world, anyio.create_task_group() as group:
        group.start_soon(world.generate)
        await anyio.wait_all_tasks_blocked()
        world.opener.may_open = anyio.Event()
        await world.lose()
        group.cancel_scope.cancel()
    assert world.salvaged == [numbers(3, 3, reason="abort")]


async def test_calls_while_no_engine_runs_wait_for_the_next() -> None:
    """Requests, scores and statistics alike; a score that met the death is asked again."""
    scores: list[list[float]] = []
    async with opened(Plan(sampled=0), Plan()) as world:

        async def score() -> None:
            scores.append(await world.engine.score([1, 2]))

        async with anyio.create_task_group() as group:
            group.start_soon(score)
            await anyio.wait_all_tasks_blocked()
            world.opener.may_open = anyio.Event()
            await world.lose()
            group.start_soon(world.generate)
            await anyio.wait_all_tasks_blocked()
            assert (scores, world.completions, world.engine.pids) == ([], [], [])
            assert world.engine.statistics() == {
                "running": 0.0,
                "waiting": 1.0,
                "kv_usage": 0.0,
                "tokens_generated": 0.0,
                "restarts": 0.0,
                "serving": 0.0,
            }
            world.opener.may_open.set()
        assert (scores, world.completions) == ([[0.0]], [numbers(3, 8)])


async def test_tokens_are_counted_over_all_engines() -> None:
    """The figure never falls, in the moment of the death neither."""
    async with opened(Plan(sampled=3), Plan()) as world:
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate)
            await anyio.wait_all_tasks_blocked()
            assert world.engine.statistics()["tokens_generated"] == 3
            world.opener.may_open = anyio.Event()
            await world.lose()
            assert world.engine.statistics()["tokens_generated"] == 3
            world.opener.may_open.set()
        figures = world.engine.statistics()
        assert (figures["tokens_generated"], figures["restarts"]) == (8, 1)


async def test_requests_that_vllm_gave_up_at_its_end_go_on() -> None:
    """Told to end by SIGTERM, vLLM aborts what runs before its processes end."""
    async with opened(Plan(sampled=3, gives_up=True), Plan()) as world:
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate)
            await anyio.lowlevel.checkpoint()
            world.opener.last.die()
        assert world.completions == [numbers(3, 8)]


async def test_a_request_that_vllm_gave_up_alone_is_told() -> None:
    """The engine lives: the caller has to know."""
    async with opened(Plan(sampled=3, gives_up=True)) as world:
        assert await world.generate() == numbers(3, 3, reason="abort")


async def test_cancelling_a_request_that_vllm_gave_up_saves_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who tells vLLM to end often tells the run too, while it waits for the death of the engine."""
    monkeypatch.setattr("fd_async.policy.supervised._DEATH_FOLLOWS_S", 60.0)
    async with opened(Plan(sampled=3, gives_up=True)) as world, anyio.create_task_group() as group:
        group.start_soon(world.generate)
        await anyio.wait_all_tasks_blocked()
        assert world.engine.partial("r") == numbers(3, 3, reason="abort")
        group.cancel_scope.cancel()
    assert world.salvaged == [numbers(3, 3, reason="abort")]
