"""Random runs with random kills, signals and rewinds: every life of a run adds up to one history."""

from __future__ import annotations

import random
from pathlib import Path

import anyio
import pytest

from fd_async.config.schema import RunConfig
from fd_async.errors import FeedbackRejected
from fd_async.learner.checkpoints import list_checkpoints
from fd_async.pipeline.checkpoints import forget_after
from fd_async.telemetry.sinks import read_rows
from fd_async.types import Rollout, Ticket, TrainingSample
from tests.fakes.control_plane import Bench, make_config
from tests.unit.pipeline.test_controller_faults import _die_at, interrupt, leaves

pytestmark = pytest.mark.anyio

STEPS = 6


def random_config(rng: random.Random) -> RunConfig:
    algorithm = rng.choice(["fd", "grpo"])
    return make_config(
        run={"mode": rng.choice(["async", "async", "sync"]), "max_steps": STEPS},
        algorithm={"type": algorithm},
        rollout={
            "samples_per_prompt": rng.randint(2, 4) if algorithm == "grpo" else rng.randint(1, 2),
            "concurrency": rng.choice([3, 64]),
            "max_failed_fraction": 1.0,
        },
        admission={"max_staleness": rng.randint(0, 3)},
        checkpoint={"every_steps": rng.choice([1, 3, 0]), "keep_last": 9},
        learner={"prompts_per_step": rng.randint(1, 4)},
    )


def prepare(bench: Bench, rng: random.Random, seed: int) -> None:
    """Let some attempts fail and some feedback be refused, the same ones in every life."""

    def refuse(rollout: Rollout) -> None:
        if random.Random(f"{seed} feedback {rollout.id}").random() < 0.15:
            raise FeedbackRejected("no")

    def fail(ticket: Ticket) -> str:
        return "timeout" if random.Random(f"{seed} {ticket.id}").random() < 0.2 else ""

    def audit(rollout: Rollout) -> str:
        return random.Random(f"{seed} audit {rollout.id}").choice(["fresh", "fresh", "revoked", ""])

    bench.runner.on_audit = audit
    bench.provider.on_feedback = refuse
    bench.runner.failure = fail
    bench.runner.duration_s = lambda ticket: rng.choice([0, 0, 0.001, 0.004])


async def live(bench: Bench, rng: random.Random, end: str, step: int, *, resume: bool) -> int:
    """Run once; return the exit code, 1 after a kill."""
    countdown = rng.randint(1, 30)

    def on_run(ticket: Ticket) -> None:
        nonlocal countdown
        countdown -= 1
        if end == "signal" and not countdown:
            interrupt()

    bench.runner.on_run = on_run
    try:
        async with bench.controller(step=step, resume=resume) as controller:
            if end == "kill":
                write = rng.choice(["put_rollout", "put_audit", "put_feedback", "put_batch", "drop"])
                _die_at(controller._parts.ledger, write, countdown, after=rng.random() < 0.5)
            with anyio.fail_after(20):
                return await controller.run()
    except BaseExceptionGroup as group:
        causes = {str(error) for error in leaves(group)}
    assert causes == {"killed"}
    return 1


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_ends_a_run_its_resumes_complete_one_history(tmp_path: Path, seed: int) -> None:
    """Each step once with a full batch, no attempt twice, tokens close, what is generated anew is not too old."""
    rng = random.Random(seed)
    config, root = random_config(rng), tmp_path / "checkpoints"
    history: dict[int, list[TrainingSample]] = {}
    code, lives = 1, 0
    while code:
        steps = list(list_checkpoints(root))
        step = rng.choice(steps) if steps and rng.random() < 0.3 else max(steps, default=0)
        forget_after(root, step)
        bench = Bench(config, tmp_path)
        prepare(bench, rng, seed)
        end = rng.choice(["kill", "kill", "signal", "none"]) if lives < 5 else "none"
        code = await live(bench, rng, end, step, resume=lives > 0)
        lives += 1
        history = {s: samples for s, samples in history.items() if s <= step} | bench.learner.batches
        fresh = [
            s for samples in bench.learner.batches.values() for s in samples if s.rollout_id in bench.runner.started
        ]
        assert max((sample.age for sample in fresh), default=0) <= config.admission.max_staleness
    ids = [sample.rollout_id for samples in history.values() for sample in samples]
    assert len(ids) == len(set(ids))
    assert sorted(history) == list(range(1, STEPS + 1))
    for samples in history.values():
        assert len({sample.rollout_id[:-3] for sample in samples}) == config.learner.prompts_per_step
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == sorted(history)
    for row in rows:
        assert row["tokens/generated"] == row["tokens/trained"] + row["tokens/queued"] + row["tokens/dropped"]
