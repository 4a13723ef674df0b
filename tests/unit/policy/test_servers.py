"""A fleet of servers that die, hang, lie and come back: every request ends with its own tokens or a typed error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from msgspec.structs import replace

from fd_async.config.schema import RunConfig
from fd_async.errors import (
    AlignmentError,
    ConfigError,
    EngineDied,
    EngineError,
    PreflightError,
    PushFailed,
    PushRefused,
)
from fd_async.policy.contract import fingerprint
from fd_async.policy.manifest import REFUSED
from fd_async.policy.servers import open_servers, pushing, watching
from fd_async.policy.servers.fleet import Fleet
from fd_async.types import Completion, StagedWeights, VersionSpan
from tests.fakes.vllm_server import VOCAB, FakeServer, logprob, sample, scores
from tests.unit.policy.test_contract import write_checkpoint
from tests.unit.policy.test_manifest import staged as small

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
__all__ = ["small"]
SHAPES = {"model.embed_tokens.weight": [VOCAB, 2], "model.norm.weight": [2]}
PROMPT = [9, 10, 11]
PROBE = [3, 4, 5, 6]


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look and retry every few milliseconds."""
    monkeypatch.setattr(watching, "_LOOK_S", 0.01)
    monkeypatch.setattr(watching, "_FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(watching, "_LONGEST_RETRY_S", 0.02)
    monkeypatch.setattr(pushing, "_DISCARD_S", 0.1)
    monkeypatch.setattr(pushing, "_RESUME_S", 0.2)


class World:
    """Fake servers, the checkpoint that they serve, and a fleet over them."""

    def __init__(self, folder: Path, small: StagedWeights, servers: list[FakeServer]) -> None:
        self.folder = folder
        self.servers = servers
        self.events: list[tuple[str, str]] = []
        self.fleet: Fleet
        self._small = small
        self._ids = 0

    def config(self, **policy: Any) -> RunConfig:
        tables = {
            "model": {"path": str(self.folder), "dtype": "float32"},
            "data": {"train": "none"},
            "policy": {
                "engine": "servers",
                "servers": [server.url for server in self.servers],
                "max_model_len": 512,
                "start_timeout_s": 5.0,
                "push_timeout_s": 2.0,
                "generate_timeout_s": 20.0,
                "heartbeat_s": 5.0,
                "probe_tolerance": 1e-6,
            }
            | policy,
        }
        return msgspec.convert(tables, RunConfig)

    @asynccontextmanager
    async def open(self, stop_token_ids: tuple[int, ...] = (), **policy: Any) -> AsyncIterator[Fleet]:
        opened = open_servers(
            self.config(**policy),
            stop_token_ids=list(stop_token_ids),
            log_dir=self.folder,
            on_event=lambda kind, text: self.events.append((kind, text)),
        )
        async with opened as self.fleet:
            yield self.fleet

    def stage(self, version: int) -> StagedWeights:
        """Stage weights that the fake knows by their version."""
        data = bytes(VOCAB * 8 + 8)
        (self.folder / "weights.bin").write_bytes(data)
        return replace(
            self._small,
            version=version,
            shapes=list(SHAPES.values()),
            offsets=[0, VOCAB * 8],
            num_bytes=len(data),
            block_bytes=4096,
            sha256=[sha256(data).hexdigest()],
            probe_ids=PROBE,
            probe_logprobs=scores(PROBE, version),
        ).sealed()

    async def generate(self, max_tokens: int = 20, name: str = "", **options: Any) -> Completion:
        self._ids += 1
        return await self.fleet.generate(
            PROMPT,
            max_tokens=max_tokens,
            temperature=1.0,
            top_p=1.0,
            request_id=name or f"train-{self._ids:07d}-00-t0",
            **options,
        )

    async def until(self, condition: Callable[[], object]) -> None:
        with anyio.fail_after(10):
            while not condition():  # noqa: ASYNC110
                await anyio.sleep(0.002)

    def said(self, kind: str) -> list[str]:
        return [text for what, text in self.events if what == kind]


@pytest.fixture
async def world(tmp_path: Path, small: StagedWeights) -> AsyncIterator[World]:
    """Two servers of a tiny checkpoint."""
    write_checkpoint(tmp_path, SHAPES)
    description = {
        "fingerprint": fingerprint(str(tmp_path)),
        "model": "m",
        "dtype": "float32",
        "max_model_len": 512,
        "logprobs_mode": "processed_logprobs",
        "data_parallel_size": 1,
    }
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FakeServer(dict(description))) for _ in range(2)]
        yield World(tmp_path, small, servers)


def is_whole(completion: Completion, max_tokens: int, weights: int = 0) -> None:
    """Demand the tokens and log-probs of an undisturbed server."""
    assert completion.token_ids == sample(PROMPT, max_tokens, weights)
    ids = PROMPT + completion.token_ids
    assert completion.logprobs == [logprob(ids[:end], ids[end], weights) for end in range(len(PROMPT), len(ids))]
    assert completion.spans == [VersionSpan(weights, 0, max_tokens)]
    assert completion.finish_reason == "length"


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
        await world.until(lambda: len(results) == 2)
        group.cancel_scope.cancel()
    for completion in results:
        is_whole(completion, 40)
    assert "policy.heartbeat_s = 0.2" in world.said("server_lost")[0]


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
    async with world.open() as fleet, anyio.create_task_group() as group:
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
