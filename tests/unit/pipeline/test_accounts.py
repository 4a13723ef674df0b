"""The accounts of a run close: tokens, dollars and seconds."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import anyio
import msgspec
import pytest

from fd_async.config.schema import FeedbackTable, Policy
from fd_async.data.ledger import open_ledger
from fd_async.data.totals import Totals, read_totals
from fd_async.errors import FeedbackRejected, LedgerError
from fd_async.pipeline.accounts import num_slots
from fd_async.pipeline.observing import open_observers
from fd_async.telemetry.accounts import ENGINE, LEARNER
from fd_async.telemetry.metrics import is_documented
from fd_async.telemetry.observers import Observer, Observers
from fd_async.telemetry.sinks import read_rows
from fd_async.types import Feedback, PartialRollout, Rollout, VersionSpan
from tests.fakes.control_plane import Bench, make_config
from tests.fakes.run_folder import make_attempt

pytestmark = pytest.mark.anyio


class Keeper(Observer):
    """Remembers rows and the last snapshot."""

    def __init__(self) -> None:
        self.rows: list[dict] = []
        self.last: dict = {}

    def row(self, row) -> None:
        self.rows.append(dict(row))

    def snapshot(self, snapshot) -> None:
        self.last = dict(snapshot)


async def test_the_seconds_of_learner_and_engine_sum_to_the_wall_time_of_every_row(tmp_path: Path) -> None:
    """Rows follow each other without a gap, and shares are between 0 and 1."""
    bench, keeper = Bench(make_config(), tmp_path), Keeper()
    bench.observers = Observers([keeper])
    bench.runner.duration_s = lambda ticket: 0.02
    assert await bench.run() == 0
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert len(keeper.rows) == len(rows) == 6
    for before, row in itertools.pairwise(rows):
        wall_s = row["time/elapsed_s"] - before["time/elapsed_s"]
        learner = [row[f"learner/{state}_s"] for state in LEARNER]
        engine = [row[f"engine/{state}_s"] for state in ENGINE]
        assert sum(learner) == pytest.approx(sum(engine), abs=1e-6)
        assert sum(learner) == pytest.approx(wall_s, abs=0.05)
        assert min(*learner, *engine) > -1e-6
        assert row["learner/waiting_s"] == pytest.approx(row["time/wait_for_batch_s"], abs=0.01)
        assert all(0 <= row[key] <= 1 for key in ("idle/learner", "idle/engine", "idle/engine_slots", "idle/verifier"))
    assert all(is_documented(key) for row in rows for key in row)
    status = json.loads((tmp_path / "status.json").read_text())
    seconds = status["accounts"]["seconds"]
    assert sum(seconds["learner"].values()) == pytest.approx(sum(seconds["engine"].values()), abs=0.01)
    assert sum(seconds["learner"].values()) == pytest.approx(status["elapsed_s"], abs=0.15)


async def test_tokens_and_dollars_close_on_every_row_with_drops_and_waste(tmp_path: Path) -> None:
    """spent = trained + queued + dropped + wasted + unrecorded, and nothing is unrecorded when all calls have ended."""
    bench = Bench(make_config(), tmp_path)

    def refuse(rollout: Rollout) -> None:
        if rollout.ordinal % 4 == 1:
            error = FeedbackRejected("no")
            error.usd = 0.01  # what the fake charges for every call
            raise error

    bench.provider.on_feedback = refuse
    assert await bench.run() == 0
    for row in read_rows(tmp_path / "metrics.jsonl"):
        assert row["tokens/generated"] == row["tokens/trained"] + row["tokens/queued"] + row["tokens/dropped"]
        parts = [row[f"usd/{name}"] for name in ("trained", "queued", "dropped", "wasted", "unrecorded")]
        assert sum(parts) == pytest.approx(row["feedback/usd"])
        assert min(parts) >= -1e-9
        assert row["disk/ledger_mib"] > 0
        assert row["tokens/under_way"] == 0
    usd = read_totals(tmp_path / "ledger.db").usd
    assert sum(usd.values()) == pytest.approx(bench.provider.statistics()["usd"])
    assert usd["trained"] == pytest.approx(0.24)
    assert usd["wasted:feedback_rejected"] > 0
    accounts = json.loads((tmp_path / "status.json").read_text())["accounts"]
    tokens = accounts["tokens"]
    assert tokens.pop("generated") + tokens.pop("under_way") == sum(tokens.values())
    assert sum(accounts["usd"].values()) == pytest.approx(2 * accounts["usd"]["spent"])


async def test_an_attempt_that_begins_anew_leaves_tokens_and_is_not_dropped(tmp_path: Path) -> None:
    """What it had sampled is dropped by name; the attempt itself ends once, as any other, in the next process too."""
    begun = PartialRollout(
        id="train-0000000-00", ordinal=0, sample=0, admitted_version=0, prompt_ids=[99], completion_ids=[5, 6],
        logprobs=[-1.0, -1.0], spans=[VersionSpan(0, 0, 2)], turns=[],
    )  # fmt: skip
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await ledger.put_partials([begun])

    async def never(*_: object) -> bool:
        return False

    for step, max_steps in ((0, 4), (4, 6)):
        bench = Bench(make_config(run={"max_steps": max_steps}), tmp_path)
        bench.runner.can_continue = never  # type: ignore[attr-defined]
        assert await bench.run(step=step, resume=step > 0) == 0
        status = json.loads((tmp_path / "status.json").read_text())
        tokens = status["accounts"]["tokens"]
        assert (tokens["dropped:config_changed"], status["dropped"]) == (2, {})
        assert tokens["generated"] == sum(tokens.values()) - tokens["generated"] - tokens["under_way"]
        assert read_rows(tmp_path / "metrics.jsonl")[-1]["tokens/dropped"] == 2


async def test_money_of_an_attempt_follows_its_outcome(tmp_path: Path) -> None:
    """Queued, then trained or dropped; tokens of attempts under way are told apart."""
    path = tmp_path / "ledger.db"
    async with open_ledger(path) as ledger:
        assert read_totals(path).usd == {}
        for index in range(3):
            rollout, feedback, _ = make_attempt(index)
            await ledger.put_rollout(rollout, "queued", admitted_version=0, step=None)
            assert feedback is not None
            await ledger.put_feedback(msgspec.structs.replace(feedback, usd=0.5))
            if index == 0:
                await ledger.put_batch(1, [rollout.id], {})
            elif index == 1:
                await ledger.drop(rollout.id, "group_too_small")
        await ledger.put_spend("refused_twice", 0.25)
        await ledger.put_feedback(Feedback(rollout_id="nobody", text="", provider="openai", usd=0.125))
    assert read_totals(path).usd == {
        "trained": 0.5,
        "dropped:group_too_small": 0.5,
        "queued": 0.5,
        "wasted:refused_twice": 0.25,
        "wasted:no_attempt": 0.125,
    }


async def test_an_engine_that_does_not_serve_is_on_the_board_and_down_in_the_accounts(tmp_path: Path) -> None:
    """The wait table names it while attempts seem to generate."""
    bench = Bench(make_config(), tmp_path)
    async with bench.controller() as controller:
        accounts, board, statistics = controller._training.accounts, bench.state.board, bench.engine.statistics
        bench.engine.statistics = lambda: {**statistics(), "serving": 0.0}  # type: ignore[method-assign]
        board.move("a", "generating")
        accounts.snapshot()
        assert [(row.stage, row.oldest) for row in board.waits()] == [("generating", "a"), ("reviving", "engine")]
        await anyio.sleep(0.02)
        bench.engine.statistics = statistics  # type: ignore[method-assign]
        assert accounts.snapshot()["accounts"]["seconds"]["engine"]["down"] > 0
        assert board.engine.state == "generating"


def test_slots_are_those_of_all_engines_and_free_feedback_has_none() -> None:
    """Servers count as engines."""
    config = make_config()
    local = msgspec.structs.replace(config, policy=Policy(max_num_seqs=8, data_parallel_size=3))
    fleet = Policy(engine="servers", servers=["a", "b"], max_num_seqs=8)
    remote = msgspec.structs.replace(config, policy=fleet, feedback=FeedbackTable(type="anthropic", concurrency=7))
    free = msgspec.structs.replace(local, feedback=FeedbackTable(type="constant"))
    assert num_slots(free) == {"engine_slots": 24, "verifier": config.verifier.workers}
    assert num_slots(remote) == {"engine_slots": 16, "verifier": config.verifier.workers, "feedback": 7}


async def test_a_run_is_traced_from_its_first_wait_to_its_last_push(tmp_path: Path) -> None:
    """The controller's moves, steps and counters are in trace.json."""
    config = make_config()
    bench = Bench(config, tmp_path)
    async with open_observers(config, tmp_path) as bench.observers:
        assert await bench.run() == 0
    events = json.loads((tmp_path / "trace.json").read_text())
    names = [event["name"] for event in events if event["ph"] == "B"]
    assert names.count("learning") == 6
    assert names.count("pushing") == 2 * 8  # at the learner and at the engine; staged and pushed before the first step
    assert {f"train-{i:07d}-00" for i in range(24)} <= set(names)
    assert names.count("feedback") >= 24
    assert {event["name"] for event in events if event["ph"] == "C"} >= {"ready", "outstanding", "items generating"}
    assert sum(event["ph"] == "B" for event in events) == sum(event["ph"] == "E" for event in events)


async def test_a_row_tells_of_an_outage_that_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the provider is down no batch fills and no row is written: the row after it must tell."""
    bench = Bench(make_config(), tmp_path)
    told = bench.provider.statistics
    monkeypatch.setattr(bench.provider, "statistics", lambda: {**told(), "outage_s": 0.0, "outages_s": 7.0})
    assert await bench.run() == 0
    assert {row["feedback/outage_s"] for row in read_rows(tmp_path / "metrics.jsonl")} == {7.0}


async def test_a_ledger_that_takes_long_to_sum_does_not_hold_up_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long run has a million attempts; dollars close all the same, and what the sums miss is unrecorded."""
    reads: list[Path] = []

    def slow(path: Path) -> Totals:
        reads.append(path)
        time.sleep(0.02)
        return read_totals(path)

    monkeypatch.setattr("fd_async.pipeline.accounts._BRIEF_S", 0.01)
    monkeypatch.setattr("fd_async.pipeline.accounts.read_totals", slow)
    bench = Bench(make_config(), tmp_path)
    assert await bench.run() == 0
    assert len(reads) < 6
    last = read_rows(tmp_path / "metrics.jsonl")[-1]
    parts = ("trained", "queued", "dropped", "wasted", "unrecorded")
    assert sum(last[f"usd/{part}"] for part in parts) == pytest.approx(last["feedback/usd"])


async def test_sums_that_cannot_be_read_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes the ledger ends the run if it has to; until then the dollars are unrecorded, and close."""

    def fail(path: Path) -> Totals:
        raise LedgerError(f"{path}: cannot read the ledger: locked")

    monkeypatch.setattr("fd_async.pipeline.accounts.read_totals", fail)
    bench = Bench(make_config(feedback={"outage": "fallback"}), tmp_path)
    told = bench.provider.statistics
    monkeypatch.setattr(bench.provider, "statistics", lambda: {**told(), "fallback_usd": 0.02})
    assert await bench.run() == 0
    last = read_rows(tmp_path / "metrics.jsonl")[-1]
    assert last["usd/unrecorded"] == pytest.approx(last["feedback/usd"])
    assert last["feedback/fallback_usd"] == 0.02
