"""Learners that die: the run goes on from its newest checkpoint, a bounded number of times, and loses nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from fd_async.data.ledger import open_ledger
from fd_async.errors import (
    AlignmentError,
    EngineDied,
    FdError,
    LearnerError,
    LearnerRankDied,
    NonFiniteLoss,
    PreflightError,
    PushFailed,
    first_cause,
)
from fd_async.learner.checkpoints import list_checkpoints
from fd_async.learner.client import Learner
from fd_async.pipeline.lives import Lives, curable
from fd_async.pipeline.signals import Stop
from fd_async.pipeline.state import Parts
from fd_async.policy.supervised import supervised
from fd_async.telemetry.observers import Observer, Observers
from fd_async.telemetry.progress import QuietProgress
from fd_async.telemetry.sinks import read_rows
from fd_async.types import StepReport, TrainingSample
from tests.fakes.control_plane import Bench, FakeEngine, FakeLearner, make_config

pytestmark = pytest.mark.anyio

DEATH = "learner rank 0 (pid 7) was killed by SIGKILL, see logs/learner-0.log; its last lines:\nout of memory"


class Console(QuietProgress, Observer):
    """Keeps what people and observers are told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.events: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)

    def event(self, kind: str, subject: str, detail: Any) -> None:
        self.events.append(kind)


class World:
    """Stand-ins that outlive their learners; `prepare` gets the number of a life, from 1, and its learner."""

    def __init__(self, run_dir: Path, prepare: Callable[[int, FakeLearner], None], **tables: dict[str, Any]) -> None:
        self.bench = Bench(make_config(**tables), run_dir)
        self.prepare = prepare
        self.learners: list[FakeLearner] = []
        self.began: list[str] = []
        self.console = Console()
        self.stop = Stop(shutdown_s=self.bench.config.run.shutdown_s)
        self.pushed: list[int] = []
        self.bench.engine.on_push = self.pushed.append

    @asynccontextmanager
    async def start(self, checkpoint: Path | None) -> AsyncIterator[Learner]:
        self.began.append(checkpoint.name if checkpoint else "")
        learner = self.bench.learner = FakeLearner()
        self.learners.append(learner)
        self.prepare(len(self.learners), learner)
        yield learner  # type: ignore[misc]

    async def run(self) -> int:
        async with open_ledger(self.bench.run_dir / "ledger.db") as ledger:

            async def assemble(learner: Learner) -> Parts:
                return self.bench.parts(ledger)

            lives = Lives(
                self.bench.config,
                self.bench.run_dir,
                start_learner=self.start,
                assemble=assemble,
                probe_ids=[1, 2],
                config_hash="x",
                stop=self.stop,
                progress=self.console,
                observers=Observers([self.console]),
                resumes=False,
            )
            with anyio.fail_after(20):
                return await self.stop.run(lambda: lives.run(None, 0))

    @property
    def status(self) -> dict[str, Any]:
        return msgspec.json.decode((self.bench.run_dir / "status.json").read_bytes())

    @property
    def history(self) -> list[str]:
        """Rollout ids by the last life that trained their step."""
        steps = {step: batch for learner in self.learners for step, batch in learner.batches.items()}
        return [sample.rollout_id for step in sorted(steps) for sample in steps[step]]


def dies(life: int, step: int, error: Exception | None = None) -> Callable[[int, FakeLearner], None]:
    """Let the learners up to this life fail in a step."""

    def prepare(number: int, learner: FakeLearner) -> None:
        def on_step(now: int) -> None:
            if number <= life and now == step:
                raise error or LearnerRankDied(DEATH)

        learner.on_step = on_step

    return prepare


async def test_a_rank_that_dies_in_a_step_costs_nothing_but_time(tmp_path: Path) -> None:
    """No prompt is skipped, trained twice in one history or paid again; rows stand once; the account closes."""
    world = World(tmp_path, dies(1, 4))
    assert await world.run() == 0
    assert world.began == ["", "step_000002"]
    assert sorted(world.history) == [f"train-{i:07d}-00" for i in range(24)]
    assert world.bench.provider.sold.total() == len(world.bench.provider.sold)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    last = rows[-1]
    assert last["tokens/trained"] == 24 * 3
    assert last["tokens/generated"] == last["tokens/trained"] + last["tokens/queued"] + last["tokens/dropped"]
    assert max(row["staleness/max"] for row in rows) <= 1


async def test_the_engine_gets_the_weights_of_the_checkpoint(tmp_path: Path) -> None:
    """It serves on, and its first push of the new life is the step that the learner came back to."""
    world = World(tmp_path, dies(1, 4))
    await world.run()
    assert world.pushed == [0, 1, 2, 3, 2, 3, 4, 5, 6]


async def test_a_restart_is_said_everywhere(tmp_path: Path) -> None:
    """Console, observers, and status.json with the number of restarts."""
    world = World(tmp_path, dies(1, 4))
    await world.run()
    (line,) = [line for line in world.console.lines if "anew" in line]
    assert line.startswith("learner rank 0 (pid 7) was killed by SIGKILL, see logs/learner-0.log; starting")
    assert "from the checkpoint of step 2 (1 of learner.max_restarts = 2)" in line
    assert world.console.events == ["learner_restarted"]
    assert (world.status["phase"], world.status["restarts"], world.status["error"]) == ("done", 1, "")


async def test_without_a_checkpoint_the_learner_starts_at_step_0(tmp_path: Path) -> None:
    """The attempts of the ledger are used again."""
    world = World(tmp_path, dies(1, 2))
    assert await world.run() == 0
    assert world.began == ["", ""]
    assert sorted(world.history) == [f"train-{i:07d}-00" for i in range(24)]
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


async def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path: Path) -> None:
    """The one before it is complete."""

    def prepare(number: int, learner: FakeLearner) -> None:
        def on_step(step: int) -> None:
            if number == 1 and step == 5:
                (tmp_path / "checkpoints" / "step_000004" / "state").write_text("torn")
                raise LearnerRankDied(DEATH)

        learner.on_step = on_step

    world = World(tmp_path, prepare, checkpoint={"every_steps": 2, "background": False})
    assert await world.run() == 0
    assert world.began == ["", "step_000002"]
    assert sorted(world.history) == [f"train-{i:07d}-00" for i in range(24)]


async def test_too_many_deaths_from_one_checkpoint_end_the_run(tmp_path: Path) -> None:
    """Exit 5; the last line names rank, log and count; status.json has the same."""
    world = World(tmp_path, dies(9, 4))
    with pytest.raises(LearnerRankDied) as caught:
        await world.run()
    assert len(world.learners) == 3
    assert caught.value.exit_code == 5
    lines = str(caught.value).splitlines()
    assert lines[0] == "out of memory"
    assert lines[-1] == (
        "learner rank 0 (pid 7) was killed by SIGKILL, see logs/learner-0.log; given up after 2 restarts from step 2 "
        "without a newer checkpoint (learner.max_restarts = 2); --resume tries again"
    )
    assert (world.status["phase"], world.status["restarts"]) == ("failed", 2)
    assert world.status["error"] == str(caught.value)


async def test_a_newer_checkpoint_makes_the_count_begin_again(tmp_path: Path) -> None:
    """Long runs die more often than `learner.max_restarts`."""

    def prepare(number: int, learner: FakeLearner) -> None:
        dies(9, {1: 2, 2: 2, 3: 4, 4: 4, 5: 6, 6: 6}.get(number, 99))(number, learner)

    world = World(tmp_path, prepare)
    assert await world.run() == 0
    assert len(world.learners) == 7
    assert sorted(world.history) == [f"train-{i:07d}-00" for i in range(24)]


@pytest.mark.parametrize(
    "error",
    [NonFiniteLoss("nan"), AlignmentError("lengths"), PreflightError("no room"), EngineDied("gone")],
    ids=lambda error: type(error).__name__,
)
async def test_what_would_happen_again_is_not_tried_again(tmp_path: Path, error: FdError) -> None:
    """Nor is what no new learner can cure."""
    world = World(tmp_path, dies(9, 4, error))
    with pytest.raises(ExceptionGroup) as caught:
        await world.run()
    assert first_cause(caught.value) is error
    assert len(world.learners) == 1
    assert world.status["error"] == str(error)


async def test_a_step_that_takes_too_long_is_a_death(tmp_path: Path) -> None:
    """A rank that hangs is ended with its learner."""
    hung = LearnerError("gradient step 4 took longer than learner.step_timeout_s = 5 s; learner rank 1 hung")
    world = World(tmp_path, dies(1, 4, hung))
    assert await world.run() == 0
    assert any("learner.step_timeout_s = 5 s" in line and "anew" in line for line in world.console.lines)


async def test_a_learner_that_never_started_is_not_started_again(tmp_path: Path) -> None:
    """What keeps it from starting is there to be read at once."""

    def prepare(number: int, learner: FakeLearner) -> None:
        raise LearnerRankDied(DEATH)

    world = World(tmp_path, prepare)
    with pytest.raises(LearnerRankDied):
        await world.run()
    assert len(world.learners) == 1


async def test_a_death_after_a_request_to_stop_ends_the_run(tmp_path: Path) -> None:
    """Nobody waits for a start that only a checkpoint follows which is there already."""

    def prepare(number: int, learner: FakeLearner) -> None:
        def on_step(step: int) -> None:
            if step == 4:
                world.stop.request("SIGTERM")
                raise LearnerRankDied(DEATH)

        learner.on_step = on_step

    world = World(tmp_path, prepare)
    with pytest.raises((LearnerRankDied, ExceptionGroup)) as caught:
        await world.run()
    assert isinstance(first_cause(caught.value), LearnerRankDied)
    assert len(world.learners) == 1


async def test_a_signal_while_the_learner_starts_anew_leaves_at_once(tmp_path: Path) -> None:
    """There is no step to finish: 130, and the checkpoint is as it was."""

    def prepare(number: int, learner: FakeLearner) -> None:
        if number == 2:
            world.stop.request("SIGTERM")
        else:
            dies(1, 4)(number, learner)

    world = World(tmp_path, prepare)
    assert await world.run() == 130
    assert list(list_checkpoints(tmp_path / "checkpoints")) == [2]
    assert 4 not in world.learners[-1].batches


def groups() -> Iterator[tuple[BaseException, bool]]:
    died = LearnerRankDied("died")
    push = PushFailed("loading weights failed")
    push.__cause__ = LearnerError("sending took too long")
    yield died, True
    yield ExceptionGroup("", [ExceptionGroup("", [push]), died]), True
    yield PushFailed("the probe disagrees"), False
    yield ExceptionGroup("", [died, EngineDied("gone")]), False
    yield ExceptionGroup("", [died, NonFiniteLoss("nan")]), False
    yield BaseExceptionGroup("", [died, KeyboardInterrupt()]), False


@pytest.mark.parametrize(("error", "expected"), list(groups()))
def test_only_what_the_learner_alone_failed_by_is_curable(error: BaseException, expected: bool) -> None:
    """A push that fails because its sender did is the learner's failure, any other the engine's."""
    assert (curable(error) is not None) is expected


class Joined(FakeEngine):
    """Can be lost, and is in the learner's NCCL group from its first push on."""

    pids: list[int] = []  # noqa: RUF012

    async def watch(self) -> str:
        await anyio.sleep_forever()
        return ""

    def kill(self, reason: str) -> None:
        pass


class JoinedWorld(World):
    """Learners and supervised engines that are in one NCCL group from their first push on."""

    def __init__(self, run_dir: Path, breaks_at: int, cause: Exception) -> None:
        super().__init__(run_dir, dies(0, 0), policy={"push": "nccl"})
        self.engines: list[Joined] = []
        self.breaks_at, self.cause = breaks_at, cause

    @asynccontextmanager
    async def open_one(self) -> AsyncIterator[Any]:
        engine = self.bench.runner._engine = Joined()
        engine.on_push = self.receive
        self.engines.append(engine)
        yield engine

    def receive(self, version: int) -> None:
        self.pushed.append(version)
        if version == self.breaks_at and len(self.learners) == 1:
            raise PushFailed(f"push: loading weights failed: {self.cause}") from self.cause

    async def run(self) -> int:
        policy = self.bench.config.policy
        async with supervised(
            self.open_one, policy, stop_token_ids=[], log="vllm.log", on_event=lambda *_: None
        ) as engine:
            self.bench.engine = engine  # type: ignore[assignment]
            return await super().run()


@pytest.mark.parametrize(("breaks_at", "pushed"), [(0, [0, 0, 1, 2, 3]), (3, [0, 1, 2, 3, 2, 3])])
async def test_a_push_by_nccl_whose_sender_fails_costs_a_new_learner_and_a_new_engine(
    tmp_path: Path, breaks_at: int, pushed: list[int]
) -> None:
    """They make a group of their own; the engine waits for the weights of the checkpoint, nobody sends it the old."""
    world = JoinedWorld(tmp_path, breaks_at, LearnerError("sending took longer than policy.push_timeout_s"))
    assert await world.run() == 0
    assert (len(world.learners), len(world.engines)) == (2, 2)
    assert world.pushed[: len(pushed)] == pushed
    assert sorted(world.history) == [f"train-{i:07d}-00" for i in range(24)]


@pytest.mark.parametrize("breaks_at", [0, 3])
async def test_a_push_by_nccl_that_the_engine_fails_ends_the_run(tmp_path: Path, breaks_at: int) -> None:
    """The learner's group holds the dead workers for good: no engine starts in vain, and the line says what to do."""
    world = JoinedWorld(tmp_path, breaks_at, RuntimeError("no memory"))
    with pytest.raises(
        EngineDied, match=r'policy\.push = "nccl" .* resume the run.* loading weights failed: no memory'
    ):
        await world.run()
    assert (len(world.learners), len(world.engines)) == (1, 1)


async def test_calls_under_way_when_a_rank_dies_are_paid_once(tmp_path: Path) -> None:
    """They are answered and recorded before the next learner starts, and used by it."""

    def prepare(number: int, learner: FakeLearner) -> None:
        async def step(samples: list[TrainingSample], *, step: int) -> StepReport:
            if number == 1 and step == 2:
                while not world.bench.provider.sold["train-0000011-00"]:  # noqa: ASYNC110
                    await anyio.sleep(0.005)
                raise LearnerRankDied(DEATH)
            return await FakeLearner.step(learner, samples, step=step)

        learner.step = step  # type: ignore[method-assign]

    world = World(tmp_path, prepare)
    world.bench.provider.delay_s = 0.05
    assert await world.run() == 0
    assert world.began == ["", ""]
    assert set(world.bench.provider.sold.values()) == {1}
