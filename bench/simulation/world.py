"""One simulated run: the project's controller over stand-ins, and what it showed."""

from __future__ import annotations

import logging
import random
import statistics
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import structlog
from msgspec import Struct

from bench.simulation import clock
from bench.simulation.engine import EngineFigures, SimulatedEngine
from bench.simulation.plans import Attempts, DrawnPlans, Plans
from bench.simulation.standins import (
    FeedbackFigures,
    LeanFigures,
    LearnerFigures,
    SimulatedLean,
    SimulatedLearner,
    SimulatedRenderer,
    SimulatedSearch,
    SimulatedTutor,
)
from fd_async.config.schema import RunConfig
from fd_async.data.ledger import open_ledger
from fd_async.data.statements import StatementOrder
from fd_async.feedback.provider import open_provider
from fd_async.pipeline.controller import Controller
from fd_async.pipeline.state import Parts, RunState
from fd_async.rollouts import RolloutRunner
from fd_async.telemetry.progress import QuietProgress
from fd_async.telemetry.sinks import MetricsFile, read_rows
from fd_async.types import Statement

MEMORY = Path("/dev/shm")
"""Where ledger and folders of simulated runs lie, if it is there: nothing is to be measured about a disk."""


FIGURES = Path(__file__).with_name("figures.toml")


class Figures(Struct, frozen=True, kw_only=True):
    """All service times of a machine; see figures.toml."""

    attempts: Attempts
    engine: EngineFigures
    lean: LeanFigures
    feedback: FeedbackFigures
    learner: LearnerFigures


def load_figures(path: Path = FIGURES) -> Figures:
    """Read the table of service times."""
    return msgspec.toml.decode(path.read_bytes(), type=Figures)


class Setting(Struct, frozen=True, kw_only=True):
    """One schedule to simulate."""

    name: str
    mode: str = "async"
    max_staleness: int = 0
    engine_gpus: int = 8
    learner_gpus: int = 8
    shared: bool = False
    """Engine and learner take turns on the same GPUs; only where they never overlap (`max_staleness` 0)."""
    prompts_per_step: int = 128
    samples_per_prompt: int = 1
    periods: int = 1
    """Times that S + 1 steps are measured: what is admitted at once comes back as a wave of that length."""
    steps: int = 0
    """Gradient steps; 0: what `periods` need."""
    grain: int = 16
    """Tokens that one simulated token id stands for."""
    algorithm: str = "fd"
    tables: dict[str, dict[str, Any]] = {}
    """Further keys of the configuration."""

    @property
    def num_steps(self) -> int:
        """The steps that are measured, and those before and after, where the pipeline fills and drains."""
        return self.steps or (self.max_staleness + 1) * (self.periods + 1) + self.max_staleness + 1


class Simulated(Struct, frozen=True, kw_only=True):
    """What a simulated run showed; rates leave out the filling and the draining of the pipeline."""

    setting: Setting
    rows: list[dict[str, Any]]
    step_s: float
    total_s: float
    dropped: int
    max_staleness: int
    engine_idle: float
    """Share of engine time without a running sequence."""
    sequences: float
    """Running per engine while it runs any."""
    learner_idle: float
    lean_busy: float
    feedback_in_flight: float
    tokens_per_s: float
    trained: list[int]
    """Tokens of the trained completions, in the order of training."""


class World:
    """The stand-ins of one run."""

    def __init__(self, setting: Setting, figures: Figures, plans: Plans, seed: int) -> None:
        self.setting, self.figures, self.plans = setting, figures, plans
        self.config = make_config(setting, figures, plans)
        self.engine = SimulatedEngine(figures.engine, setting.engine_gpus, plans, setting.grain)
        self.lean = SimulatedLean(figures.lean, plans)
        self.tutor = SimulatedTutor(figures.feedback, seed)
        self.learner = SimulatedLearner(figures.learner, setting.learner_gpus, setting.grain, setting.algorithm)
        self.renderer = SimulatedRenderer(plans, self.engine, setting.grain, figures.feedback.tokens)

    @asynccontextmanager
    async def controller(self, run_dir: Path) -> AsyncIterator[tuple[Controller, RunState]]:
        """Open a run of these stand-ins in a folder."""
        for folder in ("logs", "checkpoints"):
            (run_dir / folder).mkdir(parents=True, exist_ok=True)
        statements = [Statement(name=f"t{i}", formal_statement=f"theorem t{i} : True :=") for i in range(10_000)]
        metrics = MetricsFile(run_dir / "metrics.jsonl")
        await metrics.open()
        async with (
            open_ledger(run_dir / "ledger.db") as ledger,
            open_provider(self.config.feedback, generate_text=self.tutor.generate_text) as provider,
            anyio.create_task_group() as gpus,
        ):
            for gpu in self.engine.gpus:
                gpus.start_soon(gpu.serve)
            runner = RolloutRunner(
                engine=self.engine,
                renderer=self.renderer,  # type: ignore[arg-type]
                verifier=self.lean,  # type: ignore[arg-type]
                search=SimulatedSearch(),  # type: ignore[arg-type]
                config=self.config.rollout,
            )
            parts = Parts(
                config=self.config,
                run_dir=run_dir,
                engine=self.engine,
                learner=self.learner,  # type: ignore[arg-type]
                renderer=self.renderer,  # type: ignore[arg-type]
                verifier=self.lean,  # type: ignore[arg-type]
                provider=provider,
                ledger=ledger,
                runner=runner,
                order=StatementOrder(statements, 0),
                suites={},
                progress=QuietProgress(),
            )
            state = RunState(self.config, 0)
            try:
                yield Controller(parts, state, metrics=metrics, config_hash="simulated", probe_ids=[0, 0]), state
            finally:
                gpus.cancel_scope.cancel()
                await metrics.aclose()


def make_config(setting: Setting, figures: Figures, plans: Plans) -> RunConfig:
    """Return the run's configuration; what counts tokens counts grains."""
    ids = plans.max_response_tokens // setting.grain
    in_flight = (setting.max_staleness + 2) * setting.prompts_per_step * setting.samples_per_prompt
    tables: dict[str, dict[str, Any]] = {
        "run": {"mode": setting.mode, "max_steps": setting.num_steps, "stall_warn_s": 1e5, "stall_abort_s": 1e6},
        "model": {"path": "simulated"},
        "data": {"train": "simulated"},
        "rollout": {
            "samples_per_prompt": setting.samples_per_prompt,
            "concurrency": in_flight,
            "max_prompt_tokens": 1_000_000,
            "max_response_tokens": ids,
            "timeout_s": 1e5,
            "record_every_s": 0.0,
        },
        "verifier": {"workers": figures.lean.workers},
        "feedback": {"type": "self", "model": "simulated", "concurrency": in_flight},
        "algorithm": {"type": setting.algorithm},
        "learner": {"prompts_per_step": setting.prompts_per_step},
        "admission": {"max_staleness": setting.max_staleness},
        "checkpoint": {"every_steps": 0, "min_free_gib": 0.0},
        "eval": {"every_steps": 0, "at_start": False, "at_end": False},
        "telemetry": {"status_every_s": 1e9, "trace": False},
        "alarms": {"warmup_steps": 1_000_000},
    }
    for table, keys in setting.tables.items():
        tables.setdefault(table, {}).update(keys)
    return msgspec.convert(tables, RunConfig)


def simulate(setting: Setting, figures: Figures, *, seed: int = 0, plans: Plans | None = None) -> Simulated:
    """Run one schedule to its end; equal arguments give equal results, bit for bit."""
    return run_world(lambda: World(setting, figures, plans or DrawnPlans(figures.attempts, seed), seed), seed)


def run_world(make: Callable[[], World], seed: int = 0) -> Simulated:
    """Run what `make` builds, on a virtual clock that starts when it is called."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    random.seed(seed)
    with tempfile.TemporaryDirectory(prefix="fd-simulate-", dir=MEMORY if MEMORY.is_dir() else None) as folder:
        return clock.run(_simulate, make, Path(folder))


async def _simulate(make: Callable[[], World], folder: Path) -> Simulated:
    world = make()
    setting, figures = world.setting, world.figures
    async with world.controller(folder) as (controller, state):
        if await controller.run():
            raise RuntimeError(f"{setting.name}: the simulated run did not reach its end: {state.error}")
        for gpu in world.engine.gpus:
            gpu.touch()
        dropped = sum(state.num_dropped.values())
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row.get("time/step_s") is not None]
    ends = [row["time/elapsed_s"] for row in rows]
    first = setting.max_staleness
    last = first + setting.periods * (setting.max_staleness + 1)
    if setting.steps:
        first, last = 0, setting.steps - 1
    total_s, gpus = ends[-1], world.engine.gpus
    busy_s = sum(gpu.busy_s for gpu in gpus)
    return Simulated(
        setting=setting,
        rows=rows,
        step_s=(ends[last] - ends[first]) / (last - first),
        total_s=total_s,
        dropped=dropped,
        max_staleness=max(row["staleness/max"] for row in rows),
        engine_idle=1.0 - busy_s / (total_s * len(gpus)),
        sequences=sum(gpu.sequence_s for gpu in gpus) / busy_s,
        learner_idle=1.0 - world.learner.busy_s / total_s,
        lean_busy=world.lean.busy_s / (total_s * figures.lean.workers),
        feedback_in_flight=world.tutor.busy_s / total_s,
        tokens_per_s=statistics.fmean(row["train/response_tokens"] for row in rows)
        * setting.grain
        * setting.prompts_per_step
        * setting.samples_per_prompt
        * len(rows)
        / total_s,
        trained=world.learner.lengths,
    )
