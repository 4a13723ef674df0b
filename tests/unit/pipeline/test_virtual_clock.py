"""The simulated machine: time jumps, order is fixed, and the controller's own deadlines hold on it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import pytest

from bench.simulation import clock
from bench.simulation.engine import EngineFigures, SimulatedEngine
from bench.simulation.plans import DrawnPlans, Turn
from bench.simulation.world import Setting, World, load_figures, simulate
from fd_async.errors import StallDetected, first_cause
from fd_async.types import StepReport, TrainingSample

SMALL = Setting(name="small", max_staleness=2, engine_gpus=2, learner_gpus=2, prompts_per_step=4, steps=4, grain=64)


def test_hours_of_waiting_pass_at_once_and_in_order() -> None:
    """Timers fire by their time, work for a thread takes none, and a deadline cuts at its moment."""

    async def main() -> tuple[list[float], float]:
        woken: list[float] = []

        async def wait(seconds: float) -> None:
            await anyio.sleep(seconds)
            woken.append(await anyio.to_thread.run_sync(lambda: seconds))

        async with anyio.create_task_group() as tasks:
            for hours in (3.0, 1.0, 2.0):
                tasks.start_soon(wait, 3600.0 * hours)
        with anyio.move_on_after(1800.0):
            await anyio.sleep(math.inf)
        return woken, anyio.current_time()

    assert clock.run(main) == ([3600.0, 7200.0, 10800.0], 12600.0)


def test_a_wait_that_nothing_can_end_is_an_error() -> None:
    """Without a timer a real loop would hang; this one says so."""

    async def main() -> None:
        await anyio.Event().wait()

    with pytest.raises(clock.NothingCanHappen):
        clock.run(main)


def test_equal_inputs_give_equal_runs() -> None:
    """All figures of all steps agree bit for bit; another seed gives another run."""
    figures = load_figures()
    first, second = simulate(SMALL, figures), simulate(SMALL, figures)
    assert first == second
    assert simulate(SMALL, figures, seed=1).total_s != first.total_s


def test_a_batch_slows_its_sequences_as_the_figures_say() -> None:
    """Two requests of 100 and 300 tokens: 100 steps together, 200 alone, and a push that holds both for 5 s."""
    figures = EngineFigures(
        base_s=0.01, per_sequence_s=0.01, per_context_token_s=0.0, prefill_tokens_per_s=1e12, kv_tokens=10**9,
        max_num_seqs=2, push_stall_s=5.0,
    )  # fmt: skip

    async def main() -> tuple[float, float]:
        engine, ends = SimulatedEngine(figures, 1, _Fixed({"a": 100, "b": 300}), 1), {}

        async def generate(name: str) -> None:
            completion = await engine.generate(
                [0], max_tokens=1000, temperature=1.0, top_p=1.0, request_id=f"{name}-t0"
            )
            assert len(completion.token_ids) == {"a": 100, "b": 300}[name]
            ends[name] = anyio.current_time()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.gpus[0].serve)
            async with anyio.create_task_group() as requests:
                for name in "ab":
                    requests.start_soon(generate, name)
                await anyio.sleep(1.0)
                engine.gpus[0].hold(5.0, 1)
            tasks.cancel_scope.cancel()
        return ends["a"], ends["b"]

    assert clock.run(main) == (pytest.approx(100 * 0.03 + 5), pytest.approx(100 * 0.03 + 200 * 0.02 + 5))


def test_context_slows_a_step_by_what_is_read_of_the_cache() -> None:
    """One request: the sum of base + per token * context over its tokens, integrated."""
    figures = EngineFigures(
        base_s=0.01, per_sequence_s=0.0, per_context_token_s=1e-5, prefill_tokens_per_s=1000.0, kv_tokens=10**9,
        max_num_seqs=8, push_stall_s=0.0,
    )  # fmt: skip

    async def main() -> float:
        engine = SimulatedEngine(figures, 1, _Fixed({"a": 1000}), 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.gpus[0].serve)
            await engine.generate([0] * 500, max_tokens=1000, temperature=1.0, top_p=1.0, request_id="a-t0")
            tasks.cancel_scope.cancel()
        return anyio.current_time()

    assert clock.run(main) == pytest.approx(0.5 + 1000 * 0.01 + 1e-5 * (500 * 1000 + 1000**2 / 2))


def test_a_learner_that_never_answers_is_a_stall_after_half_an_hour(tmp_path: Path) -> None:
    """The watchdog says who waits and ends the run `run.stall_abort_s` after the last progress, and not before."""
    setting = msgspec.structs.replace(SMALL, tables={"run": {"stall_warn_s": 120.0, "stall_abort_s": 1800.0}})

    async def hang(samples: list[TrainingSample], *, step: int) -> StepReport:
        await anyio.sleep(math.inf)
        raise AssertionError

    async def main() -> None:
        figures = load_figures()
        world = World(setting, figures, DrawnPlans(figures.attempts, 0), 0)
        world.learner.step = hang  # type: ignore[method-assign]
        async with world.controller(tmp_path) as (controller, _):
            await controller.run()

    with pytest.raises((StallDetected, BaseExceptionGroup)) as caught:
        clock.run(main)
    error = first_cause(caught.value)
    assert isinstance(error, StallDetected)
    found = re.search(r"no progress for (\d+) s", str(error))
    assert found is not None
    assert 1800 <= int(found[1]) <= 1802
    assert "learning" in str(error)


class _Fixed:
    """One turn per ticket, of a given length."""

    max_response_tokens = 10_000

    def __init__(self, tokens: dict[str, int]) -> None:
        self._tokens = tokens

    def prompt_tokens(self, ticket_id: str) -> int:
        return 1

    def turns(self, ticket_id: str) -> list[Turn]:
        return [Turn(self._tokens[ticket_id])]
