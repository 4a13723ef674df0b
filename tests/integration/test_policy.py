"""The engine on the real vLLM CPU build: sampling, scoring, pushes, bad pushes, death and clean exits."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from operator import attrgetter
from pathlib import Path

import anyio
import psutil
import pytest
import torch
from anyio.streams.buffered import BufferedByteReceiveStream
from msgspec.structs import replace

from fd_async.config.schema import Policy
from fd_async.errors import EngineDied, EngineError, PushFailed, PushRefused
from fd_async.policy import LocalEngine, open_engine
from fd_async.types import Completion, StagedWeights
from tests.fakes.bad_pushes import BAD_PUSHES
from tests.fakes.weights import PROBE, logprobs, perturb, stage, tiny_qwen3

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # vLLM forgets its ZeroMQ context when a start fails.
    pytest.mark.filterwarnings("ignore:Exception ignored in. <function Context.__del__"),
]

TOLERANCE = 1e-4
STOP = 2
CONFIG = Policy(
    max_num_seqs=64,
    max_model_len=1024,
    kv_cache_gib=0.5,
    enforce_eager=True,
    cpu_threads=1,
    probe_tolerance=TOLERANCE,
    start_timeout_s=240,
)
OWNER = """
import sys, time, anyio
from fd_async.policy import open_engine
from tests.integration.test_policy import CONFIG
async def main():
    async with open_engine(sys.argv[1], CONFIG, dtype="float32", seed=0, stop_token_ids=[], frozen=True) as engine:
        print(*engine.pids, flush=True)
        await anyio.sleep(600)
if __name__ == "__main__":
    anyio.run(main)
"""


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that sends no event."""
    while not condition():  # noqa: ASYNC110
        await anyio.sleep(0.01)


class World:
    """The engine that the tests share, the model it started from, and a file to stage into."""

    def __init__(self, engine: LocalEngine, folder: Path) -> None:
        self.engine = engine
        self.base = tiny_qwen3(folder / "model")
        self.other = tiny_qwen3(folder / "other")
        perturb(self.other, 0.02, seed=1)
        self.file = folder / "weights.bin"
        self.versions = itertools.count(1)
        self.ids = itertools.count()

    def stage(self, model: object) -> StagedWeights:
        return stage(model, self.file, next(self.versions))  # type: ignore[arg-type]

    async def generate(self, max_tokens: int = 40, temperature: float = 1.0, seed: int | None = None) -> Completion:
        return await self.engine.generate(
            PROBE, max_tokens=max_tokens, temperature=temperature, top_p=1.0, request_id=f"r{next(self.ids)}", seed=seed
        )

    async def generate_many(self, count: int, max_tokens: int, results: list[Completion]) -> None:
        async def one() -> None:
            results.append(await self.generate(max_tokens))

        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(one)

    async def keep_asking(self, results: list[Completion], max_tokens: int, ended: anyio.Event) -> None:
        """Have 16 requests in flight until the event; each is answered, or the test fails."""

        async def one_by_one() -> None:
            while not ended.is_set():
                results.append(await self.generate(max_tokens))

        async with anyio.create_task_group() as group:
            for _ in range(16):
                group.start_soon(one_by_one)

    async def until_tokens(self, count: int) -> None:
        """Wait until the engine has sampled that many more tokens."""
        goal = self.engine.statistics()["tokens_generated"] + count
        await until(lambda: self.engine.statistics()["tokens_generated"] >= goal)


@pytest.fixture(scope="session")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Open one engine for all tests and look for leftovers when it closes."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("policy")
    tiny_qwen3(folder / "model")
    async with open_engine(
        str(folder / "model"), CONFIG, dtype="float32", seed=0, stop_token_ids=[STOP], log_dir=folder
    ) as engine:
        yield World(engine, folder)
    assert not [pid for pid in engine.pids if psutil.pid_exists(pid)]


@pytest.fixture
async def world(shared: World) -> World:
    """Start each test from the base weights."""
    shared.engine._suspect = ""
    await shared.engine.push(shared.stage(shared.base))
    return shared


def differences(model: object, completion: Completion, temperature: float = 1.0) -> list[float]:
    """Compare the engine's log-probs with Hugging Face's, token by token."""
    expected = logprobs(model, PROBE + completion.token_ids, temperature)[len(PROBE) - 1 :]  # type: ignore[arg-type]
    return [abs(a - b) for a, b in zip(completion.logprobs, expected, strict=True)]


async def test_log_probs_are_those_of_the_sampling_distribution(world: World) -> None:
    """They equal Hugging Face's log_softmax after temperature, for sampled tokens and for scored ones."""
    completion = await world.generate(temperature=0.7)
    assert max(differences(world.base, completion, 0.7)) < TOLERANCE
    scores = await world.engine.score(PROBE)
    assert max(abs(a - b) for a, b in zip(scores, logprobs(world.base, PROBE), strict=True)) < TOLERANCE


async def test_a_completion_is_aligned_and_keeps_its_stop_token(world: World) -> None:
    """Ids, log-probs and spans agree; the stop token is the last id and nowhere else."""
    results: list[Completion] = []
    await world.generate_many(48, 200, results)
    for result in results:
        assert len(result.token_ids) == len(result.logprobs) == result.spans[-1].end
        assert [span.version for span in result.spans] == [world.engine.weight_version]
        assert STOP not in result.token_ids[:-1]
        assert (result.token_ids[-1] == STOP) == (result.finish_reason == "stop")
    assert {result.finish_reason for result in results} == {"stop", "length"}


async def test_a_seed_repeats_a_sample(world: World) -> None:
    """The same request with the same seed gives the same ids, another seed others."""
    first, again, other = [await world.generate(seed=seed) for seed in (7, 7, 8)]
    assert first.token_ids == again.token_ids != other.token_ids


async def test_a_request_that_does_not_fit_is_refused(world: World) -> None:
    """The message names the configuration key."""
    with pytest.raises(EngineError, match=r"policy\.max_model_len = 1024"):
        await world.generate(max_tokens=1024)


async def test_a_push_changes_what_is_sampled(world: World) -> None:
    """After it, ids and log-probs are the new model's, tied output matrix included, in spite of the prefix cache."""
    before = await world.generate(seed=3)
    report = await world.engine.push(world.stage(world.other))
    assert report.probe_max_abs < TOLERANCE
    assert world.engine.weight_version == report.version
    after = await world.generate(seed=3)
    assert after.token_ids != before.token_ids
    assert max(differences(world.other, after)) < TOLERANCE
    await world.engine.push(world.stage(world.base))
    assert await world.generate(seed=3) == replace(before, spans=(await world.generate(seed=3)).spans)


@pytest.mark.parametrize("in_flight", ["keep", "recompute", "drain"])
async def test_a_push_in_flight_loses_no_request(world: World, in_flight: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running requests go on over the push, or end before it, as the configuration says; spans tell which."""
    monkeypatch.setattr(world.engine._pusher, "_config", replace(CONFIG, in_flight=in_flight))
    old = world.engine.weight_version
    results: list[Completion] = []
    staged, pushed = world.stage(world.other), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(world.keep_asking, results, 600, pushed)
        await world.until_tokens(400)
        new = (await world.engine.push(staged)).version
        pushed.set()
        during = await world.generate()
    assert [span.version for span in during.spans] == [new]
    crossed = [result for result in results if [span.version for span in result.spans] == [old, new]]
    if in_flight == "drain":
        assert not crossed
        return
    assert crossed
    if in_flight == "recompute":
        for result in crossed:
            assert max(differences(world.other, result)[result.spans[1].start :]) < TOLERANCE


@pytest.mark.parametrize("bad", BAD_PUSHES)
async def test_a_bad_push_is_refused_and_the_old_weights_serve(world: World, bad: str) -> None:
    """The refused push changes neither ids nor log-probs nor version, by no bit; the next good one works."""
    before, version = await world.generate(seed=5), world.engine.weight_version
    scores = await world.engine.score(PROBE)
    with pytest.raises(PushRefused):
        await world.engine.push(BAD_PUSHES[bad](world.stage(world.other)))
    assert world.engine.weight_version == version
    assert await world.generate(seed=5) == before
    assert await world.engine.score(PROBE) == scores
    await world.engine.push(world.stage(world.other))
    assert max(differences(world.other, await world.generate())) < TOLERANCE


async def test_refused_pushes_do_not_touch_running_requests(world: World) -> None:
    """Requests that run through every kind of bad push end whole, sampled by one version."""
    version = world.engine.weight_version
    results: list[Completion] = []
    staged, refused = world.stage(world.other), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(world.keep_asking, results, 300, refused)
        await world.until_tokens(50)
        for bad in BAD_PUSHES.values():
            with pytest.raises(PushRefused):
                await world.engine.push(bad(staged))
        refused.set()
    assert len(results) >= 16
    assert all([span.version for span in result.spans] == [version] for result in results)
    assert max(max(differences(world.base, result)) for result in results) < TOLERANCE


async def test_pushes_are_prepared_beside_the_live_weights(world: World) -> None:
    """The engine is held for a swap: vLLM's own reload is for layers that need it, and these do not."""
    staged = world.stage(world.other)
    await world.engine.push(staged)
    assert world.engine._log_dir is not None
    log = (world.engine._log_dir / "vllm.log").read_text()
    assert f"version {staged.version} was prepared beside the live weights and swapped in" in log
    assert "while vLLM reloads" not in log


async def test_without_preparation_vllm_reloads_while_it_is_held(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`policy.push_ahead = false` gives the same weights, before and after a push that was prepared."""
    for ahead in (False, True, False):
        monkeypatch.setattr(world.engine._pusher, "_config", replace(CONFIG, push_ahead=ahead))
        await world.engine.push(world.stage(world.other))
        assert max(differences(world.other, await world.generate())) < TOLERANCE
        await world.engine.push(world.stage(world.base))
        assert max(differences(world.base, await world.generate())) < TOLERANCE


@pytest.mark.parametrize(
    ("phase", "call", "error"),
    [
        ("preparing the new weights", "collective_rpc", PushRefused),
        ("holding running requests", "engine_core.pause_scheduler_async", PushRefused),
        ("loading weights", "update_weight_version", PushFailed),
        ("resuming", "resume_generation", PushFailed),
    ],
)
async def test_a_phase_out_of_time_names_itself(
    world: World, phase: str, call: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that does not answer ends the push after `policy.push_timeout_s`, and says what it waited for."""

    async def hang(*_: object, **__: object) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(world.engine._pusher, "_config", replace(CONFIG, push_timeout_s=0.5))
    monkeypatch.setattr("fd_async.policy.push._DISCARD_S", 0.1)
    staged = world.stage(world.other)
    with monkeypatch.context() as patch:
        owner, _, name = call.rpartition(".")
        patch.setattr(attrgetter(owner)(world.engine._llm) if owner else world.engine._llm, name, hang)
        with pytest.raises(error, match=rf"push: {phase}.* policy\.push_timeout_s = 0\.5 s"):
            await world.engine.push(staged)
    await world.engine._llm.resume_generation()
    if error is PushRefused:
        assert max(differences(world.base, await world.generate())) < TOLERANCE
    else:
        with pytest.raises(PushFailed, match="in doubt"):
            await world.generate()


async def test_the_worker_refuses_what_the_controller_let_through(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own check, before it touches a layer, is reported as a refusal as well."""
    before = await world.generate(seed=5)
    monkeypatch.setattr("fd_async.policy.push.check_manifest", lambda *_, **__: None)
    with pytest.raises(PushRefused, match="is missing"):
        await world.engine.push(BAD_PUSHES["missing tensor"](world.stage(world.other)))
    assert await world.generate(seed=5) == before


async def test_a_probe_that_disagrees_ends_all_requests(world: World) -> None:
    """The engine's weights are in doubt: running requests fail, new ones are refused, the version stays."""
    staged = world.stage(world.other)
    version = world.engine.weight_version
    failures: list[Exception] = []

    async def runs() -> None:
        try:
            await world.generate(900)
        except PushFailed as error:
            failures.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(16):  # enough work that none of them ends before the probe
            group.start_soon(runs)
        await world.until_tokens(5)
        with pytest.raises(PushFailed, match=r"policy\.probe_tolerance"):
            await world.engine.push(replace(staged, probe_logprobs=[math.nan, *staged.probe_logprobs[1:]]).sealed())
    assert failures
    assert world.engine.weight_version == version
    with pytest.raises(PushFailed, match="in doubt"):
        await world.generate()


async def test_cancelling_a_call_aborts_its_request(world: World) -> None:
    """Nobody is left running for a caller that is gone."""
    with anyio.move_on_after(30) as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(world.generate_many, 8, 900, [])
            await world.until_tokens(100)
            group.cancel_scope.cancel()
        await world.generate(1)
        await until(lambda: not world.engine.statistics()["running"])
    assert not scope.cancelled_caught


@pytest.mark.parametrize("victim", [0, -1], ids=["core", "worker"])
async def test_the_death_of_a_process_ends_requests_by_name(tmp_path: Path, victim: int) -> None:
    """In-flight calls and new ones raise EngineDied, and leaving the block still cleans up."""
    tiny_qwen3(tmp_path / "model")
    died: list[EngineDied] = []
    async with open_engine(str(tmp_path / "model"), CONFIG, dtype="float32", seed=0, stop_token_ids=[]) as engine:

        async def runs(name: str) -> None:
            try:
                await engine.generate(PROBE, max_tokens=1000, temperature=1.0, top_p=1.0, request_id=name)
            except EngineDied as error:
                died.append(error)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                group.start_soon(runs, "a")
                group.start_soon(runs, "b")
                await until(lambda: engine.statistics()["tokens_generated"] > 0)
                os.kill(engine.pids[victim], signal.SIGKILL)
            await runs("c")
    assert len(died) == 3
    assert not [pid for pid in engine.pids if psutil.pid_exists(pid)]


async def test_a_start_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    """The reason is vLLM's own, found in its log if need be."""
    tiny_qwen3(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(EngineError, match=r"vLLM did not start: .*weights") as caught:
        async with open_engine(str(tmp_path / "model"), CONFIG, dtype="float32", seed=0, stop_token_ids=[]):
            pass
    assert "\n" not in str(caught.value)


async def test_a_start_out_of_time_leaves_no_process(tmp_path: Path) -> None:
    """The deadline names its key, and the half-started engine is gone."""
    tiny_qwen3(tmp_path / "model")
    before = set(psutil.Process().children(recursive=True))
    hurried = replace(CONFIG, start_timeout_s=3.0)
    with pytest.raises(EngineError, match=r"policy\.start_timeout_s = 3"):
        async with open_engine(str(tmp_path / "model"), hurried, dtype="float32", seed=0, stop_token_ids=[]):
            pass
    left = set(psutil.Process().children(recursive=True)) - before
    assert not [process for process in left if "resource_tracker" not in " ".join(process.cmdline())]


async def test_killing_the_owner_leaves_no_process(tmp_path: Path) -> None:
    """After `kill -9` of the controller its engine ends by itself."""
    tiny_qwen3(tmp_path / "model")
    (tmp_path / "owner.py").write_text(OWNER)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "owner.py"), str(tmp_path / "model")]
    async with await anyio.open_process(command, stderr=subprocess.DEVNULL, env=environment) as owner:
        assert owner.stdout is not None
        line = await BufferedByteReceiveStream(owner.stdout).receive_until(b"\n", 1000)
        pids = [int(pid) for pid in line.split()]
        owner.kill()
    assert pids
    with anyio.fail_after(30):
        await until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
