"""Replays finished runs with their recorded service times, and says how far the simulated seconds are from the real.

A run is predicted from its own record, and from that of every other run that is named: the attempts, the engine's and
the learner's times of one, in the schedule (mode, S, batch, steps) of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import anyio

from bench.simulation.engine import EngineFigures
from bench.simulation.plans import Turn
from bench.simulation.recorded import Recording, seconds_of_steps, slowdown_of_learner
from bench.simulation.standins import FeedbackFigures, LeanFigures, SimulatedLearner
from bench.simulation.world import Figures, Setting, World, load_figures, run_world
from fd_async.types import StepReport, TrainingSample

_TURN_S = 0.01
"""How often the learner looks whether the engine is at work beside it."""


class RecordedPlans:
    """The attempts of a recorded run, in the order of their ordinals; the first ones again after the last."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._samples = recording.schedule.samples_per_prompt
        self.max_response_tokens = 2 * recording.schedule.max_response_tokens  # the recorded lengths are cut already

    def prompt_tokens(self, ticket_id: str) -> int:
        return self._recording.prompt_tokens

    def turns(self, ticket_id: str) -> list[Turn]:
        _, ordinal, sample = ticket_id.rsplit("-", 2)
        turns = self._recording.turns
        return turns[(int(ordinal) * self._samples + int(sample)) % len(turns)]


class RecordedLearner(SimulatedLearner):
    """Takes the recorded seconds of each step, longer while the engine is at work beside it."""

    def __init__(self, world: World, recording: Recording, beside: float) -> None:
        super().__init__(world.figures.learner, 1, 1, "fd")
        self._engine, self._recording = world.engine, recording
        self._slow = slowdown_of_learner(beside, recording.cores)
        self._alone_s = recording.alone_s(self._slow)
        self._is_busy = False
        for gpu in world.engine.gpus:
            gpu.slowdown = lambda: beside if self._is_busy else 1.0

    async def step(self, samples: list[TrainingSample], *, step: int) -> StepReport:
        """Share the processors with the engine until the step is done."""
        left_s, started = self._alone_s[(step - 1) % len(self._alone_s)], anyio.current_time()
        self._set_busy(True)
        while left_s > 0:
            slow = self._slow if any(gpu.running for gpu in self._engine.gpus) else 1.0
            await anyio.sleep(min(_TURN_S, left_s * slow))
            left_s -= _TURN_S / slow
        self._set_busy(False)
        self.busy_s += anyio.current_time() - started
        return StepReport(step=step, metrics={"loss": 1.0})

    def seconds_to_stage(self, version: int) -> float:
        """Return what a step took beyond learning and the stall of its push."""
        index = max(0, version - 1) % len(self._alone_s)
        return self._recording.stage_s[index] + self._recording.rest_s[index]

    def _set_busy(self, is_busy: bool) -> None:
        for gpu in self._engine.gpus:
            gpu.touch()
        self._is_busy = is_busy
        for gpu in self._engine.gpus:
            gpu.wake()


def predict(source: Recording, target: Recording, beside: float) -> float:
    """Return the seconds that the target's schedule takes with the service times of the source."""
    schedule = target.schedule
    setting = Setting(
        name=target.name,
        mode=schedule.mode,
        max_staleness=schedule.max_staleness,
        engine_gpus=1,
        learner_gpus=1,
        prompts_per_step=schedule.prompts_per_step,
        samples_per_prompt=schedule.samples_per_prompt,
        steps=schedule.steps,
        grain=1,
        algorithm=schedule.algorithm,
        tables={
            "feedback": {"type": "constant", "text": ""},
            "rollout": {"concurrency": schedule.concurrency},
        },
    )
    stall_s = sum(source.stall_s) / len(source.stall_s)
    figures = Figures(
        attempts=load_figures().attempts,
        engine=EngineFigures(
            base_s=0.0, per_sequence_s=0.0, per_context_token_s=0.0,  # `step_s` is the recorded one
            prefill_tokens_per_s=1e12, kv_tokens=10**12, max_num_seqs=schedule.max_num_seqs, push_stall_s=stall_s,
        ),
        lean=LeanFigures(workers=1_000_000),  # the recorded seconds have the wait for a worker in them
        feedback=FeedbackFigures(min_s=0.0, max_s=0.0, input_tokens=1, output_tokens=1, tokens=1),
        learner=load_figures().learner,
    )  # fmt: skip

    def make() -> World:
        world = World(setting, figures, RecordedPlans(source), 0)
        world.learner = RecordedLearner(world, source, beside)
        for gpu in world.engine.gpus:
            gpu.step_s = source.speed.step_s
        return world

    return seconds_of_steps(run_world(make).rows)


def against(recordings: Sequence[Recording], pool: Executor) -> dict[str, Any]:
    """Predict every run from every run.

    Raises:
        SystemExit: their batches differ, so the learner's seconds of one say nothing about another.
    """
    if (
        len({(r.schedule.prompts_per_step, r.schedule.samples_per_prompt, r.schedule.algorithm) for r in recordings})
        > 1
    ):
        raise SystemExit("name runs of the same algorithm, learner.prompts_per_step and rollout.samples_per_prompt")
    pairs = [(source, target) for source in recordings for target in recordings]
    measured = [r.speed.beside for r in recordings if r.speed.beside]
    beside = sum(measured) / len(measured) if measured else 1.0
    slowdowns = [source.speed.beside or beside for source, _ in pairs]
    sources, targets = zip(*pairs, strict=True)
    rows = [
        {
            "from": source.name,
            "run": target.name,
            "mode": target.schedule.mode,
            "S": target.schedule.max_staleness,
            "real_s": round(target.total_s, 1),
            "simulated_s": round(seconds, 1),
            "error": round(seconds / target.total_s - 1.0, 3),
        }
        for (source, target), seconds in zip(pairs, pool.map(predict, sources, targets, slowdowns), strict=True)
    ]
    return {
        "error_vs_real": max(abs(row["error"]) for row in rows if row["from"] == row["run"]),
        "error_across": max((abs(row["error"]) for row in rows if row["from"] != row["run"]), default=None),
        "against": rows,
        "engine_beside_learner": round(beside, 3),
        "learner_beside_engine": round(slowdown_of_learner(beside, recordings[0].cores), 3),
    }
