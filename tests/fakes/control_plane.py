"""Stand-ins for engine, learner, provider, verifier and rollouts, under the real controller, buffer and ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec

from fd_async.config.schema import RunConfig
from fd_async.data.ledger import Ledger, open_ledger
from fd_async.data.statements import StatementOrder
from fd_async.pipeline.controller import Controller
from fd_async.pipeline.signals import Stop
from fd_async.pipeline.state import Parts, RunState
from fd_async.policy.engine import Send
from fd_async.telemetry.observers import Observers
from fd_async.telemetry.progress import QuietProgress
from fd_async.telemetry.sinks import MetricsFile
from fd_async.types import (
    Feedback,
    PushReport,
    Rollout,
    StagedWeights,
    Statement,
    StepReport,
    Ticket,
    TrainingSample,
    Turn,
    Verdict,
    VersionSpan,
)


def make_config(**tables: dict[str, Any]) -> RunConfig:
    """Return a small configuration; keyword arguments overlay tables."""
    base: dict[str, dict[str, Any]] = {
        "run": {"max_steps": 6, "stall_warn_s": 60.0, "stall_abort_s": 60.0},
        "model": {"path": "none"},
        "data": {"train": "none"},
        "learner": {"prompts_per_step": 4},
        "admission": {"max_staleness": 1},
        "checkpoint": {"every_steps": 2, "min_free_gib": 0.0},
        "eval": {"every_steps": 0},
        "feedback": {"type": "openai", "model": "fake"},
        "telemetry": {"status_every_s": 0.05},
    }
    for table, keys in tables.items():
        base.setdefault(table, {}).update(keys)
    return msgspec.convert(base, RunConfig)


class FakeRenderer:
    """Renders a statement to two ids and feedback to one more."""

    vocab_size = 768

    def student_prompt(self, statement: Statement) -> list[int]:
        return [1, 2]

    def teacher_prompt(self, statement: Statement, feedback: str, max_feedback_tokens: int) -> list[int]:
        return [1, 2, 3] if feedback.strip() else [1, 2]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(str, ids))


class FakeEngine:
    """Serves nothing; keeps the version that was pushed."""

    def __init__(self) -> None:
        self.weight_version = -1
        self.tokens = 0.0
        self.on_push: Callable[[int], None] = lambda version: None

    async def push(self, staged: StagedWeights, send: Send | None = None) -> PushReport:
        self.on_push(staged.version)
        await anyio.lowlevel.checkpoint()
        self.weight_version = staged.version
        return PushReport(version=staged.version, stage_s=0, stall_s=0, commit_s=0, probe_s=0, probe_max_abs=0)

    def statistics(self) -> dict[str, float]:
        return {"running": 0, "waiting": 0, "kv_usage": 0, "tokens_generated": self.tokens}


class FakeLearner:
    """Counts what it is given; its state on disk is the step."""

    def __init__(self) -> None:
        self.batches: dict[int, list[TrainingSample]] = {}
        self.on_step: Callable[[int], None] = lambda step: None
        self.metrics: Callable[[int], dict[str, float]] = lambda step: {"loss": 1.0 / step}
        self.save_s, self.snapshot_bytes = 0.0, 6
        self.snapshots: list[int] = []
        """Steps that were copied for a checkpoint."""
        self.restored: list[str] = []
        """States that a rollback took, as they were written."""
        self.on_write: Callable[[Path], None] = lambda folder: None

    async def step(self, samples: list[TrainingSample], *, step: int) -> StepReport:
        self.on_step(step)
        await anyio.sleep(0.002)
        self.batches[step] = samples
        return StepReport(step=step, metrics=self.metrics(step))

    async def stage(self, version: int, probe_ids: list[int]) -> StagedWeights:
        return StagedWeights(
            version=version, path="", names=[], dtypes=[], shapes=[], offsets=[], num_bytes=0,
            block_bytes=0, sha256=[], probe_ids=probe_ids, probe_logprobs=[],
        )  # fmt: skip

    async def send(self, staged: StagedWeights, sender: str, num_workers: int) -> None:
        raise AssertionError("the engine of this bench takes files")

    async def restore(self, checkpoint: Path) -> None:
        self.restored.append((checkpoint / "state").read_text())

    async def snapshot(self) -> int:
        self.snapshots.append(max(self.batches, default=0))
        return self.snapshot_bytes

    async def write(self, folder: Path) -> None:
        await anyio.sleep(self.save_s)
        self.on_write(folder)
        (folder / "state").write_text(f"state {self.snapshots[-1]}")


class FakeProvider:
    """Sells feedback and remembers every sale."""

    def __init__(self) -> None:
        self.sold = Counter[str]()
        self.delay_s = 0.0
        self.on_feedback: Callable[[Rollout], None] = lambda rollout: None
        self.question: Callable[[Rollout], str] = lambda rollout: f"hash-of-{rollout.id}"

    def key(self, rollout: Rollout) -> str:
        return self.question(rollout)

    async def feedback(self, rollout: Rollout) -> Feedback:
        self.sold[rollout.id] += 1
        await anyio.sleep(self.delay_s)
        self.on_feedback(rollout)
        return Feedback(
            rollout_id=rollout.id, text="1. Do it.", provider="openai", prompt_hash=self.key(rollout), usd=0.01
        )

    def statistics(self) -> dict[str, float]:
        return {"calls": self.sold.total(), "usd": 0.01 * self.sold.total()}


class FakeVerifier:
    """Its counters are read, and it is asked whether it is still right."""

    def __init__(self) -> None:
        self.num_canaries = 0
        self.on_canaries: Callable[[], None] = lambda: None

    async def canaries(self) -> None:
        self.num_canaries += 7
        self.on_canaries()

    def statistics(self) -> dict[str, float]:
        zeros = dict.fromkeys(("checks", "infra_errors", "audits", "revoked", "audit_unfinished"), 0.0)
        return {**zeros, "canaries": self.num_canaries}


class FakeRunner:
    """Attempts that take a moment; every fifth prompt is solved."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self.started = Counter[str]()
        self.duration_s: Callable[[Ticket], float] = lambda ticket: 0.001 * (ticket.ordinal % 3)
        self.failure: Callable[[Ticket], str] = lambda ticket: ""
        self.on_run: Callable[[Ticket], None] = lambda ticket: None
        self.audited = Counter[str]()
        self.audit_s = 0.0
        self.on_audit: Callable[[Rollout], str] = lambda rollout: "fresh"
        """What the audit says of an accepted proof: what confirmed it, `revoked`, or nothing when it was unfinished."""

    async def audit(self, rollout: Rollout) -> Rollout:
        if not rollout.verdict.is_proved or rollout.verdict.audit:
            return rollout
        self.audited[rollout.id] += 1
        await anyio.sleep(self.audit_s)
        said = self.on_audit(rollout)
        if not said:
            return rollout
        kind = "revoked" if said == "revoked" else "proved"
        verdict = msgspec.structs.replace(rollout.verdict, kind=kind, audit="fresh")
        return msgspec.structs.replace(rollout, verdict=verdict)

    def sampling(self) -> list[str]:
        """Return nothing: an attempt is one moment."""
        return []

    async def run(self, ticket: Ticket, *, temperature: float, on_stage: Callable[[str], None], **_: object) -> Rollout:
        self.started[ticket.id] += 1
        version = self._engine.weight_version
        on_stage("generating")
        await anyio.sleep(self.duration_s(ticket))
        self.on_run(ticket)
        self._engine.tokens += 3
        failure = self.failure(ticket)
        solved = ticket.ordinal % 5 == 0 or ticket.sample == 1
        return Rollout(
            id=ticket.id,
            ordinal=ticket.ordinal,
            sample=ticket.sample,
            purpose=ticket.purpose,
            suite=ticket.suite,
            statement=ticket.statement,
            prompt_ids=[1, 2],
            completion_ids=[4, 5, 6],
            sampled_mask=[True, True, True],
            logprobs=[-1.0, -1.0, -1.0],
            spans=[VersionSpan(version, 0, 3)],
            turns=[Turn(role="assistant", start=0, end=3, text="456")],
            verdict=Verdict(kind="infrastructure" if failure else "proved" if solved else "failed"),
            end_reason="failed" if failure else "solved" if solved else "stopped",
            failure=failure,
        )


class Bench:
    """A controller on stand-ins; `run` once, then read what happened."""

    def __init__(self, config: RunConfig, run_dir: Path) -> None:
        self.config = config
        self.run_dir = run_dir
        self.engine = FakeEngine()
        self.learner = FakeLearner()
        self.provider = FakeProvider()
        self.runner = FakeRunner(self.engine)
        self.verifier = FakeVerifier()
        self.suites: dict[str, list[Statement]] = {}
        self.observers = Observers()
        for folder in ("logs", "checkpoints"):
            (run_dir / folder).mkdir(parents=True, exist_ok=True)

    @asynccontextmanager
    async def controller(
        self, *, step: int = 0, resume: bool = False, stop: Stop | None = None
    ) -> AsyncIterator[Controller]:
        """Open ledger and metrics, listen to signals, and yield a controller that starts at `step`."""
        stop = stop or Stop(shutdown_s=self.config.run.shutdown_s)
        stop.can_finish = True
        metrics = MetricsFile(self.run_dir / "metrics.jsonl")
        await metrics.open(resume_step=step if resume else None)
        try:
            async with stop.listening(), open_ledger(self.run_dir / "ledger.db") as ledger:
                ledger.rewind(step)
                self.state = RunState(self.config, step, self.observers, stopping=stop.asked, leaving=stop.leaving)
                parts = self.parts(ledger)
                yield Controller(parts, self.state, metrics=metrics, config_hash="x", probe_ids=[1, 2])
        finally:
            await metrics.aclose()

    def parts(self, ledger: Ledger) -> Parts:
        """Put the stand-ins together."""
        statements = [Statement(name=f"t{i}", formal_statement=f"theorem t{i} : True :=") for i in range(10)]
        return Parts(
            config=self.config,
            run_dir=self.run_dir,
            engine=self.engine,
            learner=self.learner,  # type: ignore[arg-type]
            renderer=FakeRenderer(),  # type: ignore[arg-type]
            verifier=self.verifier,  # type: ignore[arg-type]
            provider=self.provider,
            ledger=ledger,
            runner=self.runner,  # type: ignore[arg-type]
            order=StatementOrder(statements, 0),
            suites=self.suites,
            progress=QuietProgress(),
            observers=self.observers,
        )

    async def run(self, *, step: int = 0, resume: bool = False) -> int:
        stop = Stop(shutdown_s=self.config.run.shutdown_s)

        async def work() -> int:
            async with self.controller(step=step, resume=resume, stop=stop) as controller:
                return await controller.run()

        return await stop.cancelable(work)

    @property
    def trained(self) -> list[str]:
        """Rollout ids in the order of training."""
        return [sample.rollout_id for step in sorted(self.learner.batches) for sample in self.learner.batches[step]]
