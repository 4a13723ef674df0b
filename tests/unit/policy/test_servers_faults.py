"""Faults of servers outside a request: at the start, at a score, between and inside the steps of a push."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from fd_async.errors import EngineDied, EngineError, PushFailed, PushRefused
from fd_async.policy.manifest import REFUSED
from fd_async.policy.servers import watching
from tests.fakes.vllm_server import scores
from tests.unit.policy.fleet_world import PROBE, World, _in_a_hurry, is_whole, world
from tests.unit.policy.test_manifest import staged as small

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
__all__ = ["_in_a_hurry", "small", "world"]
GENERATE = "/inference/v1/generate"


async def test_what_fails_inside_the_block_comes_out_as_itself(world: World) -> None:
    """The command prints one line of it and chooses the exit code by its type, so no group may be around it."""
    with pytest.raises(KeyError, match="mine"):
        async with world.open():
            raise KeyError("mine")


async def test_a_server_that_is_not_there_yet_is_missed_aloud_and_taken_when_it_comes(world: World) -> None:
    """A run starts with the servers that are there."""
    await world.servers[0].kill()
    async with world.open() as fleet:
        (line,) = world.said("server_missing")
        assert line.startswith(f"{world.servers[0].url} is not there yet: ")
        is_whole(await world.generate(), 20)
        await world.servers[0].start()
        await world.until(lambda: fleet.statistics()["serving"] == 2)


async def test_without_any_server_at_the_start_the_run_ends_with_one_line(world: World) -> None:
    """It names the key that says how long it waited, and each server with its reason."""
    for server in world.servers:
        await server.kill()
    with pytest.raises(EngineDied, match=r"policy\.start_timeout_s = 0\.2 s") as caught:
        async with world.open(start_timeout_s=0.2):
            pass
    assert all(server.url in str(caught.value) for server in world.servers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", [500, "garbage"])
async def test_a_score_that_a_server_fails_comes_from_another(world: World, fault: Any) -> None:
    """And one that all fail is an error of the engine."""
    async with world.open(start_timeout_s=0.3) as fleet:
        world.servers[0].faults[GENERATE] = fault
        for _ in range(2):
            assert await fleet.score(PROBE) == scores(PROBE, 0)
        await world.until(lambda: world.said("server_lost"))
        world.servers[1].faults[GENERATE] = fault
        with pytest.raises(EngineError):
            await fleet.score(PROBE)


async def test_a_score_that_a_server_rejects_is_the_callers_error(world: World) -> None:
    """No other server would take it, and no server is lost for it."""
    async with world.open() as fleet:
        for server in world.servers:
            server.faults[GENERATE] = 400
        with pytest.raises(EngineError, match="told so"):
            await fleet.score(PROBE)
        assert not world.said("server_lost")


async def test_a_server_that_somebody_else_gave_weights_is_taken_out(world: World) -> None:
    """Its label is not the one that it was left with; it gets the weights of this run before the next request."""
    async with world.open() as fleet:
        await fleet.push(world.stage(1))
        first = world.servers[0]
        first.weights, first.label = 7, "of-another-run"
        await world.until(lambda: world.said("server_lost"))
        assert "shows weights 'of-another-run'" in world.said("server_lost")[0]
        await world.until(lambda: fleet.statistics()["serving"] == 2)
        assert first.weights == 1


async def test_a_server_that_was_away_and_kept_its_weights_is_only_probed(world: World) -> None:
    """A request that it failed is no reason to push to it again; a wrong probe is."""
    async with world.open() as fleet:
        await fleet.push(world.stage(1))
        first = world.servers[0]
        for joined, weights in ((3, 1), (4, 9)):
            commits = first.calls.count("fd_commit")
            first.faults |= {"cut_after": 0, "/resume": 500}
            while not world.said("server_lost")[joined - 3 :]:
                is_whole(await world.generate(), 20, weights=1)
            first.weights = weights
            first.faults.clear()
            await world.until(lambda joined=joined: len(world.said("server_joined")) >= joined)
            assert first.weights == 1
            assert first.calls.count("fd_commit") == commits + (weights == 9)


async def test_weights_that_take_their_time_are_waited_for(world: World) -> None:
    """Preparing a large model takes many looks."""
    async with world.open() as fleet:
        for server in world.servers:
            server.faults["looks"] = 3
        await fleet.push(world.stage(1))
        assert all(server.calls.count("fd_is_prepared") == 4 for server in world.servers)


@pytest.mark.parametrize(
    ("where", "what", "error"),
    [
        ("fd_prepare", "preparing the new weights", PushRefused),
        ("/pause", r"holding running requests \(policy\.in_flight\)", PushRefused),
        ("fd_commit", "loading weights", PushFailed),
    ],
)
async def test_a_step_of_a_push_that_hangs_meets_the_deadline(
    world: World, where: str, what: str, error: type[EngineError]
) -> None:
    """The line names server, step and key; whether the old weights still serve depends on the step."""
    async with world.open(push_timeout_s=1.0) as fleet:
        await fleet.push(world.stage(1))
        for server in world.servers:
            server.faults[where] = "hang"
        with anyio.fail_after(20), pytest.raises(error, match=rf"{what} took longer than policy\.push_timeout_s = 1 s"):
            await fleet.push(world.stage(2))
        assert fleet.weight_version == 1
        for server in world.servers:
            server.faults.clear()
        await world.until(lambda: fleet.statistics()["serving"] == 2)
        is_whole(await world.generate(), 20, weights=1)
        await fleet.push(world.stage(3))
        is_whole(await world.generate(), 20, weights=3)


async def test_a_label_that_does_not_follow_a_push_is_no_success(world: World) -> None:
    """What then serves there is in doubt, so it is taken out and pushed to again."""
    async with world.open() as fleet:
        world.servers[0].faults["deaf"] = True
        await fleet.push(world.stage(1))
        await world.until(lambda: any("shows weights" in text for text in world.said("server_lost")))
        world.servers[0].faults.clear()
        await world.until(lambda: fleet.statistics()["serving"] == 2)


@pytest.mark.parametrize("fault", [500, "hang"])
async def test_a_server_that_does_not_resume_after_a_refusal_is_taken_out(world: World, fault: Any) -> None:
    """It holds its requests, which go on elsewhere."""
    async with world.open(heartbeat_s=1.0) as fleet:
        first = world.servers[0]
        first.faults |= {"fd_commit": f"{REFUSED}: not prepared", "/resume": fault}
        await fleet.push(world.stage(1))
        assert fleet.statistics()["serving"] == 1
        is_whole(await world.generate(), 20, weights=1)
        first.faults.clear()
        await world.until(lambda: fleet.statistics()["serving"] == 2)
        assert first.running.is_set()


async def test_a_refusal_is_told_once_however_often_it_is_repeated(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server without memory refuses every second; a run of days must not fill its log with that."""
    monkeypatch.setattr(watching, "_LOOK_S", 0.001)
    async with world.open() as fleet:
        first = world.servers[0]
        first.faults["fd_prepare"] = f"{REFUSED}: no memory"
        await fleet.push(world.stage(1))
        await world.until(lambda: first.calls.count("fd_prepare") > 5)
    assert len(world.said("server_behind")) <= 2
