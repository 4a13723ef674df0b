"""Replay: the recorded batches give the same rows, the recorded notes the same batches; what differs is named."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fd_async.config.schema import RunConfig
from fd_async.data.ledger import open_ledger
from fd_async.data.ledger.recorded import Event, read_events
from fd_async.data.statements import StatementOrder
from fd_async.errors import LedgerError, PreflightError
from fd_async.pipeline.replay import (
    Comparison,
    NobodyAsked,
    NobodyServes,
    Recorded,
    WatchedLearner,
    compare,
    replay_batches,
)
from fd_async.pipeline.replay_decisions import decide_again
from fd_async.pipeline.state import Parts, RunState
from fd_async.telemetry.progress import QuietProgress
from fd_async.telemetry.sinks import MetricsFile, read_rows
from fd_async.types import StagedWeights, Statement, StepReport, TrainingSample
from tests.fakes.control_plane import Bench, FakeLearner, FakeRenderer, make_config

pytestmark = pytest.mark.anyio


class Learns(FakeLearner):
    """A learner whose loss and weights depend on every sample and on their order."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = "start"

    async def step(self, samples: list[TrainingSample], *, step: int) -> StepReport:
        await super().step(samples, step=step)
        seen = hashlib.sha256(msgspec.msgpack.encode((self.weights, samples)))
        self.weights = seen.hexdigest()
        return StepReport(
            step=step, metrics={"loss": int(self.weights[:12], 16) / 2**48, "time/backward_s": 0.1 * step}
        )

    async def stage(self, version: int, probe_ids: list[int]) -> StagedWeights:
        staged = await super().stage(version, probe_ids)
        return msgspec.structs.replace(staged, sha256=[self.weights])

    async def write(self, folder: Path) -> None:
        (folder / "state").write_text(self.weights)

    async def restore(self, checkpoint: Path) -> None:
        self.weights = (checkpoint / "state").read_text()


async def record(run_dir: Path, config: RunConfig, **keys: Any) -> Bench:
    """Run with stand-ins: attempts end out of order, one fails, every fourth step keeps the learner."""
    bench = Bench(config, run_dir)
    bench.learner = Learns()
    bench.runner.duration_s = lambda ticket: 0.001 * (ticket.ordinal * 7 % 5)
    bench.runner.failure = lambda ticket: "engine" if ticket.ordinal % 11 == 3 else ""
    for key, value in keys.items():
        setattr(bench.learner, key, value)
    return bench


async def replayed(recorded: Recorded, config: RunConfig, folder: Path) -> Comparison:
    """Replay with a fresh learner of the same kind and compare."""
    for name in ("logs", "checkpoints"):
        (folder / name).mkdir(parents=True)
    metrics, learner = MetricsFile(folder / "metrics.jsonl"), WatchedLearner(Learns())
    await metrics.open()
    async with open_ledger(folder / "ledger.db") as ledger:
        parts = Parts(
            config=config,
            run_dir=folder,
            engine=NobodyServes(),  # type: ignore[arg-type]
            learner=learner,  # type: ignore[arg-type]
            renderer=FakeRenderer(),  # type: ignore[arg-type]
            verifier=NobodyAsked(),  # type: ignore[arg-type]
            provider=NobodyAsked(),  # type: ignore[arg-type]
            ledger=ledger,
            runner=None,  # type: ignore[arg-type]
            order=StatementOrder([Statement(name="t", formal_statement="theorem t : True :=")], 0),
            suites={},
            progress=QuietProgress(),
        )
        await replay_batches(parts, RunState(config, 0), recorded, metrics=metrics, config_hash="x", probe_ids=[1, 2])
    await metrics.aclose()
    return compare(recorded, read_rows(folder / "metrics.jsonl"), read_events(folder / "ledger.db"), learner.columns)


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"run": {"mode": "sync"}},
        {"algorithm": {"type": "grpo"}, "rollout": {"samples_per_prompt": 2}},
        {"admission": {"max_staleness": 3}, "algorithm": {"max_age": 1}},
    ],
)
async def test_a_run_replays_equal_bit_for_bit(tmp_path: Path, tables: dict[str, dict[str, Any]]) -> None:
    """Losses, columns, weights of every version, and the queue's decisions."""
    config = make_config(**tables)
    bench = await record(tmp_path / "run", config)
    assert await bench.run() == 0
    result = await replayed(Recorded(tmp_path / "run"), config, tmp_path / "again")
    assert result.difference == ""
    assert (result.num_steps, result.num_losses, result.num_weights) == (6, 6, 7)
    assert result.num_cuts >= 6
    assert result.text.startswith("replayed 6 steps, 6 losses equal bit for bit")


async def test_a_run_that_broke_off_and_was_resumed_replays_as_one_history(tmp_path: Path) -> None:
    """Steps that a resume took back are not in the ledger; their notes are, and agree."""
    config = make_config()
    bench = await record(tmp_path / "run", config)

    def break_off(step: int) -> None:
        if step == 4:
            raise RuntimeError("killed")

    bench.learner.on_step = break_off
    with pytest.raises(BaseExceptionGroup):
        await bench.run()
    unfinished = await replayed(Recorded(tmp_path / "run"), config, tmp_path / "half")
    assert (unfinished.difference, unfinished.num_steps) == ("", 3)
    resumed = await record(tmp_path / "run", config)
    resumed.learner.weights = (tmp_path / "run" / "checkpoints" / "step_000002" / "state").read_text()
    assert await resumed.run(step=2, resume=True) == 0
    result = await replayed(Recorded(tmp_path / "run"), config, tmp_path / "again")
    assert (result.difference, result.num_losses, result.num_weights) == ("", 6, 7)


async def test_a_run_that_rolled_back_replays_its_rollback(tmp_path: Path) -> None:
    """The replay writes checkpoints of its own and returns to the same one."""
    alarms = {"action": "rollback", "warmup_steps": 1, "patience": 1, "max_grad_norm_growth": 2.0}
    config = make_config(alarms=alarms, run={"max_steps": 8})

    class Explodes(Learns):
        async def step(self, samples: list[TrainingSample], *, step: int) -> StepReport:
            report = await super().step(samples, step=step)
            report.metrics["grad_norm"] = 9.0 if step == 6 else 1.0
            return report

    bench = await record(tmp_path / "run", config)
    bench.learner = Explodes()
    assert await bench.run() == 0
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows if row.get("alarms/rollback_to") is not None] == [6]
    recorded, kind = Recorded(tmp_path / "run"), globals()
    kind["Learns"], plain = Explodes, kind["Learns"]
    try:
        result = await replayed(recorded, config, tmp_path / "again")
    finally:
        kind["Learns"] = plain
    assert (result.difference, result.num_steps) == ("", 8)


async def test_the_first_difference_is_named(tmp_path: Path) -> None:
    """Step, column and both values; the loss before other columns."""
    config = make_config()
    bench = await record(tmp_path / "run", config)
    await bench.run()
    path = tmp_path / "run" / "metrics.jsonl"
    rows = read_rows(path)
    true, rows[2]["loss"] = rows[2]["loss"], rows[2]["loss"] + 1e-16
    rows[2]["train/pass_rate"] = 0.123
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    result = await replayed(Recorded(tmp_path / "run"), config, tmp_path / "again")
    assert result.difference == f"step 3, loss: {rows[2]['loss']!r} in the run, {true!r} in the replay"
    assert result.text.startswith("the replay differs: step 3, loss")
    assert result.num_losses == 5


async def test_other_samples_are_found_by_the_weights_too(tmp_path: Path) -> None:
    """A log-prob that changed on the disk changes loss and weights of its step."""
    config = make_config()
    bench = await record(tmp_path / "run", config)
    await bench.run()
    recorded = Recorded(tmp_path / "run")
    recorded.batches[3].reverse()
    result = await replayed(recorded, config, tmp_path / "again")
    assert result.difference.startswith("step 4, loss")
    assert (result.num_losses, result.num_weights) == (3, 4)


async def test_tokens_that_the_ledger_gave_up_are_named(tmp_path: Path) -> None:
    """A ledger over its limit cannot be replayed, and says which key did it."""
    config = make_config()
    bench = await record(tmp_path / "run", config)
    await bench.run()
    with closing(sqlite3.connect(tmp_path / "run" / "ledger.db")) as db, db:
        db.execute("DELETE FROM tokens WHERE seq IN (SELECT seq FROM rollouts WHERE step=2)")
    with pytest.raises(BaseExceptionGroup) as raised:
        await replayed(Recorded(tmp_path / "run"), config, tmp_path / "again")
    assert raised.group_contains(LedgerError, match=r"telemetry\.ledger_max_gib", depth=None)


def test_a_folder_without_a_trained_batch_is_refused(tmp_path: Path) -> None:
    """There is nothing to replay."""
    with pytest.raises(PreflightError, match=r"no ledger\.db"):
        Recorded(tmp_path)


async def test_a_ledger_without_a_trained_batch_is_refused(tmp_path: Path) -> None:
    """A run that was stopped before its first step."""
    async with open_ledger(tmp_path / "ledger.db"):
        pass
    with pytest.raises(PreflightError, match=r"ledger\.db holds no trained batch: there is nothing to replay"):
        Recorded(tmp_path)


async def test_rows_and_weights_that_the_replay_lacks_are_no_equality(tmp_path: Path) -> None:
    """What was not computed again was not compared."""
    bench = await record(tmp_path / "run", make_config())
    await bench.run()
    recorded = Recorded(tmp_path / "run")
    columns = {"loss"}
    assert compare(recorded, recorded.rows, recorded.events, columns).difference == ""
    without = [row for row in recorded.rows if row["step"] != 3]
    said = compare(recorded, without, recorded.events, columns).difference
    assert said == "step 3: the run has a row, the replay has none"
    others = [event for event in recorded.events if event.kind != "weights"]
    said = compare(recorded, recorded.rows, others, columns).difference
    assert said == "no weight version of the run came up in the replay"
    changed = [Event("weights", "x", 2) if (e.kind, e.value) == ("weights", 2) else e for e in recorded.events]
    assert "weight version 2: digest " in compare(recorded, recorded.rows, changed, columns).difference
    recorded.batches[1].reverse()
    assert compare(recorded, recorded.rows, recorded.events, columns).difference.startswith("step 2 trained prompts ")
    assert len(recorded.fingerprints()) <= 1


OPENED = Event("opened", "1 1 1 1 9", 0)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([Event("admitted", "0", 0)], "before the queue was opened"),
        (
            [OPENED, *(Event("admitted", str(i), 0) for i in range(3))],
            "event 4 (admitted 2 at weight version 0): the queue",
        ),
        ([OPENED, Event("admitted", "0", 0), Event("cut", "0", 0)], "event 3 (cut 0 at weight version 0): the queue"),
        ([OPENED, Event("ready", "7", 0)], "there is no group 7"),
        ([OPENED, Event("admitted", "0", 3)], "the queue would have waited"),
        (
            [OPENED, *(Event(k, str(i), 0) for i in range(2) for k in ("admitted", "ready")), Event("cut", "1", 0)],
            "was prompts 1, the queue gives 0",
        ),
    ],
)
def test_notes_that_the_queue_would_not_have_made_are_found(events: list[Event], words: str) -> None:
    """The first one is named with its number."""
    assert words in decide_again(events).difference


async def test_what_the_run_does_not_tell_is_not_called_equal(tmp_path: Path) -> None:
    """Rows that are missing leave nothing to compare with; only the last one may be lost with a kill."""
    config = make_config()
    bench = await record(tmp_path / "run", config)
    await bench.run()
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    for number, (kept, difference) in enumerate(
        [
            (lines[:-1], ""),
            ([*lines[:2], *lines[3:]], "step 3: the replay has a row, the run has none"),
            ([], "the run has no row with a loss: there is nothing to compare with"),
        ]
    ):
        path.write_bytes(b"".join(kept))
        result = await replayed(Recorded(tmp_path / "run"), config, tmp_path / f"again-{number}")
        assert result.difference == difference
