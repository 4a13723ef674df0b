"""The control plane under attack: lost money, signals at bad moments, hopeless data, resumes after a kill anywhere."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec
import pytest

from fd_async.data.ledger import open_ledger
from fd_async.errors import (
    EngineDied,
    FdError,
    FeedbackBudgetExceeded,
    FeedbackRejected,
    PreflightError,
    StallDetected,
    VerifierError,
    first_cause,
)
from fd_async.learner.checkpoints import find_checkpoint, list_checkpoints, read_manifest
from fd_async.telemetry.sinks import read_rows
from fd_async.types import Feedback, Rollout, Statement, Ticket
from tests.fakes.control_plane import Bench, make_config

pytestmark = pytest.mark.anyio

SUITE = [Statement(name=f"e{i}", formal_statement=f"theorem e{i} : True :=") for i in range(4)]


def leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def interrupt(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def spent_usd(run_dir: Path) -> float:
    async with open_ledger(run_dir / "ledger.db") as ledger:
        return ledger.spent_usd()


async def test_money_for_refused_answers_is_recorded(tmp_path: Path) -> None:
    """An answer that was paid for and refused counts against the budget of a resume."""
    bench = Bench(make_config(run={"max_steps": 1}), tmp_path)

    def refuse(rollout: Rollout) -> None:
        if rollout.ordinal < 2:
            error = FeedbackRejected("no")
            error.usd = 0.5
            raise error

    bench.provider.on_feedback = refuse
    assert await bench.run() == 0
    assert await spent_usd(tmp_path) == pytest.approx(2 * 0.5 + 0.01 * (bench.provider.sold.total() - 2))


async def test_money_of_the_calls_that_end_the_run_is_recorded(tmp_path: Path) -> None:
    """The last calls cost money as well, and come out as one cause."""
    bench = Bench(make_config(), tmp_path)
    bench.provider.delay_s = 0.02

    def spend(rollout: Rollout) -> None:
        error = FeedbackBudgetExceeded("spent")
        error.usd = 0.25
        raise error

    bench.provider.on_feedback = spend
    with pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert await spent_usd(tmp_path) >= 0.25
    assert len(list(leaves(caught.value))) == 1


async def test_steps_are_kept_when_the_money_is_spent(tmp_path: Path) -> None:
    """The learner is well and waits for a batch: what it has learned goes on where somebody pays."""
    bench = Bench(make_config(checkpoint={"every_steps": 0}), tmp_path)

    def spent(rollout: Rollout) -> None:
        if rollout.ordinal >= 8:
            while_waiting.append(bench.state.step)
            raise FeedbackBudgetExceeded("feedback.max_usd = 1 is spent")

    while_waiting: list[int] = []
    bench.runner.duration_s = lambda ticket: 0.2 if ticket.ordinal >= 8 else 0.0
    bench.provider.on_feedback = spent
    with pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert isinstance(first_cause(caught.value), FeedbackBudgetExceeded)
    assert set(while_waiting) == {2}
    assert list(list_checkpoints(tmp_path / "checkpoints")) == [2]
    again = Bench(make_config(checkpoint={"every_steps": 0}), tmp_path)
    assert await again.run(step=2, resume=True) == 0
    assert sorted(bench.trained + again.trained) == [f"train-{i:07d}-00" for i in range(24)]


async def test_the_same_question_is_bought_once_at_the_same_time(tmp_path: Path) -> None:
    """Two attempts that ask the same share one purchase."""
    config = make_config(run={"max_steps": 1}, rollout={"samples_per_prompt": 3})
    bench = Bench(config, tmp_path)
    bench.provider.question = lambda rollout: f"hash-of-{rollout.ordinal}"
    bench.provider.delay_s = 0.01
    assert await bench.run() == 0
    assert max(int(name[6:13]) for name in bench.provider.sold) + 1 == bench.provider.sold.total()


async def test_calls_in_flight_at_a_signal_are_kept(tmp_path: Path) -> None:
    """Feedback that was asked for before Ctrl-C is in the ledger afterwards."""
    bench = Bench(make_config(), tmp_path)
    bench.provider.delay_s = 0.15
    ask = bench.provider.feedback

    async def feedback(rollout: Rollout) -> Feedback:
        if not bench.provider.sold:
            interrupt()
        return await ask(rollout)

    bench.provider.feedback = feedback  # type: ignore[method-assign]
    with anyio.fail_after(10):
        assert await bench.run() == 130
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        recorded = {record.rollout.id for record in ledger.queued() if record.feedback}
    assert bench.provider.sold
    assert recorded == set(bench.provider.sold)


async def test_an_engine_that_dies_everywhere_at_once_is_one_cause(tmp_path: Path) -> None:
    """Push and attempts fail together: nothing but the engine's death comes out."""
    bench = Bench(make_config(), tmp_path)
    dead: list[bool] = []

    def die(*_: object) -> None:
        if dead or bench.state.step == 2:
            dead.append(True)
            raise EngineDied("gone")

    bench.engine.on_push = die
    bench.runner.on_run = die
    with anyio.fail_after(10), pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert all(isinstance(error, EngineDied) for error in leaves(caught.value))
    status = msgspec.json.decode((tmp_path / "status.json").read_bytes())
    assert status["error"] == "gone"


@pytest.mark.parametrize("at", ["start", "between", "end"])
async def test_a_signal_ends_an_evaluation(tmp_path: Path, at: str) -> None:
    """Ctrl-C waits for no suite: exit 130, a checkpoint, and the engine's death by the same Ctrl-C is no error."""
    config = make_config(
        run={"max_steps": 2},
        eval={"at_start": at == "start", "every_steps": 1 if at == "between" else 0, "at_end": at == "end"},
    )
    bench = Bench(config, tmp_path)
    bench.suites = {"held_out": SUITE}

    def on_run(ticket: Ticket) -> None:
        if ticket.purpose == "eval" and ticket.ordinal == 0:
            interrupt()
            raise EngineDied("Ctrl-C reaches every process")

    bench.runner.on_run = on_run
    bench.runner.duration_s = lambda ticket: 0.0 if ticket.purpose == "train" or ticket.ordinal == 0 else 3600.0
    with anyio.fail_after(10):
        assert await bench.run() == 130
    step = {"start": 0, "between": 1, "end": 2}[at]
    assert read_manifest(find_checkpoint(tmp_path / "checkpoints")).step == step


async def test_a_checkpoint_that_takes_too_long_after_a_signal_ends_the_run(tmp_path: Path) -> None:
    """`run.shutdown_s` is a hard budget, and the message names it."""
    config = make_config(run={"shutdown_s": 0.1}, checkpoint={"every_steps": 0})
    bench = Bench(config, tmp_path)
    bench.learner.save_s = 3600.0
    bench.learner.on_step = lambda step: interrupt() if step == 2 else None
    with anyio.fail_after(10), pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert isinstance(first_cause(caught.value), StallDetected)
    assert "run.shutdown_s" in str(first_cause(caught.value))


async def test_a_run_whose_prompts_are_all_too_long_ends(tmp_path: Path) -> None:
    """It does not go through the statements for ever."""
    bench = Bench(make_config(), tmp_path)
    bench.runner.failure = lambda ticket: "prompt_too_long"
    with anyio.fail_after(10), pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert isinstance(first_cause(caught.value), PreflightError)
    assert "rollout.max_prompt_tokens" in str(first_cause(caught.value))


async def test_a_run_that_gets_no_usable_feedback_ends(tmp_path: Path) -> None:
    """Each attempt may be dropped; all of them are a failure of the provider, which has its own exit code."""
    bench = Bench(make_config(), tmp_path)

    def refuse(rollout: Rollout) -> None:
        raise FeedbackRejected("the statement has no known proof")

    bench.provider.on_feedback = refuse
    with anyio.fail_after(10), pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    error = first_cause(caught.value)
    assert isinstance(error, FeedbackRejected)
    assert error.exit_code == 4
    assert "the statement has no known proof" in str(error)


@pytest.mark.parametrize(("max_outage_s", "end"), [(60.0, None), (0.2, StallDetected)])
async def test_an_outage_within_its_limit_is_no_stall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_outage_s: float, end: type[Exception] | None
) -> None:
    """Everyone waits for the provider: the run goes on when it is back, unless the wait outlasts its own limit."""
    config = make_config(
        run={"stall_warn_s": 0.1, "stall_abort_s": 0.3}, feedback={"max_outage_s": max_outage_s}, checkpoint={}
    )
    bench = Bench(config, tmp_path)
    bench.provider.delay_s = 2.5
    began, told = anyio.current_time(), bench.provider.statistics
    monkeypatch.setattr(bench.provider, "statistics", lambda: {**told(), "awaited_s": anyio.current_time() - began})
    bench.provider.on_feedback = lambda rollout: setattr(bench.provider, "delay_s", 0.0)
    with anyio.fail_after(30):
        if end is None:
            assert await bench.run() == 0
        else:
            with pytest.raises(BaseExceptionGroup) as caught:
                await bench.run()
            assert isinstance(first_cause(caught.value), end)


async def test_an_evaluation_without_a_single_verdict_is_an_error(tmp_path: Path) -> None:
    """A dead verifier gives no pass rate and no silent null."""
    bench = Bench(make_config(), tmp_path)
    bench.suites = {"held_out": SUITE}
    bench.runner.failure = lambda ticket: "infrastructure" if ticket.purpose == "eval" else ""
    with pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert isinstance(first_cause(caught.value), VerifierError)
    assert "held_out" in str(first_cause(caught.value))


@pytest.mark.parametrize("bad", [-1, 1])
async def test_resuming_a_finished_run_repeats_neither_checkpoint_nor_evaluation(tmp_path: Path, bad: int) -> None:
    """One row per step and an untouched checkpoint, however often; also where a statement does not compile."""
    config = make_config(run={"max_steps": 2})
    first = Bench(config, tmp_path)
    is_bad = {("eval", bad): "bad_statement"}
    first.runner.failure = lambda ticket: is_bad.get((ticket.purpose, ticket.ordinal), "")
    first.suites = {"held_out": SUITE}
    assert await first.run() == 0
    written = read_manifest(find_checkpoint(tmp_path / "checkpoints"))
    second = Bench(config, tmp_path)
    second.suites = first.suites
    assert await second.run(step=2, resume=True) == 0
    assert second.runner.started.total() == 0
    assert read_manifest(find_checkpoint(tmp_path / "checkpoints")) == written
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 1, 2]


async def test_sync_mode_waits_for_the_attempt_that_replaces_a_failed_one(tmp_path: Path) -> None:
    """The barrier holds although the last attempt of the batch fails."""
    bench = Bench(make_config(run={"mode": "sync", "max_steps": 2}), tmp_path)
    bench.runner.failure = lambda ticket: "timeout" if ticket.ordinal == 3 else ""
    bench.runner.duration_s = lambda ticket: 0.03 if ticket.ordinal >= 3 else 0.0
    ended: set[str] = set()
    seen: list[int] = []
    bench.runner.on_run = lambda ticket: ended.add(ticket.id)
    bench.provider.on_feedback = lambda rollout: seen.append(len(ended))
    with anyio.fail_after(10):
        assert await bench.run() == 0
    assert seen[0] == 5


async def test_incomplete_groups_of_a_long_rewind_keep_the_staleness_bound(tmp_path: Path) -> None:
    """Attempts that a resume generates anew start when their group's turn comes, not all at once."""
    config = make_config(
        algorithm={"type": "grpo"}, rollout={"samples_per_prompt": 3}, checkpoint={"every_steps": 1, "keep_last": 9}
    )
    assert await Bench(config, tmp_path).run() == 0
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        ledger._connection.execute("DELETE FROM rollouts WHERE sample=2")
        ledger._connection.commit()
    second = Bench(config, tmp_path)
    with anyio.fail_after(10):
        assert await second.run(step=1, resume=True) == 0
    assert second.runner.started.total() == 20
    for step, samples in second.learner.batches.items():
        fresh = [sample.age for sample in samples if sample.rollout_id.endswith("-02")]
        assert len(fresh) == 4, step
        assert max(fresh) <= 1


@pytest.mark.parametrize("instant", ["put_rollout", "put_audit", "put_feedback", "put_batch", "drop"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("num", [1, 9])
async def test_a_kill_between_any_two_writes_loses_and_repeats_nothing(
    tmp_path: Path, instant: str, after: bool, num: int
) -> None:
    """Die just before or after the n-th write of each kind; the resume trains every kept prompt exactly once."""
    config = make_config()

    def refuse(rollout: Rollout) -> None:
        if rollout.ordinal % 4 == 1:
            raise FeedbackRejected("no")

    first = Bench(config, tmp_path)
    first.provider.on_feedback = refuse
    async with first.controller() as controller:
        _die_at(controller._parts.ledger, instant, num, after=after)
        with pytest.raises(BaseExceptionGroup):
            await controller.run()
    step = max([int(p.name[5:]) for p in (tmp_path / "checkpoints").glob("step_*")], default=0)
    second = Bench(config, tmp_path)
    second.provider.on_feedback = refuse
    assert await second.run(step=step, resume=True) == 0
    kept = [sample.rollout_id for s in range(1, step + 1) for sample in first.learner.batches[s]]
    trained = kept + second.trained
    assert len(trained) == len(set(trained)) == 24
    ordinals = sorted(int(name[6:13]) for name in trained)
    assert ordinals == [i for i in range(ordinals[-1] + 1) if i % 4 != 1]
    row = read_rows(tmp_path / "metrics.jsonl")[-1]
    assert row["tokens/trained"] == 24 * 3
    assert row["tokens/generated"] == row["tokens/trained"] + row["tokens/queued"] + row["tokens/dropped"]


def _die_at(ledger: object, name: str, num: int, *, after: bool) -> None:
    """Let the n-th call of a method, and everything after it, fail as if the process were gone."""
    calls = {"put_rollout": 0, "put_audit": 0, "put_feedback": 0, "put_batch": 0, "drop": 0}
    num = min(num, 3) if name in ("put_audit", "put_batch", "drop") else num
    dead: list[bool] = []

    def wrap(method: str, original):
        async def call(*args, **kwargs):
            calls[method] += 1
            dying = method == name and calls[method] == num
            if dead or (dying and not after):
                dead.append(True)
                raise FdError("killed")
            await original(*args, **kwargs)
            if dying:
                dead.append(True)
                raise FdError("killed")

        return call

    for method in calls:
        setattr(ledger, method, wrap(method, getattr(ledger, method)))
