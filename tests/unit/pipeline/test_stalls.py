"""Stalls: what a run that makes no progress says, and what of it is kept."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from fd_async.errors import LearnerError, StallDetected, first_cause
from fd_async.learner.checkpoints import list_checkpoints
from fd_async.pipeline.checkpoints import Checkpoints
from fd_async.telemetry.sinks import read_rows
from fd_async.types import PushReport, StagedWeights
from tests.fakes.control_plane import Bench, make_config

pytestmark = pytest.mark.anyio


async def test_every_wait_in_the_status_has_the_deadline_that_bounds_it(tmp_path: Path) -> None:
    """Its config key and its seconds."""
    bench = Bench(make_config(feedback={"type": "openai", "model": "fake", "deadline_s": 77.0}), tmp_path)
    async with bench.controller() as controller:
        bench.state.board.move("train-0000003-00", "feedback")
        bench.state.board.move("learner", "waiting")
        waits = {wait["stage"]: wait for wait in controller.snapshot()["waits"]}
    assert waits["feedback"]["oldest"] == "train-0000003-00"
    assert (waits["feedback"]["deadline"], waits["feedback"]["deadline_s"]) == ("feedback.deadline_s", 77.0)
    assert waits["waiting"]["deadline_s"] == bench.config.run.stall_abort_s


async def test_a_stall_between_two_steps_writes_a_checkpoint(tmp_path: Path) -> None:
    """The learner answers, so nothing of the run is lost: the last line names the folder."""
    config = make_config(run={"stall_warn_s": 0.1, "stall_abort_s": 0.3}, checkpoint={"every_steps": 0})
    bench = Bench(config, tmp_path)
    bench.runner.duration_s = lambda ticket: 3600.0 if ticket.ordinal >= 8 else 0.0
    with anyio.fail_after(20), pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    error = first_cause(caught.value)
    assert isinstance(error, StallDetected)
    assert list(list_checkpoints(tmp_path / "checkpoints")) == [2]
    last = str(error).splitlines()[-1]
    assert last.startswith("no progress for ")
    assert last.endswith("step_000002")
    again = Bench(make_config(run={"max_steps": 4}), tmp_path)
    assert await again.run(step=2, resume=True) == 0
    assert sorted(bench.trained + again.trained) == [f"train-{i:07d}-00" for i in range(16)]


async def test_a_stall_in_a_push_keeps_the_row_of_its_step(tmp_path: Path) -> None:
    """What the checkpoint holds is trained: metrics and alarms of a resume know the step too."""
    config = make_config(run={"stall_warn_s": 0.1, "stall_abort_s": 0.3}, checkpoint={"every_steps": 0})
    bench = Bench(config, tmp_path)
    push = bench.engine.push

    async def hang(staged: StagedWeights, *_: object) -> PushReport:
        await anyio.sleep(3600 if staged.version == 2 else 0)
        return await push(staged)

    bench.engine.push = hang  # type: ignore[method-assign]
    with anyio.fail_after(20), pytest.raises(BaseExceptionGroup):
        await bench.run()
    assert list(list_checkpoints(tmp_path / "checkpoints")) == [2]
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 0.5)]


async def test_a_stall_whose_checkpoint_fails_still_ends_as_a_stall(tmp_path: Path) -> None:
    """What is left to continue from is told, not the failure of the attempt to save more."""
    config = make_config(run={"stall_warn_s": 0.1, "stall_abort_s": 0.3}, checkpoint={"every_steps": 1})
    bench = Bench(config, tmp_path)
    bench.runner.duration_s = lambda ticket: 3600.0 if ticket.ordinal >= 8 else 0.0
    take = Checkpoints.take

    async def fail_once_stalled(checkpoints: Checkpoints, step: int) -> None:
        if bench.state.board.last_progress < anyio.current_time() - 0.2:
            raise LearnerError("rank 0 does not answer")
        await take(checkpoints, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "take", fail_once_stalled)
        with anyio.fail_after(20), pytest.raises(BaseExceptionGroup) as caught:
            await bench.run()
    error = first_cause(caught.value)
    assert isinstance(error, StallDetected)
    assert str(error).endswith("--resume continues from " + str(tmp_path / "checkpoints" / "step_000002"))


async def test_a_stall_inside_a_step_writes_none(tmp_path: Path) -> None:
    """The learner may or may not have taken the step: what it has now is no state of the run."""
    config = make_config(
        run={"stall_warn_s": 0.1, "stall_abort_s": 0.3}, checkpoint={"every_steps": 2, "background": False}
    )
    bench = Bench(config, tmp_path)
    stage = bench.learner.stage

    async def hang(version: int, probe_ids: list[int]) -> StagedWeights:
        if version == 3:
            await anyio.sleep(3600)
        return await stage(version, probe_ids)

    bench.learner.stage = hang  # type: ignore[method-assign]
    with anyio.fail_after(20), pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert list(list_checkpoints(tmp_path / "checkpoints")) == [2]
    assert str(first_cause(caught.value)).endswith(
        "--resume continues from " + str(tmp_path / "checkpoints/step_000002")
    )
