"""Two real `vllm serve` processes as one engine: sampling, pushes, kill -9 and return, the guard before the routes."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import anyio
import psutil
import pytest
import torch
from msgspec.structs import replace

from fd_async.config.load import load_config
from fd_async.config.schema import RunConfig
from fd_async.errors import PushRefused
from fd_async.policy.servers import open_servers
from fd_async.policy.servers.fleet import Fleet
from fd_async.types import Completion
from tests.fakes.weights import PROBE, logprobs, perturb, stage, tiny_qwen3

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(1200)]
TOLERANCE = 1e-4
STOP = 2
KEY = "FD_TEST_SERVERS_KEY"
TOML = """
[model]
path = "{model}"
dtype = "float32"
[data]
train = "none"
[policy]
engine = "servers"
servers = [{urls}]
servers_key_env = "FD_TEST_SERVERS_KEY"
max_num_seqs = 64
max_model_len = 1024
kv_cache_gib = 0.5
cpu_threads = 1
enforce_eager = true
probe_tolerance = 1e-4
start_timeout_s = 480.0
[rollout]
max_prompt_tokens = 100
max_response_tokens = 500
[feedback]
type = "lean_output"
"""


class Process:
    """One `bin/fd-serve`, without the making of its environment."""

    def __init__(self, config: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = config.parent / f"serve-{self.port}.log"
        self._config = config
        self.process: subprocess.Popen[bytes]
        self.family: list[psutil.Process] = []

    def start(self) -> None:
        command = [sys.executable, "-m", "fd_async.policy.serve", "--config", str(self._config), "--port"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*command, str(self.port)], stdout=log, stderr=log)

    def kill(self) -> None:
        """Kill the front process; its engine must follow by itself."""
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Ask it to end, as an operator does."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        self.process.wait(timeout=120)
        _, alive = psutil.wait_procs(family, timeout=10)
        for process in alive:
            process.kill()
        assert not alive, alive


class World:
    """A fleet over two servers, and the models that they serve."""

    def __init__(self, fleet: Fleet, folder: Path, processes: list[Process], events: list[tuple[str, str]]) -> None:
        self.fleet = fleet
        self.folder = folder
        self.processes = processes
        self.events = events
        self.base = tiny_qwen3(folder / "model")
        self.other = tiny_qwen3(folder / "other")
        perturb(self.other, 0.02, seed=1)
        self.versions = itertools.count(1)
        self._ids = itertools.count()

    async def generate(self, max_tokens: int = 40, temperature: float = 1.0) -> Completion:
        return await self.fleet.generate(
            PROBE,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=1.0,
            request_id=f"train-{next(self._ids):07d}-00-t0",
        )

    async def push(self, model: torch.nn.Module) -> int:
        version = next(self.versions)
        report = await self.fleet.push(stage(model, self.folder / "weights.bin", version))  # type: ignore[arg-type]
        assert report.probe_max_abs <= TOLERANCE
        return version


def off(completion: Completion, model: torch.nn.Module) -> float:
    """Return the largest difference between a completion's log-probs and the model's."""
    expected = logprobs(model, PROBE + completion.token_ids)[len(PROBE) - 1 :]  # type: ignore[arg-type]
    return max(abs(a - b) for a, b in zip(expected, completion.logprobs, strict=True))


async def until(condition: Callable[[], bool], seconds: float) -> None:
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.02)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Process], RunConfig]]:
    """Start two servers; at the end none of their processes is left."""
    folder = tmp_path_factory.mktemp("servers")
    torch.set_num_threads(1)
    tiny_qwen3(folder / "model")
    os.environ[KEY] = "a key"
    file = folder / "run.toml"
    processes = [Process(file) for _ in range(2)]
    urls = ", ".join(f'"{process.url}"' for process in processes)
    file.write_text(TOML.format(model=folder / "model", urls=urls))
    try:
        for process in processes:
            process.start()
        yield folder, processes, load_config(file, check_files=False)
        for process in processes:
            process.end()
    finally:
        for process in processes:
            process.process.kill()
            process.process.wait()


@pytest.fixture(scope="module")
async def world(started: tuple[Path, list[Process], RunConfig]) -> AsyncIterator[World]:
    """Open the fleet as soon as one server answers, and wait for both."""
    folder, processes, config = started
    events: list[tuple[str, str]] = []
    async with open_servers(
        config, stop_token_ids=[STOP], log_dir=folder, on_event=lambda kind, text: events.append((kind, text))
    ) as fleet:
        await until(lambda: sum(kind == "server_joined" for kind, _ in events) == 2, 480)
        yield World(fleet, folder, processes, events)


async def test_samples_and_scores_are_those_of_the_model(world: World) -> None:
    """Ids in, ids out; log-probs after temperature, as the learner computes them."""
    await world.push(world.base)
    sampled = await world.generate()
    assert off(sampled, world.base) <= TOLERANCE
    ids = PROBE + sampled.token_ids
    scored = await world.fleet.score(ids)
    assert max(abs(a - b) for a, b in zip(scored, logprobs(world.base, ids), strict=True)) <= TOLERANCE
    greedy = await world.generate(20, temperature=0.0)
    with torch.no_grad():
        for at, token_id in enumerate(greedy.token_ids):
            logits = world.base(torch.tensor([PROBE + greedy.token_ids[:at]])).logits[0, -1]
            assert int(logits.argmax()) == token_id


async def test_a_push_changes_all_servers_while_requests_run(world: World) -> None:
    """Every request goes on; spans name the seam; later ones are the new model's alone."""
    old = await world.push(world.base)
    results: list[Completion] = []
    new = old

    async def one() -> None:
        results.append(await world.generate(300))

    async with anyio.create_task_group() as group:
        before = world.fleet.statistics()["tokens_generated"]
        for _ in range(16):
            group.start_soon(one)
        await until(lambda: world.fleet.statistics()["tokens_generated"] > before + 300, 60)
        new = await world.push(world.other)
    assert len(results) == 16
    assert {tuple(span.version for span in completion.spans) for completion in results} <= {(old,), (old, new)}
    assert any(len(completion.spans) == 2 for completion in results)
    for _ in range(4):
        completion = await world.generate()
        assert [span.version for span in completion.spans] == [new]
        assert off(completion, world.other) <= TOLERANCE


async def test_a_push_of_a_broken_file_is_refused_and_the_old_weights_serve(world: World) -> None:
    """It is found before a server hears of it."""
    version = await world.push(world.base)
    staged = stage(world.other, world.folder / "broken.bin", next(world.versions))
    data = bytearray((world.folder / "broken.bin").read_bytes())
    data[100] ^= 1
    (world.folder / "broken.bin").write_bytes(data)
    with pytest.raises(PushRefused, match="sha256"):
        await world.fleet.push(staged)
    with pytest.raises(PushRefused, match="missing"):
        await world.fleet.push(replace(staged, names=staged.names[1:], dtypes=staged.dtypes[1:],
                                       shapes=staged.shapes[1:], offsets=staged.offsets[1:]).sealed())  # fmt: skip
    assert world.fleet.weight_version == version
    assert off(await world.generate(), world.base) <= TOLERANCE


async def test_weights_that_overflow_are_refused_by_the_workers(world: World) -> None:
    """Their own check looks at every number; nothing is held for it."""
    version = await world.push(world.base)
    broken = tiny_qwen3(world.folder / "nan")
    with torch.no_grad():
        next(broken.parameters())[0, 0] = torch.inf
    staged = stage(broken, world.folder / "nan.bin", next(world.versions))
    with pytest.raises(PushRefused, match="not finite"):
        await world.fleet.push(staged)
    assert world.fleet.weight_version == version
    assert off(await world.generate(), world.base) <= TOLERANCE


async def test_a_killed_server_loses_no_request_and_comes_back_with_the_weights(world: World) -> None:
    """kill -9 of one of two with 16 requests in flight; its engine dies with it; it returns with what was pushed."""
    version = await world.push(world.other)
    first = world.processes[0]
    results: list[Completion] = []

    async def one() -> None:
        results.append(await world.generate(400))

    async with anyio.create_task_group() as group:
        before = world.fleet.statistics()["tokens_generated"]
        for _ in range(16):
            group.start_soon(one)
        await until(lambda: world.fleet.statistics()["tokens_generated"] > before + 800, 60)
        first.kill()
        await until(lambda: any(kind == "server_lost" and first.url in text for kind, text in world.events), 10)
    assert len(results) == 16
    for completion in results:
        assert completion.finish_reason == "stop" or len(completion.token_ids) == 400
        assert [(span.version, span.start, span.end) for span in completion.spans] == [
            (version, 0, len(completion.token_ids))
        ]
        assert off(completion, world.other) <= TOLERANCE
    assert not psutil.wait_procs(first.family, timeout=10)[1], "the engine outlived its server"
    joined = len(world.events)
    first.start()
    await until(lambda: any(kind == "server_joined" and first.url in text for kind, text in world.events[joined:]), 480)
    async with aiohttp.ClientSession(headers={"authorization": f"Bearer {os.environ[KEY]}"}) as session:
        label = (await (await session.get(f"{first.url}/weight_info")).json())["weight_version"]
    assert label.endswith(f"-{version}")
    seen = [await world.generate() for _ in range(6)]
    assert all(off(completion, world.other) <= TOLERANCE for completion in seen)


async def test_the_guard_asks_for_the_key_on_every_route_but_health(world: World) -> None:
    """vLLM's own key leaves the routes that change weights open."""
    async with aiohttp.ClientSession() as session:
        for path in ("/collective_rpc", "/pause", "/resume", "/update_weight_version", "/inference/v1/generate"):
            async with session.post(world.processes[1].url + path, json={"method": "fd_discard"}) as response:
                assert response.status == 401, path
        for path, status in (("/health", 200), ("/weight_info", 401), ("/metrics", 401)):
            async with session.get(world.processes[1].url + path) as response:
                assert response.status == status, path
