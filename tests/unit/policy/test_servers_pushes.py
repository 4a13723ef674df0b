"""Pushes to a fleet: whatever servers do meanwhile, no token is taken for another version's."""

from __future__ import annotations

import anyio
import pytest

from fd_async.errors import (
    PushFailed,
    PushRefused,
)
from fd_async.policy.manifest import REFUSED
from fd_async.policy.servers import watching
from fd_async.types import Completion
from tests.fakes.vllm_server import logprob
from tests.unit.policy.fleet_world import PROMPT, World, _in_a_hurry, is_whole, world
from tests.unit.policy.test_manifest import staged as small

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
__all__ = ["_in_a_hurry", "small", "world"]


async def test_a_push_reaches_all_servers_and_later_tokens_name_it(world: World) -> None:
    """One push; running requests go on, their spans tell where the weights changed."""
    results: list[Completion] = []

    async def one() -> None:
        results.append(await world.generate(250))

    async with world.open() as fleet:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(one)
            await world.until(lambda: fleet.statistics()["tokens_generated"] > 40)
            report = await fleet.push(world.stage(1))
            assert report.version == fleet.weight_version == 1
            assert report.probe_max_abs == 0
        is_whole(await world.generate(), 20, weights=1)
    for completion in results:
        assert [span.version for span in completion.spans] == [0, 1]
        assert completion.spans[1].end == 250
        edge = completion.spans[0].end
        ids = PROMPT + completion.token_ids
        expected = [logprob(ids[: len(PROMPT) + at], ids[len(PROMPT) + at], 0 if at < edge else 1) for at in range(250)]
        assert completion.logprobs == expected
    salts = {body["cache_salt"] for server in world.servers for body in server.seen if body.get("stream")}
    assert len(salts) == 2, "prefixes of other weights must not be found"


@pytest.mark.parametrize(
    ("in_flight", "pause"), [("keep", "keep false"), ("recompute", "keep true"), ("drain", "wait true")]
)
async def test_in_flight_chooses_how_a_server_is_held(world: World, in_flight: str, pause: str) -> None:
    """The same three ways as in the local engine."""
    async with world.open(in_flight=in_flight) as fleet, anyio.create_task_group() as group:
        group.start_soon(world.generate, 30)
        await world.until(lambda: fleet.statistics()["tokens_generated"] > 5)
        await fleet.push(world.stage(1))
    assert all(f"pause {pause}" in server.calls for server in world.servers)


async def test_a_server_that_comes_back_gets_the_weights_before_a_request(world: World) -> None:
    """Restarted, it has those of the checkpoint and says so by its label."""
    async with world.open() as fleet:
        await fleet.push(world.stage(1))
        first = world.servers[0]
        await first.kill()
        await world.until(lambda: world.said("server_lost"))
        first.seen.clear()
        await first.start()
        await world.until(lambda: len(world.said("server_joined")) >= 3)
        assert first.weights == 1
        await world.servers[1].kill()
        is_whole(await world.generate(), 20, weights=1)
    assert {body["label"] for body in first.seen if body.get("stream")} == {first.label}


async def test_answers_of_a_server_that_restarted_unseen_are_thrown_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spans of an answer tell, before any look does."""
    async with world.open() as fleet:
        await fleet.push(world.stage(1))
        await anyio.sleep(0.05)
        monkeypatch.setattr(watching, "_LOOK_S", 100.0)
        await anyio.sleep(0.05)
        world.servers[0].weights, world.servers[0].label = 0, "default"
        for _ in range(3):
            is_whole(await world.generate(), 20, weights=1)
    assert "restarted" in world.said("server_lost")[0]


async def test_a_push_that_one_server_refuses_goes_on_with_the_other(world: World) -> None:
    """The refusing one gets no new requests until it has taken the weights."""
    first, second = world.servers
    async with world.open() as fleet:
        first.faults["fd_prepare"] = f"{REFUSED}: no memory"
        await fleet.push(world.stage(1))
        assert fleet.weight_version == 1
        assert "no memory" in world.said("server_behind")[0]
        first.seen.clear()
        for _ in range(4):
            is_whole(await world.generate(), 20, weights=1)
        assert not [body for body in first.seen if body.get("stream")]
        first.faults.clear()
        await world.until(lambda: first.weights == 1 and len(world.said("server_joined")) >= 3)
        await second.kill()
        is_whole(await world.generate(), 20, weights=1)


async def test_a_push_that_all_refuse_changes_nothing(world: World) -> None:
    """The old weights serve on, and the next push is welcome."""
    async with world.open() as fleet:
        for server in world.servers:
            server.faults["fd_prepare"] = f"{REFUSED}: no memory"
        with pytest.raises(PushRefused, match="no memory"):
            await fleet.push(world.stage(1))
        assert fleet.weight_version == 0
        is_whole(await world.generate(), 20)
        for server in world.servers:
            server.faults.clear()
        await fleet.push(world.stage(1))
        is_whole(await world.generate(), 20, weights=1)


async def test_a_refusal_while_held_lets_the_server_go(world: World) -> None:
    """A lost preparation is found at the commit; nothing has changed and nothing stays paused."""
    async with world.open() as fleet:
        for server in world.servers:
            server.faults["fd_commit"] = f"{REFUSED}: version 1 was not prepared"
        with pytest.raises(PushRefused, match="not prepared"):
            await fleet.push(world.stage(1))
        is_whole(await world.generate(), 20)
        assert not world.said("server_lost")


async def test_wrong_weights_are_found_by_the_probe_and_their_tokens_thrown_away(world: World) -> None:
    """A server that loads something else is out; its running requests go back to where it was held."""
    first = world.servers[0]
    results: list[Completion] = []

    async def one() -> None:
        results.append(await world.generate(250))

    async with world.open() as fleet, anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(one)
        await world.until(lambda: fleet.statistics()["tokens_generated"] > 80)
        first.faults["loads"] = 3
        first.faults["/resume"] = None
        await fleet.push(world.stage(1))
        await world.until(lambda: len(results) == 4)
        assert "policy.probe_tolerance" in world.said("server_lost")[0]
        first.faults.clear()
        await world.until(lambda: first.weights == 1)
    for completion in results:
        assert [span.version for span in completion.spans] == [0, 1]
        ids, edge = PROMPT + completion.token_ids, completion.spans[0].end
        expected = [logprob(ids[: 3 + at], ids[3 + at], 0 if at < edge else 1) for at in range(250)]
        assert completion.logprobs == expected


async def test_a_push_fails_when_the_probe_disagrees_everywhere(world: World) -> None:
    """Then the weights or the learner are wrong, not a server."""
    async with world.open() as fleet:
        for server in world.servers:
            server.faults["loads"] = 3
        with pytest.raises(PushFailed, match=r"policy\.probe_tolerance"):
            await fleet.push(world.stage(1))
        assert fleet.weight_version == 0


async def test_a_push_during_which_all_servers_die_is_taken_by_the_first_that_returns(world: World) -> None:
    """A fleet of one must survive a restart in the middle of a push."""
    async with world.open(push_timeout_s=60.0) as fleet, anyio.create_task_group() as group:
        for server in world.servers:
            server.faults["fd_commit"] = "hang"
        group.start_soon(fleet.push, world.stage(1))
        await world.until(lambda: all("fd_commit" in server.calls for server in world.servers))
        for server in world.servers:
            await server.kill()
            server.faults.clear()
        await world.servers[1].start()
        await world.until(lambda: fleet.weight_version == 1)
        is_whole(await world.generate(), 20, weights=1)


async def test_a_push_while_all_servers_are_away_is_taken_by_the_first_that_returns(world: World) -> None:
    """The file of the weights before may be gone by then; nobody asks for it."""
    async with world.open() as fleet, anyio.create_task_group() as group:
        await fleet.push(world.stage(1))
        for server in world.servers:
            await server.kill()
        await world.until(lambda: len(world.said("server_lost")) == 2)
        group.start_soon(fleet.push, world.stage(2))
        await anyio.sleep(0.05)
        await world.servers[0].start()
        await world.until(lambda: fleet.weight_version == 2)
        is_whole(await world.generate(), 20, weights=2)
        assert world.servers[0].calls.count("fd_commit") == 2, "the older weights were not offered"
