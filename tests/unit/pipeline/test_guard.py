"""What a run does when an alarm is raised, and with attempts that are too old; real control plane on stand-ins."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fd_async.errors import CheckpointError, first_cause
from fd_async.learner.checkpoints import list_checkpoints
from fd_async.pipeline.controller import EXIT_ALARM
from fd_async.telemetry.sinks import read_rows
from fd_async.types import Ticket
from tests.fakes.control_plane import Bench, make_config

pytestmark = pytest.mark.anyio

BAD = {"teacher/entropy": 99.0}


def make_bench(run_dir: Path, action: str, bad_steps: set[int] | range, **tables: Any) -> Bench:
    """Return a run of 20 steps with a checkpoint every second one, whose teacher is dead at `bad_steps`."""
    alarms = {"action": action, "patience": 3, "warmup_steps": 2} | tables.pop("alarms", {})
    config = make_config(**({"run": {"max_steps": 20}, "alarms": alarms} | tables))
    bench = Bench(config, run_dir)
    bench.learner.metrics = lambda step: {"loss": 1.0} | (BAD if step in bad_steps else {"teacher/entropy": 0.1})
    return bench


def column(run_dir: Path, key: str) -> dict[int, Any]:
    return {row["step"]: row[key] for row in read_rows(run_dir / "metrics.jsonl") if row.get(key) is not None}


async def test_a_warning_is_said_once_and_shown_while_it_stands(tmp_path: Path) -> None:
    """The run goes on; row and status.json have it, the console one line."""
    bench = make_bench(tmp_path, "warn", range(10, 99))
    said: list[str] = []
    async with bench.controller() as controller:
        controller._parts.progress.message = said.append  # type: ignore[method-assign]
        assert await controller.run() == 0
    raised = column(tmp_path, "alarms/raised")
    assert [step for step, count in raised.items() if count] == list(range(12, 21))
    assert len(raised) == 20
    assert [text for text in said if "alarm" in text] == [text for text in said if "step 12" in text]
    status = msgspec.json.decode((tmp_path / "status.json").read_bytes())
    assert list(status["alarms"]) == ["teacher entropy"]
    assert bench.learner.restored == []


async def test_a_rollback_takes_the_last_checkpoint_from_before_the_first_sign(tmp_path: Path) -> None:
    """Signs from step 9, whose row measures the weights of step 8: that of 6 is good, and keep_last spares it."""
    bench = make_bench(tmp_path, "rollback", range(9, 12), checkpoint={"every_steps": 2, "keep_last": 1})
    pushed: list[tuple[int, int]] = []
    bench.engine.on_push = lambda version: pushed.append((version, len(bench.learner.restored)))
    assert await bench.run() == 0
    assert bench.learner.restored == ["state 6"]
    assert column(tmp_path, "alarms/rollback_to") == {11: 6}
    assert [version for version, _ in pushed] == list(range(21))
    assert dict(pushed)[10] == 0
    assert dict(pushed)[11] == 1, "the weights of the step that raised the alarm are never served"
    assert column(tmp_path, "step") == column(tmp_path, "weight_version") == {step: step for step in range(1, 21)}
    assert len(bench.trained) == len(set(bench.trained)) == 80
    assert column(tmp_path, "alarms/raised")[12] == 0


async def test_checkpoints_after_a_rollback_are_good_again(tmp_path: Path) -> None:
    """A second collapse goes back to the new history, not to the old one."""
    bench = make_bench(tmp_path, "rollback", {7, 8, 9, 16, 17, 18})
    assert await bench.run() == 0
    assert bench.learner.restored == ["state 4", "state 14"]
    assert column(tmp_path, "alarms/rollback_to") == {9: 4, 18: 14}


async def test_one_rollback_too_many_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    """What comes again and again is not cured by going back."""
    bench = make_bench(tmp_path, "rollback", range(7, 99), alarms={"max_rollbacks": 1})
    assert await bench.run() == EXIT_ALARM
    assert bench.learner.restored == ["state 4"]
    status = msgspec.json.decode((tmp_path / "status.json").read_bytes())
    assert status["phase"] == "ended by an alarm"
    assert "alarms.max_rollbacks = 1" in status["error"]
    last = max(column(tmp_path, "step"))
    assert last < 20
    assert last in list_checkpoints(tmp_path / "checkpoints")


async def test_a_stop_keeps_the_last_weights_and_the_last_good_ones(tmp_path: Path) -> None:
    """Exit code 7, a checkpoint of the last step, and one to go back to, whose step is named."""
    bench = make_bench(tmp_path, "stop", range(9, 99), checkpoint={"every_steps": 2, "keep_last": 1})
    said: list[str] = []
    async with bench.controller() as controller:
        controller._parts.progress.message = said.append  # type: ignore[method-assign]
        assert await controller.run() == EXIT_ALARM
    assert max(column(tmp_path, "step")) == 11
    assert list(list_checkpoints(tmp_path / "checkpoints")) == [6, 11]
    assert "--resume 6" in said[-1]


async def test_without_a_good_checkpoint_the_run_ends_instead(tmp_path: Path) -> None:
    """There is nothing to go back to before the first checkpoint."""
    bench = make_bench(tmp_path, "rollback", range(3, 99), checkpoint={"every_steps": 0})
    assert await bench.run() == EXIT_ALARM
    assert bench.learner.restored == []


async def test_a_rollback_that_fails_ends_the_run_with_the_cause(tmp_path: Path) -> None:
    """Nothing is pushed from a learner that may be half way between two states."""
    bench = make_bench(tmp_path, "rollback", range(9, 99))

    async def restore(checkpoint: Path) -> None:
        raise CheckpointError("torn")

    bench.learner.restore = restore  # type: ignore[method-assign]
    versions: list[int] = []
    bench.engine.on_push = versions.append
    with pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert str(first_cause(caught.value)) == "torn"
    assert max(versions) == 10


@pytest.mark.parametrize("resume_from", [8, 10, 12, 14])
async def test_a_resume_knows_what_the_alarms_had_seen(tmp_path: Path, resume_from: int) -> None:
    """Before, amid and after the signs of step 9 to 11: in the end there was one rollback, to step 6."""
    bad = range(9, 12)
    first = make_bench(tmp_path, "rollback", bad, checkpoint={"every_steps": 2, "keep_last": 99})
    first.learner.on_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 15 else None
    assert await first.run() == 130
    second = make_bench(tmp_path, "rollback", bad, checkpoint={"every_steps": 2, "keep_last": 99})
    assert await second.run(step=resume_from, resume=True) == 0
    assert column(tmp_path, "alarms/rollback_to") == {11: 6}
    assert second.learner.restored == (["state 6"] if resume_from < 11 else [])


async def test_an_alarm_that_stands_does_not_stop_whoever_resumes(tmp_path: Path) -> None:
    """The run was ended for it once; going on is then a decision."""
    first = make_bench(tmp_path, "stop", range(9, 99))
    assert await first.run() == EXIT_ALARM
    second = make_bench(tmp_path, "stop", range(9, 99))
    assert await second.run(step=11, resume=True) == 0
    assert column(tmp_path, "alarms/raised")[20] == 1


async def test_attempts_above_the_age_limit_are_dropped_by_name_and_replaced(tmp_path: Path) -> None:
    """Staleness 2 is admitted and 0 is asked for: what waited too long is never trained, and the tokens close."""
    config = make_config(admission={"max_staleness": 2}, algorithm={"max_age": 0}, run={"max_steps": 8})
    bench = Bench(config, tmp_path)
    assert await bench.run() == 0
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert {row["staleness/max"] for row in rows} == {0}
    assert all(row["train/attempts"] == 4 for row in rows)
    assert all(
        row["tokens/generated"] == row["tokens/trained"] + row["tokens/queued"] + row["tokens/dropped"] for row in rows
    )
    assert rows[-1]["staleness/too_old"] == bench.state.num_dropped["too_old"] > 0
    assert len(bench.trained) == len(set(bench.trained)) == 32


async def test_a_group_that_lost_its_old_members_goes_whole_when_it_is_too_small(tmp_path: Path) -> None:
    """GRPO compares at least two; the slot is free again."""
    config = make_config(
        algorithm={"type": "grpo", "max_age": 0},
        rollout={"samples_per_prompt": 2},
        admission={"max_staleness": 2},
        run={"max_steps": 6},
    )
    bench = Bench(config, tmp_path)

    def slow_second(ticket: Ticket) -> float:
        return 0.004 * ticket.sample

    bench.runner.duration_s = slow_second
    assert await bench.run() == 0
    assert all(len(samples) == 8 for samples in bench.learner.batches.values())
    assert bench.state.num_dropped["too_old"] > 0


async def test_no_age_limit_drops_nothing(tmp_path: Path) -> None:
    """-1 is the default: admission alone bounds the age."""
    bench = Bench(make_config(admission={"max_staleness": 3}), tmp_path)
    assert await bench.run() == 0
    assert bench.state.num_dropped["too_old"] == 0
    assert "staleness/too_old" not in read_rows(tmp_path / "metrics.jsonl")[-1]
