"""Opening a fleet: what suits the run, and who sees the key."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from fd_async.errors import (
    ConfigError,
    PreflightError,
)
from fd_async.types import Completion
from tests.unit.policy.fleet_world import World, _in_a_hurry, is_whole, world
from tests.unit.policy.test_manifest import staged as small

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
__all__ = ["_in_a_hurry", "small", "world"]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"fingerprint": "other"}, "another checkpoint"),
        ({"dtype": "bfloat16"}, "dtype = bfloat16"),
        ({"logprobs_mode": "raw_logprobs"}, "logprobs_mode = raw_logprobs"),
        ({"data_parallel_size": 2}, "data_parallel_size = 2"),
        ({"max_model_len": 100}, "max_model_len = 100"),
    ],
    ids=str,
)
async def test_an_unsuited_server_is_refused_at_the_start(world: World, what: dict[str, Any], message: str) -> None:
    """One line: which server, what is wrong, what to start it with."""
    world.servers[1].description |= what
    with pytest.raises(PreflightError, match=message) as caught:
        async with world.open():
            pass
    assert world.servers[1].url in str(caught.value)
    assert "bin/fd-serve" in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"fd_describe": "Method 'fd_describe' is not implemented."}, "lack the extension"),
        ({"/weight_info": 404}, "/weight_info: HTTP 404"),
        ({"/inference/v1/generate": 403}, "/inference/v1/generate: HTTP 403"),
        ({"/weight_info": 401}, "HTTP 401"),
    ],
    ids=str,
)
async def test_a_plain_vllm_serve_is_refused_at_the_start(world: World, fault: dict[str, Any], message: str) -> None:
    """Without development mode, extension, route or key."""
    world.servers[0].faults = fault
    with pytest.raises(PreflightError, match=message) as caught:
        async with world.open():
            pass
    assert "bin/fd-serve" in str(caught.value)


async def test_a_server_with_weights_of_another_run_waits_for_the_first_push(world: World) -> None:
    """What it holds is unknown, unless its label is the one of a fresh process; a pause left behind is lifted."""
    for server in world.servers:
        server.label, server.weights = "otherrun-7", 7
        server.running.clear()
    results: list[Completion] = []

    async def one() -> None:
        results.append(await world.generate())

    async with world.open() as fleet, anyio.create_task_group() as group:
        group.start_soon(one)
        await anyio.sleep(0.05)
        assert not results
        await fleet.push(world.stage(1))
    is_whole(results[0], 20, weights=1)


async def test_the_key_goes_with_every_request_and_nowhere_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bearer token from the environment; an empty variable is said at once."""
    with pytest.raises(ConfigError, match="FD_TEST_KEY, which is not set"):
        async with world.open(servers_key_env="FD_TEST_KEY"):
            pass
    monkeypatch.setenv("FD_TEST_KEY", "s3cret")
    async with world.open(servers_key_env="FD_TEST_KEY") as fleet:
        await fleet.push(world.stage(1))
        await world.generate()
        await world.servers[0].kill()
        await world.until(lambda: world.said("server_lost"))
    assert all(headers["Authorization"] == "Bearer s3cret" for server in world.servers for headers in server.headers)
    assert "s3cret" not in str(world.events)
