"""What an engine's front makes of vLLM's answers; vLLM is played."""

from __future__ import annotations

import math
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from fd_async.config.schema import Policy
from fd_async.errors import PushFailed
from fd_async.policy.local import LocalEngine
from fd_async.types import StagedWeights
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


class Llm:
    """Scores prompts as told, engine by engine."""

    def __init__(self, scores: dict[int | None, list[float]]) -> None:
        self.scores = scores
        self.salts: list[str] = []

    async def generate(
        self, prompt: dict[str, Any], params: Any, request_id: str, *, data_parallel_rank: int | None = None
    ) -> AsyncIterator[Any]:
        self.salts.append(prompt["cache_salt"])
        yield SimpleNamespace(prompt_logprobs=SimpleNamespace(logprobs=self.scores[data_parallel_rank]))


@pytest.fixture(autouse=True)
def vllm_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    without_vllm(monkeypatch)
    vllm = ModuleType("vllm")
    vllm.__dict__["SamplingParams"] = SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    sys.modules["vllm.v1.engine.exceptions"].__dict__["EngineGenerateError"] = RuntimeError


def make_engine(llm: Llm, config: Policy = CONFIG) -> tuple[LocalEngine, Pushing]:
    pushing = Pushing()
    running: Any = SimpleNamespace(llm=llm)
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
