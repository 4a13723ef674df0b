"""The real vLLM lost in every way, and opened again: callers notice nothing, and nothing is left of it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import torch
from anyio.streams.buffered import BufferedByteReceiveStream
from msgspec.structs import replace

from fd_async.config.schema import Policy
from fd_async.errors import EngineDied
from fd_async.policy.local import open_engine
from fd_async.policy.push import Pusher
from fd_async.policy.supervised import SupervisedEngine, supervised
from fd_async.types import Completion, StagedWeights
from tests.fakes.weights import PROBE, perturb, stage, tiny_qwen3
from tests.integration.test_policy import CONFIG as POLICY
from tests.integration.test_policy import STOP, until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <function Context.__del__"),
]
CONFIG = replace(POLICY, heartbeat_s=4.0, max_restarts=3)
TOLERANCE = 1e-4
TOKENS = 700
OWNER = """
import sys, anyio
from pathlib import Path
from tests.integration.test_supervision import opened
async def main():
    async with opened(Path(sys.argv[1]), log=lambda kind, line: print(kind, line, flush=True)) as engine:
        print(*engine.pids, flush=True)
        await anyio.sleep(600)
if __name__ == "__main__":
    anyio.run(main)
"""


def opened(folder: Path, config: Policy = CONFIG, log: Any = lambda kind, line: None) -> Any:
    """Supervise the tiny model in a folder."""

    def open_one() -> Any:
        model = str(folder / "model")
        return open_engine(model, config, dtype="float32", seed=0, stop_token_ids=[STOP], log_dir=folder)

    return supervised(open_one, config, stop_token_ids=[STOP], log=str(folder / "vllm.log"), on_event=log)


def traces() -> set[str]:
    """Return what this process has outside itself: children, sockets, temporary folders."""
    process = psutil.Process()
    children = [child for child in process.children(recursive=True) if runs(child) and not is_tracker(child)]
    folders = Path(tempfile.gettempdir()).glob(f"fd_async-vllm-*-{process.pid}-*")
    return {*map(str, children), *map(str, process.net_connections("inet")), *map(str, folders)}


def runs(process: psutil.Process) -> bool:
    """Say whether it does, the dead that nobody waited for apart."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_tracker(process: psutil.Process) -> bool:
    """Say whether it is the helper of multiprocessing, which stays."""
    try:
        return "resource_tracker" in str(process.cmdline())
    except psutil.NoSuchProcess:
        return False


class World:
    """The supervised engine that the tests share, and what it told."""

    def __init__(self, engine: SupervisedEngine, folder: Path, events: list[tuple[str, str, float]]) -> None:
        self.engine, self.events = engine, events
        self.base, self.other = tiny_qwen3(folder / "base"), tiny_qwen3(folder / "other")
        perturb(self.other, 0.02, seed=1)
        self.file = folder / "weights.bin"
        self.versions, self.ids = itertools.count(1), itertools.count()
        self.held: set[Path] = set()

    def stage(self, model: Any) -> StagedWeights:
        return stage(model, self.file, next(self.versions))

    async def generate(self, name: str, max_tokens: int = TOKENS, salvage: Any = None) -> Completion:
        return await self.engine.generate(
            PROBE, max_tokens=max_tokens, temperature=1.0, top_p=1.0, request_id=name, salvage=salvage
        )

    def core(self) -> int:
        """Return the core's process; note what it holds for the check at the end."""
        assert self.engine._life is not None
        self.held |= set(self.engine._life.engine._running._shared_files)  # type: ignore[attr-defined]
        return self.engine.pids[0]

    async def lose(self, number: signal.Signals) -> float:
        """Send the core a signal; return the seconds until the supervisor told of the death."""
        self.events.clear()
        began = anyio.current_time()
        os.kill(self.core(), number)
        with anyio.fail_after(60):
            await until(lambda: bool(self.events))
        return self.events[0][2] - began

    async def until_whole(self) -> float:
        """Wait until requests run again; return the seconds since the death."""
        with anyio.fail_after(200):
            await until(lambda: self.events[-1][0] == "engine_restarted")
        return self.events[-1][2] - self.events[0][2]

    async def check(self, completion: Completion, model_version: int) -> None:
        """Compare log-probs with one pass of the engine over all of it, and look for a gap."""
        assert len(completion.token_ids) == len(completion.logprobs) == completion.spans[-1].end
        assert [span.version for span in completion.spans] == [model_version]
        assert len(completion.token_ids) == TOKENS or completion.token_ids[-1] == STOP
        assert STOP not in completion.token_ids[:-1]
        scores = (await self.engine.score(PROBE + completion.token_ids))[len(PROBE) - 1 :]
        assert max(abs(a - b) for a, b in zip(completion.logprobs, scores, strict=True)) < TOLERANCE


@pytest.fixture(scope="session")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Open one engine for all tests, and look for leftovers of all its lives when it is closed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("supervision")
    tiny_qwen3(folder / "model")
    before, events = traces(), []
    async with opened(folder, log=lambda kind, line: events.append((kind, line, anyio.current_time()))) as engine:
        world = World(engine, folder, events)
        yield world
    assert world.held
    assert not [file for file in world.held if file.exists()]
    assert traces() - before == set()


@pytest.fixture
async def world(shared: World) -> World:
    """Start each test with weights of its own, which also forgives the deaths before."""
    await shared.engine.push(shared.stage(shared.base))
    return shared


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP], ids=lambda number: number.name)
async def test_requests_go_on_when_the_core_is_lost(
    world: World, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """16 at once: all come back whole, their first tokens are the same, log-probs are those of one pass."""
    results: dict[str, Completion] = {}
    generated = world.engine.statistics()["tokens_generated"]

    async def run(name: str) -> None:
        results[name] = await world.generate(name)

    names = [f"{number.name}-{i}" for i in range(16)]
    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(run, name)
        await until(lambda: world.engine.statistics()["tokens_generated"] > generated + 1500)
        parts = {name: world.engine.partial(name) for name in names}
        noticed_s = await world.lose(number)
    with capsys.disabled():
        print(f"\n{number.name}: noticed after {noticed_s:.3f} s, served again after {await world.until_whole():.1f} s")
    assert sum(part is not None for part in parts.values()) >= 8
    assert len(results) == 16
    for name, part in parts.items():
        if part is not None:
            assert results[name].token_ids[: len(part.token_ids)] == part.token_ids
            assert results[name].logprobs[: len(part.logprobs)] == part.logprobs
        await world.check(results[name], world.engine.weight_version)
    tokens = sum(len(result.token_ids) for result in results.values())
    assert world.engine.statistics()["tokens_generated"] >= generated + tokens


async def test_a_death_while_nobody_asks_is_noticed(world: World) -> None:
    """The weights are those of the last push when somebody asks again."""
    await world.engine.push(world.stage(world.other))
    scores = await world.engine.score(PROBE)
    await world.lose(signal.SIGKILL)
    assert "was killed by SIGKILL" in world.events[0][1]
    await world.until_whole()
    assert await world.engine.score(PROBE) == scores


@pytest.mark.parametrize("phase", ["_prepare", "_load"])
async def test_a_push_that_meets_the_death_succeeds(world: World, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it prepares and half-way through: the caller gets its report, and the new weights serve."""
    staged = world.stage(world.other)
    original, victims = getattr(Pusher, phase), [world.core()]

    async def killing(pusher: Pusher, *arguments: Any) -> None:
        if victims and arguments[0].version == staged.version:
            os.kill(victims.pop(), signal.SIGKILL)
        await original(pusher, *arguments)

    monkeypatch.setattr(Pusher, phase, killing)
    with anyio.fail_after(200):
        report = await world.engine.push(staged)
    assert not victims
    assert report.version == world.engine.weight_version == staged.version
    await world.check(await world.generate(f"after-{phase}"), staged.version)


async def test_a_cancelled_call_gives_up_what_it_sampled(world: World) -> None:
    """The request is gone from the engine, its tokens are not."""
    saved: list[Completion] = []
    async with anyio.create_task_group() as group:
        group.start_soon(world.generate, "cancelled", TOKENS, saved.append)
        await until(lambda: (part := world.engine.partial("cancelled")) is not None and len(part.token_ids) > 20)
        group.cancel_scope.cancel()
    (part,) = saved
    assert len(part.token_ids) == len(part.logprobs) == part.spans[-1].end > 20
    scores = (await world.engine.score(PROBE + part.token_ids))[len(PROBE) - 1 :]
    assert max(abs(a - b) for a, b in zip(part.logprobs, scores, strict=True)) < TOLERANCE
    await world.generate("after", 1)
    await until(lambda: not world.engine.statistics()["running"])


async def test_restarts_do_not_pile_up_files(world: World) -> None:
    """Descriptors of this process, after one restart and after two."""
    counts = []
    for _ in range(2):
        await world.lose(signal.SIGKILL)
        await world.until_whole()
        await world.generate(f"files-{next(world.ids)}", 1)
        counts.append(psutil.Process().num_fds())
    assert counts[1] <= counts[0]


async def test_a_death_over_the_limit_ends_with_one_line(tmp_path: Path) -> None:
    """It says how often, why, and which file tells more; nothing is left."""
    tiny_qwen3(tmp_path / "model")
    before = traces()

    async def die() -> None:
        async with opened(tmp_path, replace(CONFIG, max_restarts=0)) as engine:
            os.kill(engine.pids[0], signal.SIGKILL)
            await anyio.sleep(60)

    with pytest.raises(EngineDied) as caught:
        await die()
    message = str(caught.value)
    assert "vLLM was lost: once without a successful push between (policy.max_restarts = 0)" in message
    assert "was killed by SIGKILL" in message
    assert message.endswith(f"; see {tmp_path / 'vllm.log'}")
    assert "\n" not in message
    assert traces() - before == set()


@pytest.mark.parametrize("starts", [0, 1], ids=["first start", "restart"])
async def test_cancelling_a_start_leaves_nothing(tmp_path: Path, starts: int) -> None:
    """Also the start that follows a death."""
    tiny_qwen3(tmp_path / "model")
    before = traces()
    restarting = anyio.Event()
    with anyio.move_on_after(None if starts else 4) as scope:
        async with opened(tmp_path, log=lambda *_: restarting.set()) as engine:
            os.kill(engine.pids[0], signal.SIGKILL)
            await restarting.wait()
            await anyio.sleep(4)
            assert not engine.pids
            scope.cancel()
    assert traces() - before == set()


async def test_killing_the_controller_in_a_restart_leaves_no_process(tmp_path: Path) -> None:
    """Whatever had been started ends by itself."""
    tiny_qwen3(tmp_path / "model")
    (tmp_path / "owner.py").write_text(OWNER)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "owner.py"), str(tmp_path)]
    async with await anyio.open_process(command, stderr=subprocess.DEVNULL, env=environment) as owner:
        assert owner.stdout is not None
        lines = BufferedByteReceiveStream(owner.stdout)
        os.kill(int((await lines.receive_until(b"\n", 1000)).split()[0]), signal.SIGKILL)
        assert (await lines.receive_until(b"\n", 1000)).startswith(b"engine_died")
        with anyio.fail_after(60):
            await until(lambda: len(psutil.Process(owner.pid).children(recursive=True)) > 1)
        await anyio.sleep(1)
        processes = psutil.Process(owner.pid).children(recursive=True)
        owner.kill()
    # A process looks for its owner once vLLM is imported, which takes long on a busy machine.
    with anyio.fail_after(200):
        await until(lambda: not any(map(runs, processes)))
