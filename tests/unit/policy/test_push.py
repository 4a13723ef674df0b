"""The controller's phases of a push, against a vLLM that answers as it is told."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from fd_async.config.schema import Policy
from fd_async.errors import PushFailed, PushRefused
from fd_async.policy import push as push_module
from fd_async.policy.manifest import REFUSED
from fd_async.policy.push import Pusher
from fd_async.types import StagedWeights
from tests.fakes.collective import FakeVllm, without_vllm
from tests.unit.policy.test_contract import write_checkpoint
from tests.unit.policy.test_manifest import staged

pytestmark = pytest.mark.anyio
__all__ = ["staged"]
CONFIG = Policy(push_timeout_s=60.0)
HASTY = Policy(push_timeout_s=0.3)


class Vllm(FakeVllm):
    """Workers that prepare, in as many questions as they are told, and load at once."""

    def __init__(self) -> None:
        super().__init__()
        self.questions = 1.0
        self.error = ""
        self.engines: list[int] = []

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[bool | None]:
        self.calls.append(f"{method} {args[0]}" if method == "fd_commit" else method)
        if method == "fd_prepare":
            self.engines.append(args[0]["engines"])  # type: ignore[index]
        if method == "fd_commit" and self.failure:
            raise RuntimeError(self.failure)
        if method != "fd_is_prepared":
            return [None]
        self.questions -= 1
        if self.error:
            raise ValueError(self.error)
        return [self.questions <= 0]

    async def update_weight_version(self, version: str) -> None:
        self.calls.append(f"version {version}")


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Vllm:
    """Stand in for vLLM and its modules."""
    without_vllm(monkeypatch)
    monkeypatch.setattr(push_module, "_DISCARD_S", 0.1)
    return Vllm()


def make_pusher(vllm: Vllm, folder: Path, config: Policy = CONFIG) -> Pusher:
    return Pusher(vllm, config, write_checkpoint(folder))  # type: ignore[arg-type]


@pytest.mark.parametrize("push", ["shm", "file"])
async def test_nothing_is_held_before_everything_is_prepared(
    tmp_path: Path, staged: StagedWeights, vllm: Vllm, push: Any
) -> None:
    """Shared memory and a folder go the same way; the commit names the version that was prepared."""
    pusher = make_pusher(vllm, tmp_path, replace(CONFIG, push=push))
    vllm.questions = 3
    message = await pusher.check(staged, None)
    assert vllm.calls == ["fd_prepare", *["fd_is_prepared"] * 3]
    await pusher.commit(staged, message, None)
    assert vllm.calls[4:] == ["pause", "fd_commit 1", "version 1", "resume"]


async def test_workers_learn_how_many_engines_share_the_memory(
    tmp_path: Path, staged: StagedWeights, vllm: Vllm
) -> None:
    """Each prepares a copy in the memory of one machine; vLLM itself tells a worker that its engine is the only one."""
    await make_pusher(vllm, tmp_path, replace(CONFIG, data_parallel_size=4)).check(staged, None)
    assert vllm.engines == [4]


async def test_a_file_system_that_hangs_is_named(tmp_path: Path, staged: StagedWeights, vllm: Vllm) -> None:
    """The check gives up at its deadline, though the thread that reads is stuck; the engine hears of nothing."""
    pipe = tmp_path / "weights.pipe"
    os.mkfifo(pipe)
    try:
        hanging = replace(staged, path=str(pipe)).sealed()
        with pytest.raises(PushRefused, match=r"checking the staged file .* policy\.push_timeout_s = 0\.3 s"):
            await make_pusher(vllm, tmp_path, HASTY).check(hanging, None)
    finally:
        os.close(os.open(pipe, os.O_RDWR))
    assert vllm.calls == []


async def test_a_preparation_that_hangs_is_given_up(tmp_path: Path, staged: StagedWeights, vllm: Vllm) -> None:
    """The workers are told, so that the half-prepared weights do not keep their memory."""
    vllm.questions = float("inf")
    with pytest.raises(PushRefused, match=r"preparing the new weights .* policy\.push_timeout_s = 0\.3 s"):
        await make_pusher(vllm, tmp_path, HASTY).check(staged, None)
    assert vllm.calls[-1] == "fd_discard"
    assert "pause" not in vllm.calls


async def test_what_the_workers_refuse_is_one_line(tmp_path: Path, staged: StagedWeights, vllm: Vllm) -> None:
    """The reason comes from another process as text, with a traceback behind it."""
    vllm.error = f"{REFUSED}: model.norm.weight holds a value that is not finite\nTraceback ..."
    with pytest.raises(PushRefused, match="not finite") as caught:
        await make_pusher(vllm, tmp_path).check(staged, None)
    assert "\n" not in str(caught.value)
    assert vllm.calls[-1] == "fd_discard"


@pytest.mark.parametrize(("workers", "error", "resumes"), [(1, PushRefused, True), (2, PushFailed, False)])
async def test_a_refusal_at_the_commit_counts_for_one_worker_only(
    tmp_path: Path, staged: StagedWeights, vllm: Vllm, workers: int, error: type[Exception], resumes: bool
) -> None:
    """Of two workers the other may have loaded already: the engine holds two halves of different models."""
    vllm.failure = f"{REFUSED}: version 1 was not prepared"
    pusher = make_pusher(vllm, tmp_path, replace(CONFIG, tensor_parallel_size=workers))
    message = await pusher.check(staged, None)
    with pytest.raises(error, match="was not prepared"):
        await pusher.commit(staged, message, None)
    assert ("resume" in vllm.calls) is resumes


async def test_a_push_that_cannot_hold_the_engine_keeps_no_second_set_of_weights(
    tmp_path: Path, staged: StagedWeights, vllm: Vllm
) -> None:
    """The requests never drain: the push is refused, the engine goes on, the prepared weights go."""
    pusher = make_pusher(vllm, tmp_path, replace(CONFIG, push_timeout_s=3.0))
    message = await pusher.check(staged, None)

    async def pause(mode: str, clear_cache: bool) -> None:
        await anyio.sleep_forever()

    vllm.engine_core.pause_scheduler_async = pause
    with pytest.raises(PushRefused, match="holding running requests"):
        await pusher.commit(staged, message, None)
    assert vllm.calls[-2:] == ["resume", "fd_discard"]


@pytest.mark.parametrize(("in_flight", "empties"), [("keep", False), ("recompute", True), ("drain", True)])
async def test_where_no_request_needs_the_cache_any_more_it_is_emptied(
    tmp_path: Path, staged: StagedWeights, vllm: Vllm, in_flight: Any, empties: bool
) -> None:
    """Requests in vLLM's queue keep the salt that they came with: under it lie prefixes of the old weights."""
    asked: list[bool] = []

    async def pause(mode: str, clear_cache: bool) -> None:
        asked.append(clear_cache)

    vllm.engine_core.pause_scheduler_async = pause
    pusher = make_pusher(vllm, tmp_path, replace(CONFIG, in_flight=in_flight))
    await pusher.commit(staged, await pusher.check(staged, None), None)
    assert asked == [empties]


async def test_every_engine_must_be_prepared(tmp_path: Path, staged: StagedWeights, vllm: Vllm) -> None:
    """Of several engines vLLM passes on the first one's answers; the last is waited for all the same."""
    answers = [[[True], [False]], [[True], [True]]]

    async def ask_all(method: str, *args: Any) -> list[list[bool]]:
        assert (method, args[0]) == ("collective_rpc", "fd_is_prepared")
        return answers.pop(0)

    vllm.engine_core.call_utility_all_async = ask_all
    await make_pusher(vllm, tmp_path, replace(CONFIG, data_parallel_size=2)).check(staged, None)
    assert answers == []


async def test_a_cancelled_check_stops_reading(
    tmp_path: Path, staged: StagedWeights, vllm: Vllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is ending: its threads are told."""
    started, told = threading.Event(), threading.Event()

    def check(weights: StagedWeights, stop: threading.Event) -> None:
        started.set()
        if stop.wait(10):
            told.set()

    monkeypatch.setattr(push_module, "check_file", check)
    async with anyio.create_task_group() as group:
        group.start_soon(make_pusher(vllm, tmp_path, CONFIG).check, staged, None)
        wait: Callable[[float], bool] = started.wait
        assert await anyio.to_thread.run_sync(wait, 10.0)
        group.cancel_scope.cancel()
    assert await anyio.to_thread.run_sync(told.wait, 10.0)
    assert vllm.calls == []
