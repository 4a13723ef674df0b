"""Who is where since when."""

from __future__ import annotations

from functools import reduce

import anyio
import pytest

from fd_async.config.schema import Data, Model, RunConfig
from fd_async.pipeline.board import ATTEMPT_STAGES, STAGES, Board, wait_table
from fd_async.telemetry.accounts import LEARNER
from fd_async.telemetry.observers import Observer, Observers

pytestmark = pytest.mark.anyio


async def test_the_wait_table_has_the_oldest_item_of_each_stage_and_what_bounds_its_wait() -> None:
    """An item that comes back to a stage is its newest."""
    board = Board()
    for item in ("a", "b", "c"):
        board.move(item, "generating")
    await anyio.sleep(0.06)
    board.move("a", "tools")
    board.move("a", "generating")
    board.move("step-1", "learning")
    board.move("b", "")
    rows = board.waits()
    assert [(row.stage, row.count, row.oldest) for row in rows] == [("generating", 2, "c"), ("learning", 1, "step-1")]
    assert rows[0].seconds >= 0.1 > rows[1].seconds
    table = wait_table(rows).splitlines()
    assert table[0].endswith("waits for vLLM (policy.generate_timeout_s)")
    assert table[1].endswith("waits for the learner's gradient step (learner.step_timeout_s)")
    assert "admission is full" in wait_table([])


async def test_the_deadline_of_every_stage_is_a_key_of_the_configuration() -> None:
    """Whoever reads the table can go and change it."""
    config = RunConfig(model=Model(path="m"), data=Data(train="t"))
    for stage in STAGES.values():
        assert reduce(getattr, stage.deadline.split("."), config) > 0  # type: ignore[arg-type]
    assert set(STAGES) == {*ATTEMPT_STAGES, *LEARNER, "reviving"} - {"other"}


async def test_reading_the_board_looks_at_one_item_per_stage() -> None:
    """10,000 items cost what ten do: the stages' items are never walked through."""

    class Unwalkable(dict):  # type: ignore[type-arg]
        looked = 0

        def items(self):
            def one_at_a_time():
                for pair in super(Unwalkable, self).items():
                    Unwalkable.looked += 1
                    yield pair

            return one_at_a_time()

        values = keys = None  # type: ignore[assignment]

    board = Board()
    board._stages = {stage: Unwalkable() for stage in STAGES}
    for index in range(10_000):
        board.move(f"a{index}", ATTEMPT_STAGES[index % 4])
    assert sum(row.count for row in board.waits()) == sum(board.counts().values()) == 10_000
    assert Unwalkable.looked == 4


async def test_seconds_go_to_what_learner_and_engine_do() -> None:
    """Of several stages at once the first of LEARNER counts; the engine is down whatever attempts seem to do."""
    board = Board()
    states = []
    for item, stage in [
        ("learner", "waiting"), ("a", "generating"), ("push", "pushing"), ("push", ""), ("learner", ""), ("a", "tools"),
        ("b", "generating"), ("engine", "reviving"), ("engine", ""), ("evaluation", "evaluating"),
    ]:  # fmt: skip
        board.move(item, stage)
        states.append((board.learner.state, board.engine.state))
    assert states == [
        ("waiting", "idle"), ("waiting", "generating"), ("pushing", "generating"), ("waiting", "generating"),
        ("other", "generating"), ("other", "idle"), ("other", "generating"), ("other", "down"), ("other", "generating"),
        ("evaluating", "generating"),
    ]  # fmt: skip


async def test_observers_hear_of_moves_and_not_of_standing_still() -> None:
    """One that raises is left out, and the board goes on."""
    heard = []

    class Broken(Observer):
        def moved(self, item: str, before: str, stage: str) -> None:
            heard.append("broken")
            raise ValueError("no")

    class Listener(Observer):
        def moved(self, item: str, before: str, stage: str) -> None:
            heard.append(f"{item}:{before}>{stage}")

    board = Board(Observers([Broken(), Listener()]))
    for stage in ("generating", "generating", "tools", "", ""):
        board.move("a", stage)
    assert heard == ["broken", "a:>generating", "a:generating>tools", "a:tools>"]
