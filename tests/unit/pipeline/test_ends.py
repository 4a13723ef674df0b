"""Ends: signals at any time, blocked loops, ends that take too long. Each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec
import pytest

from fd_async.config.schema import FeedbackTable
from fd_async.data.ledger import open_ledger
from fd_async.errors import StallDetected, first_cause
from fd_async.feedback.failures import TransientFailure
from fd_async.feedback.fallback import WithFallback
from fd_async.feedback.provider import TextAnswer, open_provider
from fd_async.feedback.tutor import Tutor
from fd_async.learner.checkpoints import list_checkpoints
from fd_async.pipeline.signals import Stop, wanted_signals
from fd_async.types import PushReport, StagedWeights, StepReport, TrainingSample
from tests.fakes.control_plane import Bench, make_config
from tests.fakes.processes import all_gone

pytestmark = pytest.mark.anyio

WATCHED = """
import os, subprocess, sys, time
from pathlib import Path
import anyio
from fd_async.pipeline.checkpoints import Checkpoints
from fd_async.pipeline.signals import Stop
from fd_async.pipeline.stopping import beside
from fd_async.pipeline.watchdog import Watchdog
from fd_async.scratch import scratch_folder

async def main():
    run_dir = Path(sys.argv[1])
    watchdog = Watchdog(run_dir, 0.6, tick_s=0.05)
    stop = Stop(shutdown_s=0.6, limit=watchdog)
    stop.can_finish = True
    with watchdog.watching(), scratch_folder("test", run_dir):
        child = subprocess.Popen(["sleep", "60"], start_new_session=True, stdout=subprocess.DEVNULL)
        print(child.pid, flush=True)
        async with beside(watchdog.beat):
            await stop.run(work)
    print("ended")

"""


BUSY = """
async def work():
    for _ in range(10):
        time.sleep(0.1)
        await anyio.sleep(0.01)
    return 0

anyio.run(main)
"""


def watched(run_dir: Path, work: str) -> subprocess.CompletedProcess[str]:
    """Run a piece of work under a watchdog to its end; its child must not outlive it."""
    (run_dir / "logs").mkdir()
    (run_dir / "status.json").write_text('{"phase": "training", "step": 7}')
    command = [sys.executable, "-c", WATCHED + work + "\nanyio.run(main)\n", str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    anyio.run(all_gone, [int(done.stdout.splitlines()[0])])
    return done


def test_a_blocked_loop_ends_with_6_stacks_and_no_child(tmp_path: Path) -> None:
    """One line says so; status.json keeps the step; folders go."""
    done = watched(tmp_path, "async def work():\n    time.sleep(600)")
    assert done.returncode == 6, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("fd-run: the event loop was blocked for ")
    assert "(run.stall_abort_s); stacks in " in line
    assert line.endswith("; continue with --resume")
    assert "in work" in (tmp_path / "logs" / "stacks.txt").read_text()
    status = msgspec.json.decode((tmp_path / "status.json").read_bytes())
    assert (status["phase"], status["step"]) == ("failed", 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs", "status.json"]


def test_a_blocked_loop_ends_although_the_disk_is_full(tmp_path: Path) -> None:
    """Stacks and status are left out; the code and the line stand."""
    limit = "async def work():\n    import resource\n    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
    done = watched(tmp_path, limit + "    time.sleep(600)")
    assert done.returncode == 6, done
    assert "the event loop was blocked" in done.stderr.splitlines()[-1]
    assert msgspec.json.decode((tmp_path / "status.json").read_bytes())["phase"] == "training"


def test_short_blocks_and_a_process_that_was_stopped_as_a_whole_are_left_alone(tmp_path: Path) -> None:
    """Time in which nobody ran is not time in which the loop was blocked."""
    (tmp_path / "logs").mkdir()
    script = WATCHED + BUSY
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    assert process.wait(30) == 0
    os.kill(child, signal.SIGKILL)
    process.stdout.close()


def test_an_end_that_takes_too_long_is_cut_off(tmp_path: Path) -> None:
    """SIGTERM, and then something that cannot be cancelled: `run.shutdown_s` holds all the same."""
    work = (
        "async def work():\n    import signal\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    with anyio.CancelScope(shield=True):\n        await anyio.sleep(600)"
    )
    done = watched(tmp_path, work)
    assert done.returncode == 6, done
    assert "did not end in its time (run.shutdown_s)" in done.stderr.splitlines()[-1]


async def test_the_first_signal_before_there_is_anything_to_finish_leaves_at_once() -> None:
    """Nothing else would end a start-up that takes minutes."""
    stop = Stop()

    async def work() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        await anyio.sleep_forever()
        return 0

    with anyio.fail_after(10):
        assert await stop.run(work) == 130


async def test_what_fails_on_the_way_out_does_not_change_the_exit_code() -> None:
    """A part that is cut off in its start may complain; a person asked for the end."""
    stop = Stop()

    async def work() -> int:
        try:
            stop.request("SIGINT")
            await anyio.sleep_forever()
        finally:
            raise RuntimeError("cut off")
        return 0

    with anyio.fail_after(10):
        assert await stop.run(work) == 130


async def test_the_second_signal_leaves_a_step_alone(tmp_path: Path) -> None:
    """130 without a checkpoint; status.json says interrupted."""
    bench = Bench(make_config(checkpoint={"every_steps": 0}), tmp_path)
    bench.learner.save_s = 3600.0

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    bench.learner.on_step = lambda step: interrupt() if step == 3 else None
    snapshot = bench.learner.snapshot

    async def interrupt_again() -> int:
        interrupt()
        return await snapshot()

    bench.learner.snapshot = interrupt_again  # type: ignore[method-assign]
    with anyio.fail_after(20):
        assert await bench.run() == 130
    assert not list_checkpoints(tmp_path / "checkpoints")
    assert msgspec.json.decode((tmp_path / "status.json").read_bytes())["phase"] == "interrupted"


async def interrupted_twice(bench: Bench, is_time: Callable[[], bool]) -> int:
    """Run, ask twice for the end as soon as a call is under way, and return the exit code."""
    stop = Stop(shutdown_s=bench.config.run.shutdown_s)

    async def work() -> int:
        async with bench.controller(stop=stop) as controller, anyio.create_task_group() as tasks:
            tasks.start_soon(ask_twice)
            return await controller.run()

    async def ask_twice() -> None:
        while not is_time():  # noqa: ASYNC110
            await anyio.sleep(0.01)
        stop.request("SIGINT")
        await anyio.wait_all_tasks_blocked()
        stop.request("SIGINT")

    return await stop.cancelable(work)


async def test_the_second_signal_leaves_paid_calls_alone(tmp_path: Path) -> None:
    """The first one lets them end; whoever asks twice is not kept waiting by a provider."""
    bench = Bench(make_config(), tmp_path)
    bench.provider.delay_s = 60.0
    with anyio.fail_after(5):
        assert await interrupted_twice(bench, lambda: bool(bench.provider.sold)) == 130


async def test_what_calls_that_were_cut_off_may_have_cost_is_on_record(tmp_path: Path) -> None:
    """Their input was sent and may be on the bill: a resume must not have that money to spend again."""

    async def silence(system: str, user: str, max_tokens: int) -> TextAnswer:
        await anyio.sleep_forever()
        raise AssertionError

    bench = Bench(make_config(), tmp_path)
    table = FeedbackTable(type="openai", model="m", usd_per_million_input_tokens=5.0, usd_per_million_output_tokens=9.0)
    bench.provider = provider = Tutor(silence, table)  # type: ignore[assignment]
    with anyio.fail_after(10):
        assert await interrupted_twice(bench, lambda: bool(provider.statistics()["in_flight"])) == 130
    statistics = provider.statistics()
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        assert 0 < statistics["usd_unconfirmed"] == pytest.approx(ledger.spent_usd())


async def test_what_a_call_to_the_fallback_may_have_cost_is_on_its_bill(tmp_path: Path) -> None:
    """Each table has a budget of its own, and a resume asks the ledger what is left of each."""

    async def silence(system: str, user: str, max_tokens: int) -> TextAnswer:
        await anyio.sleep_forever()
        raise AssertionError

    async def nobody(system: str, user: str, max_tokens: int) -> TextAnswer:
        raise TransientFailure("connection refused")

    bench = Bench(make_config(feedback={"type": "self", "outage": "fallback"}), tmp_path)
    table = FeedbackTable(
        type="openai", model="m", usd_per_million_input_tokens=5.0, usd_per_million_output_tokens=9.0, outage_after=1,
        outage="fallback",
    )  # fmt: skip
    second = Tutor(silence, table)
    bench.provider = provider = WithFallback(Tutor(nobody, table), second)  # type: ignore[assignment]
    with anyio.fail_after(20):
        assert await interrupted_twice(bench, lambda: bool(second.statistics()["in_flight"])) == 130
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        assert 0 < provider.statistics()["fallback_usd"] == pytest.approx(ledger.fallback_spent_usd())
        assert ledger.spent_usd() == pytest.approx(ledger.fallback_spent_usd()), "the first was reached by nobody"


async def test_a_stop_during_an_outage_ends_within_its_time(tmp_path: Path) -> None:
    """Attempts that wait for the provider are given up after half of it; a resume asks for them again."""

    async def nobody(system: str, user: str, max_tokens: int) -> TextAnswer:
        raise TransientFailure("connection refused")

    tables = {"feedback": {"type": "self", "outage_after": 1}, "run": {"shutdown_s": 2.0}}
    bench = Bench(make_config(**tables), tmp_path)
    stop = Stop(shutdown_s=bench.config.run.shutdown_s)

    async def work() -> int:
        async with open_provider(bench.config.feedback, generate_text=nobody) as bench.provider:
            async with bench.controller(stop=stop) as controller, anyio.create_task_group() as tasks:
                tasks.start_soon(stop_in_outage)
                return await controller.run()

    async def stop_in_outage() -> None:
        while not bench.provider.statistics()["awaited_s"]:  # noqa: ASYNC110
            await anyio.sleep(0.01)
        stop.request("SIGTERM")

    with anyio.fail_after(10):
        assert await stop.cancelable(work) == 130
    assert msgspec.json.decode((tmp_path / "status.json").read_bytes())["phase"] == "interrupted"


async def test_a_step_that_outlasts_the_grace_period_is_cut_off(tmp_path: Path) -> None:
    """Slurm kills after its own time: the run ends before, and names the checkpoint that is left."""
    config = make_config(run={"shutdown_s": 0.4}, checkpoint={"every_steps": 2, "background": False})
    bench = Bench(config, tmp_path)

    take = bench.learner.step

    async def hang(samples: list[TrainingSample], *, step: int) -> StepReport:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            await anyio.sleep(3600)
        return await take(samples, step=step)

    bench.learner.step = hang  # type: ignore[method-assign]
    with anyio.fail_after(20), pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    error = first_cause(caught.value)
    assert isinstance(error, StallDetected)
    assert "run.shutdown_s" in str(error)
    assert str(error).endswith("step_000002")


async def test_a_signal_while_a_push_waits_for_an_engine_keeps_the_step(tmp_path: Path) -> None:
    """Nothing will be generated from those weights, and an engine may take minutes to start anew."""
    bench = Bench(make_config(checkpoint={"every_steps": 0}), tmp_path)
    push = bench.engine.push

    async def wait(staged: StagedWeights, *_: object) -> PushReport:
        if staged.version == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            await anyio.sleep(3600)
        return await push(staged)

    bench.engine.push = wait  # type: ignore[method-assign]
    with anyio.fail_after(5):
        assert await bench.run() == 130
    assert list(list_checkpoints(tmp_path / "checkpoints")) == [3]


def test_nohup_keeps_its_meaning() -> None:
    """A hangup that the shell had ignored is no request to stop."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert signal.SIGHUP in wanted_signals()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert signal.SIGHUP not in wanted_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
