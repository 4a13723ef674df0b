"""What an engine's front makes of vLLM's answers; vLLM is played."""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from fd_async.config.schema import Policy
from fd_async.errors import EngineDied, EngineError, PushFailed
from fd_async.policy.local import LocalEngine, open_engine
from fd_async.types import Completion, StagedWeights, VersionSpan
from tests.fakes.collective import without_vllm
from tests.unit.policy.test_manifest import staged

pytestmark = pytest.mark.anyio
__all__ = ["staged"]
CONFIG = Policy(max_model_len=64)


class Pushing:
    """A pusher that is done at once, or when it is told."""

    def __init__(self) -> None:
        self.may_end = anyio.Event()

    async def check(self, *_: Any) -> dict[str, Any]:
        return {}

    async def commit(self, *_: Any) -> tuple[float, float]:
        await self.may_end.wait()
        return 0.0, 0.0


class Queue:
    """Where vLLM puts what a request sampled; empty until `answer` is there, or `later` comes."""

    def __init__(self, request_id: str, answer: Any, later: anyio.Event | None = None) -> None:
        self.request_id, self.answer, self.later = request_id, answer, later or anyio.Event()

    def get_nowait(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def get(self) -> Any:
        await self.later.wait()
        return finished()


class Llm:
    """Scores prompts as told, engine by engine; samples what `states` tells by request, and never ends that."""

    errored = False

    def __init__(self, scores: dict[int | None, list[float]]) -> None:
        self.scores = scores
        self.salts: list[str] = []
        self.aborted: list[str] = []
        self.states: dict[str, Any] = {}
        self.failure: Exception | None = None
        self.finishes = anyio.Event()
        self.output_processor = SimpleNamespace(request_states=self.states)

    async def add_request(
        self, request_id: str, prompt: dict[str, Any], params: Any, *, data_parallel_rank: int | None = None
    ) -> Queue:
        self.salts.append(prompt["cache_salt"])
        if request_id in self.states:
            return Queue(request_id, self.failure, self.finishes)
        scored = SimpleNamespace(logprobs=self.scores[data_parallel_rank])
        return Queue(request_id, SimpleNamespace(prompt_logprobs=scored, finished=True))

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        if self.errored:
            raise sys.modules["vllm.v1.engine.exceptions"].EngineDeadError


def finished() -> Any:
    """Make vLLM's output of a request that sampled one token before a push and one after it."""
    spans = [SimpleNamespace(version="0", start=0, end=1), SimpleNamespace(version="1", start=1, end=2)]
    logprobs = SimpleNamespace(logprobs=[-1.0, -2.0])
    output = SimpleNamespace(token_ids=[5, 6], logprobs=logprobs, weight_versions=spans, finish_reason="stop")
    return SimpleNamespace(outputs=[output], finished=True)


def sampling(token_ids: list[int], logprobs: list[float], starts: list[tuple[str, int]]) -> Any:
    """Make what vLLM's front end knows of a request."""
    return SimpleNamespace(
        detokenizer=SimpleNamespace(output_token_ids=token_ids),
        logprobs_processor=SimpleNamespace(logprobs=SimpleNamespace(logprobs=logprobs)),
        weight_version_starts=starts,
    )


@pytest.fixture(autouse=True)
def vllm_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    without_vllm(monkeypatch)
    vllm = ModuleType("vllm")
    vllm.__dict__["SamplingParams"] = SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    sampling_params = ModuleType("vllm.sampling_params")
    sampling_params.__dict__["RequestOutputKind"] = SimpleNamespace(FINAL_ONLY=2)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling_params)


def make_engine(llm: Llm, config: Policy = CONFIG) -> tuple[LocalEngine, Pushing]:
    pushing = Pushing()
    running: Any = SimpleNamespace(llm=llm, takes_seeds=True, kill=lambda: None)
    return LocalEngine(running, config, [], pushing, Path("logs")), pushing  # type: ignore[arg-type]


async def test_a_probe_that_is_no_number_ends_the_push(staged: StagedWeights) -> None:
    """Wherever in the probe: the largest of some numbers and a NaN may be a number."""
    staged = replace(staged, probe_ids=[1, 2, 3], probe_logprobs=[-1.0, -2.0]).sealed()
    for scores in ([math.nan, -2.0], [-1.0, math.nan]):
        engine, pushing = make_engine(Llm({None: scores}))
        pushing.may_end.set()
        with pytest.raises(PushFailed, match="differ by nan"):
            await engine.push(staged)
        assert engine.weight_version == 0


@pytest.mark.parametrize("off", [0.0, 9.0])
async def test_the_probe_asks_every_engine(staged: StagedWeights, off: float) -> None:
    """Each has weights of its own, which its workers swapped for themselves."""
    good = staged.probe_logprobs
    llm = Llm({0: good, 1: [value - off for value in good]})
    engine, pushing = make_engine(llm, replace(CONFIG, data_parallel_size=2))
    pushing.may_end.set()
    if off:
        with pytest.raises(PushFailed, match=r"policy\.probe_tolerance"):
            await engine.push(staged)
    else:
        assert (await engine.push(staged)).probe_max_abs == 0
        assert engine.weight_version == staged.version


async def test_a_request_that_comes_while_the_engine_is_held_starts_under_the_new_salt(staged: StagedWeights) -> None:
    """Prefixes that old weights computed are out of its reach."""
    llm = Llm({None: staged.probe_logprobs})
    engine, pushing = make_engine(llm)
    async with anyio.create_task_group() as group:
        group.start_soon(engine.push, staged)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(engine.score, staged.probe_ids)
        await anyio.wait_all_tasks_blocked()
        assert llm.salts == []
        pushing.may_end.set()
    assert llm.salts == ["0.1", "1.1"]


async def generate(engine: LocalEngine, saved: list[Completion]) -> Completion:
    return await engine.generate([1, 2], max_tokens=9, temperature=1.0, top_p=1.0, request_id="r", salvage=saved.append)


SAMPLED = Completion(
    token_ids=[5, 6, 7],
    logprobs=[-1.0, -2.0, -3.0],
    spans=[VersionSpan(0, 0, 2), VersionSpan(1, 2, 3)],
    finish_reason="abort",
)


async def test_what_was_sampled_can_be_read_while_a_request_runs() -> None:
    """Up to where vLLM's ids, log-probs and versions agree, and only while it runs."""
    llm = Llm({})
    llm.states["r"] = sampling([5, 6, 7, 8], [-1.0, -2.0, -3.0], [("0", 0), ("1", 2), ("2", 3)])
    engine, _ = make_engine(llm)
    saved: list[Completion] = []
    async with anyio.create_task_group() as group:
        group.start_soon(generate, engine, saved)
        await anyio.wait_all_tasks_blocked()
        assert engine.partial("r") == SAMPLED
        assert engine.partial("another") is None
        group.cancel_scope.cancel()
    assert saved == [SAMPLED]
    assert llm.aborted == ["r"]
    assert engine.partial("r") is None


@pytest.mark.parametrize("state", [sampling([], [], []), sampling([5], [], [("0", 0)]), sampling([5], [-1.0], [])])
async def test_nothing_is_salvaged_where_nothing_is_whole(state: Any) -> None:
    """No ids, no log-probs or no version: the request would have to start afresh."""
    llm = Llm({})
    llm.states["r"] = state
    engine, _ = make_engine(llm)
    saved: list[Completion] = []
    async with anyio.create_task_group() as group:
        group.start_soon(generate, engine, saved)
        await anyio.wait_all_tasks_blocked()
        assert engine.partial("r") is None
        group.cancel_scope.cancel()
    assert saved == []


async def test_a_dead_engine_gives_up_what_it_sampled() -> None:
    """Whether vLLM says so, its front end fails, or whoever watches kills it; an abort that fails changes nothing."""
    dead = sys.modules["vllm.v1.engine.exceptions"].EngineDeadError()
    for failure in (dead, KeyError("its front end failed"), None):
        llm = Llm({})
        llm.states["r"] = sampling([5, 6, 7], [-1.0, -2.0, -3.0], [("0", 0), ("1", 2)])
        llm.failure, llm.errored = failure, True
        engine, _ = make_engine(llm)
        saved: list[Completion] = []
        died: list[EngineDied] = []

        async def ask(engine: LocalEngine = engine, saved: Any = saved, died: Any = died) -> None:
            try:
                await generate(engine, saved)
            except EngineDied as error:
                died.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            engine.kill("it does not answer")
        assert (len(died), saved) == (1, [SAMPLED])
        with pytest.raises(EngineDied, match="does not answer"):
            await engine.score([1, 2])


async def test_a_request_that_vllm_fails_is_no_death() -> None:
    """The engine lives: only this attempt is lost."""
    llm = Llm({})
    llm.states["r"], llm.failure = sampling([], [], []), ValueError("too long")
    engine, _ = make_engine(llm)
    with pytest.raises(EngineError, match="too long") as caught:
        await generate(engine, [])
    assert type(caught.value) is EngineError


async def test_tokens_of_weights_that_no_probe_has_proven_are_not_kept(staged: StagedWeights) -> None:
    """The push fails at its probe: what ran on under its weights may be anything."""
    staged = replace(staged, version=1).sealed()
    llm = Llm({None: [value - 9 for value in staged.probe_logprobs]})
    llm.states["r"] = sampling([5, 6, 7], [-1.0, -2.0, -3.0], [("0", 0), ("1", 2)])
    engine, pushing = make_engine(llm)
    pushing.may_end.set()
    saved: list[Completion] = []

    async def ask() -> None:
        with suppress(PushFailed):
            await generate(engine, saved)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(PushFailed):
            await engine.push(staged)
    (kept,) = saved
    assert (kept.token_ids, kept.spans) == ([5, 6], [VersionSpan(0, 0, 2)])


@pytest.mark.parametrize("off", [0.0, 9.0])
async def test_a_completion_waits_for_the_probe_of_the_weights_that_ended_it(staged: StagedWeights, off: float) -> None:
    """It comes out when the probe agrees; else only what proven weights sampled does."""
    staged = replace(staged, version=1).sealed()
    llm = Llm({None: [value - off for value in staged.probe_logprobs]})
    llm.states["r"] = sampling([5, 6], [-1.0, -2.0], [("0", 0), ("1", 1)])
    engine, pushing = make_engine(llm)
    saved: list[Completion] = []
    results: list[Completion] = []

    async def ask() -> None:
        with suppress(PushFailed):
            results.append(await generate(engine, saved))

    async def push() -> None:
        with suppress(PushFailed):
            await engine.push(staged)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(push)
        await anyio.wait_all_tasks_blocked()
        llm.finishes.set()
        await anyio.wait_all_tasks_blocked()
        assert results == []
        pushing.may_end.set()
    assert [result.token_ids for result in results] == ([] if off else [[5, 6]])
    assert [part.token_ids for part in saved] == ([[5]] if off else [])


@pytest.mark.parametrize(("dies", "expected"), [(True, EngineDied), (False, EngineError)])
async def test_an_engine_lost_as_soon_as_it_started_is_named(
    monkeypatch: pytest.MonkeyPatch, dies: bool, expected: type[EngineError]
) -> None:
    """Whoever restarts engines knows these errors; a bare TimeoutError would say nothing to anybody."""

    async def update(_: str) -> None:
        if dies:
            raise sys.modules["vllm.v1.engine.exceptions"].EngineDeadError
        await anyio.sleep_forever()

    @asynccontextmanager
    async def running(*_: Any, **__: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(llm=SimpleNamespace(update_weight_version=update), log=(Path("logs/vllm.log"), 0))

    monkeypatch.setattr("fd_async.policy.local.running_engine", running)
    monkeypatch.setattr("fd_async.policy.local.read_contract", lambda path: None)
    config = replace(CONFIG, push_timeout_s=0.01)
    with pytest.raises(EngineError, match=r"logs/vllm\.log") as caught:
        async with open_engine("model", config, dtype="float32", seed=0, stop_token_ids=[]):
            pytest.fail("it serves")
    assert type(caught.value) is expected
