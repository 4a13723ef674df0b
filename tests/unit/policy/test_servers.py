"""A fleet of servers that die, hang, lie and come back: every request ends with its own tokens or a typed error."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from fd_async.errors import (
    AlignmentError,
    EngineDied,
    EngineError,
)
from fd_async.policy.servers import watching
from fd_async.types import Completion, VersionSpan
from tests.fakes.vllm_server import VOCAB, sample
from tests.unit.policy.fleet_world import PROBE, PROMPT, World, _in_a_hurry, is_whole, world
from tests.unit.policy.test_manifest import staged as small

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
__all__ = ["_in_a_hurry", "small", "world"]


async def test_requests_spread_over_the_servers_and_keep_ids_and_logprobs(world: World) -> None:
    """Ids in, ids out, with log-probs and versions; the idlest server is asked."""
    results: list[Completion] = []

    async def one() -> None:
        results.append(await world.generate())

    async with world.open() as fleet:
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(one)
        assert fleet.statistics()["tokens_generated"] == 200
        await world.until(lambda: fleet.statistics()["kv_usage"] == 0.25)
    for completion in results:
        is_whole(completion, 20)
    sampled = [[body for body in server.seen if body.get("stream")] for server in world.servers]
    assert [len(bodies) for bodies in sampled] == [5, 5]
    params = sampled[0][0]["sampling_params"]
    assert params["ignore_eos"] is True
    assert params["logprobs"] == 0


async def test_a_stop_token_ends_a_request_and_stays(world: World) -> None:
    """As the local engine does."""
    stop = sample(PROMPT, 6)[5]
    async with world.open((stop,)):
        completion = await world.generate()
    assert completion.finish_reason == "stop"
    assert completion.token_ids == sample(PROMPT, 20)[: sample(PROMPT, 20).index(stop) + 1]


async def test_the_turns_of_an_attempt_stay_at_one_server(world: World) -> None:
    """It has their prefix in its cache."""
    async with world.open():
        for turn in range(6):
            await world.generate(name=f"train-0000001-00-t{turn}")
    assert sorted(sum(bool(body.get("stream")) for body in server.seen) for server in world.servers) == [0, 6]


@pytest.mark.parametrize(
    "fault",
    [
        {"cut_after": 7},
        {"engine_dies_after": 7},
        {"abort_after": 7},
        {"/inference/v1/generate": 500},
        {"/inference/v1/generate": 503},
        {"/inference/v1/generate": "garbage"},
        {"logprob": -9999.0},
    ],
    ids=str,
)
async def test_a_server_that_fails_a_request_loses_it_to_another(world: World, fault: dict[str, Any]) -> None:
    """The caller sees one whole completion, nothing twice, nothing missing."""
    async with world.open():
        world.servers[0].faults = fault | {"/resume": 500}  # and it does not come back
        is_whole(await world.generate(), 20)
        is_whole(await world.generate(), 20)
        await world.until(lambda: world.said("server_lost"))
    assert world.servers[0].url in world.said("server_lost")[0]


async def test_tokens_of_a_killed_server_are_not_sampled_again(world: World) -> None:
    """The next server starts from them, within the budget that is left."""
    results: list[Completion] = []

    async def one() -> None:
        results.append(await world.generate(60))

    async with world.open(), anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(one)
        await world.until(lambda: world.fleet.statistics()["tokens_generated"] > 80)
        await world.servers[0].kill()
        await world.until(lambda: len(results) == 4)
        group.cancel_scope.cancel()
    for completion in results:
        is_whole(completion, 60)
    continued = [body for body in world.servers[1].seen if body.get("stream") and len(body["token_ids"]) > len(PROMPT)]
    assert len(continued) == 2
    for body in continued:
        assert len(body["token_ids"]) - len(PROMPT) + body["sampling_params"]["max_tokens"] == 60


async def test_all_four_length_faults_are_alignment_errors(world: World) -> None:
    """Ids, log-probs, spans and scores are never padded to fit."""
    async with world.open() as fleet:
        for fault in ({"copies": 2}, {"copies": 0}, {"short_spans": 1}):
            for server in world.servers:
                server.faults = fault
            with pytest.raises(AlignmentError):
                await world.generate(5)
        for server in world.servers:
            server.faults = {"short_score": 1}
        with pytest.raises(AlignmentError):
            await fleet.score(PROBE)


async def test_a_hanging_server_is_found_by_its_missing_answer(world: World) -> None:
    """Nothing is refused and nothing is closed: only time tells."""
    results: list[Completion] = []

    async def one() -> None:
        results.append(await world.generate(40))

    async with world.open(heartbeat_s=0.2) as fleet, anyio.create_task_group() as group:
        group.start_soon(one)
        group.start_soon(one)
        await world.until(lambda: fleet.statistics()["tokens_generated"] > 10)
        world.servers[0].running.clear()
        world.servers[0].faults["/weight_info"] = "hang"
        await world.until(lambda: len(results) == 2 and world.said("server_lost"))
        group.cancel_scope.cancel()
    for completion in results:
        is_whole(completion, 40)
    assert "policy.heartbeat_s = 0.2" in world.said("server_lost")[0]


async def test_a_cut_stream_counts_only_after_a_look_at_its_label(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that came back with old weights and died in the middle leaves no tokens under a wrong version."""
    async with world.open() as fleet:
        await fleet.push(world.stage(1))
        await anyio.sleep(0.05)
        monkeypatch.setattr(watching, "_LOOK_S", 100.0)
        await anyio.sleep(0.05)
        world.servers[0].weights, world.servers[0].label = 0, "default"
        world.servers[0].faults["cut_after"] = 9
        for _ in range(3):
            is_whole(await world.generate(), 20, weights=1)


async def test_without_any_server_the_run_ends_with_one_line_that_names_them(world: World) -> None:
    """Requests wait for `policy.start_timeout_s`, then say who was missing and why."""
    async with world.open(start_timeout_s=0.3) as fleet:
        for server in world.servers:
            await server.kill()
        with pytest.raises(EngineDied, match=r"policy\.start_timeout_s = 0\.3 s .*Connect.*; start them") as caught:
            await world.generate()
        assert all(server.url in str(caught.value) for server in world.servers)
        with pytest.raises(EngineDied):
            await fleet.push(world.stage(1))


async def test_requests_wait_while_servers_are_away_and_the_time_is_not_theirs(world: World) -> None:
    """`policy.generate_timeout_s` is for sampling."""
    results: list[Completion] = []

    async def one() -> None:
        results.append(await world.generate(3))

    async with world.open(generate_timeout_s=1.0), anyio.create_task_group() as group:
        for server in world.servers:
            await server.kill()
        await world.until(lambda: len(world.said("server_lost")) == 2)
        group.start_soon(one)
        await anyio.sleep(1.2)
        await world.servers[0].start()
        await world.until(lambda: results)
    is_whole(results[0], 3)


async def test_a_request_that_breaks_every_server_fails_alone(world: World) -> None:
    """Servers come back after it; the request is not tried for ever."""
    async with world.open():
        for server in world.servers:
            server.faults["/inference/v1/generate"] = None
            server.faults["cut_after"] = 0
        with pytest.raises(EngineError, match="5 servers failed it") as caught:
            await world.generate()
        assert not isinstance(caught.value, EngineDied)


async def test_an_id_outside_the_vocabulary_never_reaches_a_server(world: World) -> None:
    """vLLM's engine dies of one."""
    async with world.open() as fleet:
        with pytest.raises(EngineError, match="vocabulary of 64"):
            await fleet.score([1, VOCAB])
        with pytest.raises(EngineError, match=r"policy\.max_model_len"):
            await world.generate(510)
    assert not any(body.get("stream") for server in world.servers for body in server.seen)


async def test_a_request_that_a_server_rejects_is_the_callers_error(world: World) -> None:
    """No other server would take it, and none has done wrong."""
    async with world.open():
        for server in world.servers:
            server.faults["/inference/v1/generate"] = 400
        with pytest.raises(EngineError, match="HTTP 400: told so"):
            await world.generate()
    assert not world.said("server_lost")


async def test_what_a_cancelled_request_sampled_is_handed_over(world: World) -> None:
    """`partial` tells it while the request runs, `salvage` when it is cancelled; the server stops sampling."""
    saved: list[Completion] = []
    async with world.open() as fleet:
        async with anyio.create_task_group() as group:

            async def one() -> None:
                await world.generate(200, name="train-1-t0", salvage=saved.append)

            group.start_soon(one)
            await world.until(lambda: (partial := fleet.partial("train-1-t0")) and len(partial.token_ids) > 20)
            group.cancel_scope.cancel()
        assert fleet.partial("train-1-t0") is None
        await world.until(lambda: all(server.in_flight == 0 for server in world.servers))
    (completion,) = saved
    assert completion.finish_reason == "abort"
    assert completion.token_ids == sample(PROMPT, len(completion.token_ids))
    assert completion.spans == [VersionSpan(0, 0, len(completion.token_ids))]
    assert len(completion.logprobs) == len(completion.token_ids)


async def test_what_no_label_vouches_for_is_handed_over_to_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled before the server was asked for its label, tokens may come from any weights."""
    monkeypatch.setattr(watching, "_LOOK_S", 60.0)
    saved: list[Completion] = []
    async with world.open(), anyio.create_task_group() as group:

        async def one() -> None:
            await world.generate(200, name="train-1-t0", salvage=saved.append)

        group.start_soon(one)
        await world.until(lambda: world.fleet.statistics()["tokens_generated"] > 20)
        group.cancel_scope.cancel()
    assert saved == []


async def test_a_request_has_a_deadline(world: World) -> None:
    """Its server may be healthy and slow."""
    async with world.open(generate_timeout_s=0.1):
        with pytest.raises(EngineError, match=r"policy\.generate_timeout_s = 0\.1"):
            await world.generate(400)
