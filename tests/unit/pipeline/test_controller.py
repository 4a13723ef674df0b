"""The real control plane on stand-ins: accounting closes, staleness is bounded, faults end or continue the run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import anyio
import msgspec
import pytest

from fd_async.errors import (
    EngineDied,
    FeedbackBudgetExceeded,
    FeedbackRejected,
    StallDetected,
    VerifierError,
    first_cause,
)
from fd_async.learner.checkpoints import find_checkpoint, read_manifest
from fd_async.telemetry.sinks import read_rows
from fd_async.types import Rollout
from tests.fakes.control_plane import Bench, make_config

pytestmark = pytest.mark.anyio


async def test_a_run_trains_every_prompt_once_and_the_tokens_close(tmp_path: Path) -> None:
    """generated = trained + queued + dropped on every row; ordinals 0..N are trained exactly once."""
    bench = Bench(make_config(), tmp_path)
    assert await bench.run() == 0
    assert sorted(bench.trained) == [f"train-{i:07d}-00" for i in range(24)]
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert row["tokens/generated"] == row["tokens/trained"] + row["tokens/queued"] + row["tokens/dropped"]
        assert row["staleness/max"] <= 1
    assert rows[-1]["tokens/trained"] == 24 * 3
    assert read_manifest(find_checkpoint(tmp_path / "checkpoints")).step == 6
    assert msgspec.json.decode((tmp_path / "status.json").read_bytes())["phase"] == "done"


async def test_rejected_feedback_is_dropped_by_name_and_replaced(tmp_path: Path) -> None:
    """A drop frees its slot; the batch still fills, nothing is counted as unsolved."""
    bench = Bench(make_config(), tmp_path)

    def refuse(rollout: Rollout) -> None:
        if rollout.ordinal % 4 == 1:
            raise FeedbackRejected("no")

    bench.provider.on_feedback = refuse
    assert await bench.run() == 0
    assert len(bench.trained) == len(set(bench.trained)) == 24
    assert not any(int(name[6:13]) % 4 == 1 for name in bench.trained)
    assert bench.state.num_dropped["feedback_rejected"] >= 6


async def test_failed_attempts_are_never_trained(tmp_path: Path) -> None:
    """An infrastructure failure is dropped by its cause, not learned from."""
    bench = Bench(make_config(), tmp_path)
    bench.runner.failure = lambda ticket: "infrastructure" if ticket.ordinal % 6 == 2 else ""
    assert await bench.run() == 0
    assert not any(int(name[6:13]) % 6 == 2 for name in bench.trained)
    assert bench.provider.sold.keys().isdisjoint({f"train-{i:07d}-00" for i in range(2, 60, 6)})


async def test_a_run_whose_attempts_all_fail_ends_with_the_cause(tmp_path: Path) -> None:
    """When infrastructure failure is the rule, the run says so instead of retrying for ever."""
    bench = Bench(make_config(), tmp_path)
    bench.runner.failure = lambda ticket: "infrastructure"
    with pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert isinstance(first_cause(caught.value), VerifierError)
    assert "max_failed_fraction" in str(first_cause(caught.value))


@pytest.mark.parametrize("error", [EngineDied("gone"), FeedbackBudgetExceeded("spent")])
async def test_a_fatal_error_in_any_loop_ends_the_run_with_itself(tmp_path: Path, error: Exception) -> None:
    """The first cause comes out, not a cancellation."""
    bench = Bench(make_config(), tmp_path)

    def fail(*_: object) -> None:
        raise error

    if isinstance(error, EngineDied):
        bench.engine.on_push = lambda version: fail() if version == 2 else None
    else:
        bench.provider.on_feedback = fail
    with pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert first_cause(caught.value) is error
    assert msgspec.json.decode((tmp_path / "status.json").read_bytes())["phase"] == "failed"


async def test_resume_after_a_crash_repeats_and_skips_nothing(tmp_path: Path) -> None:
    """After a crash in step 5, a resume from checkpoint 4 trains each prompt once and buys no feedback again."""
    config = make_config(admission={"max_staleness": 2})
    first = Bench(config, tmp_path)

    def crash(step: int) -> None:
        if step == 5:
            raise EngineDied("crash")

    first.learner.on_step = crash
    with pytest.raises(BaseExceptionGroup):
        await first.run()
    second = Bench(config, tmp_path)
    folder = find_checkpoint(tmp_path / "checkpoints")
    assert read_manifest(folder).step == 4
    assert await second.run(step=4, resume=True) == 0
    kept = [sample.rollout_id for step in range(1, 5) for sample in first.learner.batches[step]]
    assert sorted(kept + second.trained) == [f"train-{i:07d}-00" for i in range(24)]
    bought = first.provider.sold + second.provider.sold
    recorded_first = {name for name in first.provider.sold if name not in second.provider.sold}
    assert recorded_first >= set(kept)
    assert all(count <= 2 for count in bought.values())
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


async def test_resume_from_an_older_checkpoint_buys_nothing_again(tmp_path: Path) -> None:
    """Going back from step 6 to step 2 retrains recorded attempts with recorded feedback."""
    first = Bench(make_config(), tmp_path)
    await first.run()
    second = Bench(make_config(), tmp_path)
    assert await second.run(step=2, resume=True) == 0
    assert second.provider.sold.total() == 0
    assert second.runner.started.total() == 0
    assert sorted(second.trained) == sorted(
        set(first.trained) - {s.rollout_id for i in (1, 2) for s in first.learner.batches[i]}
    )


async def test_grpo_groups_are_whole(tmp_path: Path) -> None:
    """Every batch holds whole groups; advantages of a group sum to zero; no feedback is bought."""
    config = make_config(algorithm={"type": "grpo"}, rollout={"samples_per_prompt": 4}, run={"max_steps": 3})
    bench = Bench(config, tmp_path)
    assert await bench.run() == 0
    for samples in bench.learner.batches.values():
        groups: dict[str, list[float]] = {}
        for sample in samples:
            groups.setdefault(sample.rollout_id[:13], []).append(sample.advantage)
        assert all(len(advantages) == 4 and abs(sum(advantages)) < 1e-6 for advantages in groups.values())
    assert bench.provider.sold.total() == 0


async def test_sync_mode_buys_no_feedback_before_the_last_rollout_ended(tmp_path: Path) -> None:
    """The baseline finishes one stage before the next."""
    bench = Bench(make_config(run={"mode": "sync", "max_steps": 3}), tmp_path)
    bench.runner.duration_s = lambda ticket: 0.05 if ticket.ordinal % 4 == 3 else 0.0
    seen: list[int] = []
    bench.provider.on_feedback = lambda rollout: seen.append(sum(bench.runner.started.values()))
    assert await bench.run() == 0
    assert all(count % 4 == 0 for count in seen)


async def test_async_mode_overlaps_feedback_with_learning(tmp_path: Path) -> None:
    """With S = 1 a second batch is in feedback while the first is learned."""
    bench = Bench(make_config(), tmp_path)
    started_at_step: dict[int, int] = {}
    bench.learner.on_step = lambda step: started_at_step.update({step: bench.runner.started.total()})
    await bench.run()
    assert started_at_step[1] > 4


async def test_first_signal_finishes_the_step_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    """SIGTERM: exit 130, a checkpoint of the last finished step, and a resume that completes the run."""
    config = make_config(run={"max_steps": 50}, checkpoint={"every_steps": 0})
    bench = Bench(config, tmp_path)
    bench.learner.on_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None
    with anyio.fail_after(10):
        assert await bench.run() == 130
    assert read_manifest(find_checkpoint(tmp_path / "checkpoints")).step == 3
    last = read_rows(tmp_path / "metrics.jsonl")[-1]
    assert (last["step"], last["weight_version"]) == (3, 2), "the last weights are kept, not pushed"
    config = make_config(run={"max_steps": 5}, checkpoint={"every_steps": 0})
    second = Bench(config, tmp_path)
    assert await second.run(step=3, resume=True) == 0
    assert sorted(bench.trained + second.trained)[:20] == [f"train-{i:07d}-00" for i in range(20)]


async def test_a_stall_prints_who_waits_and_ends_with_exit_6(tmp_path: Path) -> None:
    """Feedback never answers: the error names the stage and the stacks are on disk."""
    bench = Bench(make_config(run={"stall_warn_s": 0.2, "stall_abort_s": 0.5}), tmp_path)
    bench.provider.delay_s = 3600.0
    with anyio.fail_after(10), pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    error = first_cause(caught.value)
    assert isinstance(error, StallDetected)
    assert error.exit_code == 6
    assert "the feedback provider" in str(error)
    assert "Thread" in (tmp_path / "logs" / "stacks.txt").read_text()
