"""A push without a file, from the learner's ranks to the engine: the real link and push, a transfer between threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest
import torch

from fd_async.config.schema import Policy, RunConfig
from fd_async.errors import LearnerError, PushFailed, PushRefused
from fd_async.learner import client as client_module
from fd_async.learner import link as link_module
from fd_async.learner import rank as rank_module
from fd_async.learner.client import Learner
from fd_async.learner.link import HEADER, Locate, RankSocket, Request, Send, Stage, Start
from fd_async.learner.ranks import RankProcess, accept_all
from fd_async.learner.sending import Sending
from fd_async.policy import push as push_module
from fd_async.policy.contract import TIED_HEAD, Contract, TensorSpec
from fd_async.policy.local import LocalEngine
from fd_async.policy.manifest import group_address
from fd_async.policy.push import Pusher
from tests.fakes.collective import GROUPS, SENDER, FakeVllm, without_vllm
from tests.fakes.gathering import Whole
from tests.fakes.tiny_policy import tiny_config, tiny_policy

pytestmark = pytest.mark.anyio
PROBE = [1, 2, 3]
POLICY = tiny_policy()


class ThreadLink(RankSocket):
    """Ends its thread, not the process, when the controller hangs up."""

    def _read_requests(self) -> None:
        with contextlib.suppress(OSError):
            while (header := self._read(HEADER.size)) is not None:
                request = link_module._requests.decode(self._read(HEADER.unpack(header)[0]) or b"")
                if isinstance(request, Locate):
                    self._locate(request)
                else:
                    self._requests.put(request)
        self._requests.put(None)  # type: ignore[arg-type]

    def receive(self) -> Request:
        request = super().receive()
        if request is None:
            raise ConnectionError("the controller hung up")
        return request


class TinyRank(rank_module.Rank):
    """A rank that has a model and no training engine."""

    def __init__(self, start: Start, rank: int, world_size: int) -> None:
        self._config, self._rank = start.config, rank
        self._engine: Any = Whole(POLICY)
        self._sending = Sending()


class EchoEngine(LocalEngine):
    """Scores every probe as the learner did."""

    probe: list[float]

    async def _score(self, token_ids: list[int], data_parallel_rank: int | None = None) -> list[float]:
        return self.probe


class World:
    """Both ends, connected."""

    def __init__(self, learner: Learner, engine: EchoEngine, vllm: FakeVllm) -> None:
        self.learner, self.engine, self.vllm = learner, engine, vllm

    async def stage(self, version: int) -> Any:
        staged = await self.learner.stage(version, PROBE)
        self.engine.probe = staged.probe_logprobs
        return staged


def make_config(push_timeout_s: float = 60.0) -> RunConfig:
    policy = Policy(push="nccl", push_timeout_s=push_timeout_s, tensor_parallel_size=2, data_parallel_size=2)
    return msgspec.structs.replace(tiny_config(learner={"ranks": 2}), policy=policy)


def make_engine(config: RunConfig) -> tuple[EchoEngine, FakeVllm]:
    vllm = FakeVllm()
    specs = {name: TensorSpec("float32", tuple(tensor.shape)) for name, tensor in POLICY.lm.named_parameters()}
    contract = Contract(specs, frozenset({TIED_HEAD}), True, {})
    running: Any = SimpleNamespace(llm=vllm)
    pusher = Pusher(vllm, config.policy, contract)  # type: ignore[arg-type]
    return EchoEngine(running, config.policy, [], pusher, None), vllm


@asynccontextmanager
async def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: RunConfig) -> AsyncIterator[World]:
    """Serve two ranks from threads of this process, over the real socket."""
    without_vllm(monkeypatch)
    monkeypatch.setattr(rank_module, "Rank", TinyRank)
    monkeypatch.setattr(push_module, "_SENDER", SENDER)
    monkeypatch.setattr(client_module, "_OTHERS_FOLLOW_S", 0.0)
    GROUPS.clear()
    process: Any = SimpleNamespace(pid=0, returncode=0)
    ranks = [RankProcess(rank, tmp_path / f"learner-{rank}.log", process) for rank in range(2)]
    path, died = tmp_path / "s", anyio.Event()

    def serve(rank: int) -> None:
        link = ThreadLink(str(path), rank, "secret")
        with link._socket, contextlib.suppress(OSError):  # nobody waits for a late answer
            rank_module.serve(link, rank, 2)

    threads = [threading.Thread(target=serve, args=(rank,), daemon=True) for rank in range(2)]
    async with anyio.create_task_group() as group, await anyio.create_unix_listener(path) as listener:
        for thread in threads:
            thread.start()
        await accept_all(ranks, listener, "secret", group, died)
        learner = Learner(config, ranks, tmp_path)
        await learner.start(None, None)
        engine, vllm = make_engine(config)
        yield World(learner, engine, vllm)
        for meeting in GROUPS.values():
            meeting.receiving.set()
        for rank in ranks:
            assert rank._stream is not None
            await rank._stream.aclose()
        group.cancel_scope.cancel()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


async def test_weights_travel_while_the_engine_receives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends block until the other is there, so a push that ran them in turn would never end."""
    async with opened(tmp_path, monkeypatch, make_config()) as world:
        for version in (1, 2):
            staged = await world.stage(version)
            report = await world.engine.push(staged, world.learner.send)
            assert (report.version, world.engine.weight_version) == (version, version)
        first, second = world.vllm.calls[:6], world.vllm.calls[6:]
        assert first == ["pause", "join", "start", "update", "finish 1", "resume"]
        assert second == ["pause", "start", "update", "finish 2", "resume"]
        meeting = GROUPS[staged.path]
        assert (meeting.opened, meeting.num_workers, world.vllm.info["world_size"]) == (1, 4, 5)
        assert list(meeting.tensors) == world.vllm.update["names"] == staged.names
        for name, tensor in POLICY.lm.named_parameters():
            assert torch.equal(meeting.tensors[name], tensor)
    assert not list(tmp_path.glob("weights-*"))  # noqa: ASYNC240


async def test_a_sender_that_fails_leaves_the_engine_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner's error ends the engine's wait at once, and is told as the cause."""
    async with opened(tmp_path, monkeypatch, make_config()) as world:
        staged = await world.stage(1)
        GROUPS[staged.path].failure = "NCCL error: unhandled cuda error"
        with pytest.raises(
            PushFailed, match=r"^push: loading weights failed: learner rank 0 failed: .*unhandled cuda"
        ) as caught:
            await world.engine.push(staged, world.learner.send)
        assert isinstance(caught.value.__cause__, LearnerError)
        assert "resume" not in world.vllm.calls
        assert world.engine.weight_version == 0
        with pytest.raises(PushFailed, match="in doubt"):
            await world.engine.score(PROBE)


async def test_a_receiver_that_fails_ends_the_sending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The learner is not waited for: it may be inside the transfer for ever, and says so when asked again."""
    async with opened(tmp_path, monkeypatch, make_config()) as world:
        staged = await world.stage(1)
        world.vllm.failure = "worker: out of memory"
        with pytest.raises(PushFailed, match="worker: out of memory"):
            await world.engine.push(staged, world.learner.send)
        with pytest.raises(LearnerError, match="sending of weight version 1 broke off"):
            await world.learner.save(tmp_path)


async def test_a_transfer_that_hangs_ends_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No end of the transfer has a deadline of its own; the push has, and names its key."""
    async with opened(tmp_path, monkeypatch, make_config(push_timeout_s=0.3)) as world:
        staged = await world.stage(1)
        world.vllm.deaf = True
        with pytest.raises(PushFailed, match=r"loading weights took longer than policy\.push_timeout_s = 0\.3 s"):
            await world.engine.push(staged, world.learner.send)
        assert "resume" not in world.vllm.calls
        with pytest.raises(PushFailed, match="in doubt"):
            await world.engine.push(staged, world.learner.send)


async def test_only_the_last_announced_weights_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older manifest would be filled with newer weights."""
    async with opened(tmp_path, monkeypatch, make_config()) as world:
        old = await world.stage(1)
        await world.stage(2)
        with pytest.raises(PushFailed, match="the announced one is 2"):
            await world.engine.push(old, world.learner.send)


async def test_a_push_that_nobody_would_send_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a sender or an address the engine is not even held."""
    async with opened(tmp_path, monkeypatch, make_config()) as world:
        staged = await world.stage(1)
        with pytest.raises(PushRefused, match="nobody would send"):
            await world.engine.push(staged)
        elsewhere = msgspec.structs.replace(staged, path="/dev/shm/weights-1.bin").sealed()
        with pytest.raises(PushRefused, match="nccl://HOST:PORT"):
            await world.engine.push(elsewhere, world.learner.send)
        assert world.vllm.calls == []


def test_weights_that_changed_are_not_sent() -> None:
    """A gradient step takes back what was announced."""
    sending, engine, address = Sending(), Whole(POLICY), "nccl://127.0.0.1:1"
    request = Stage(version=3, probe_ids=PROBE, folder="", address=address)
    sending.announce(engine, request, rank=0, bucket_bytes=4096, chunk_tokens=8)
    sending.forget()
    send = Send(version=3, address=address, sender=SENDER, num_workers=1)
    with pytest.raises(LearnerError, match="no gradient step between"):
        sending.send(engine, send, rank=0, bucket_bytes=4096)


@pytest.mark.parametrize("path", ["", "tcp://a:1", "nccl://a", "nccl://:1", "nccl://a:port", "nccl://a:99999"])
def test_an_address_needs_scheme_host_and_port(path: str) -> None:
    """Anything else is refused by name."""
    with pytest.raises(PushRefused, match="nccl://HOST:PORT"):
        group_address(path)
    assert group_address("nccl://127.0.0.1:5000") == ("127.0.0.1", 5000)
