"""The attempts of a suite: which, in which order, how many at once, and what is tried again."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from fd_async.errors import VerifierError, first_cause
from fd_async.evaluation import Outcome, SuiteResult, evaluate_suite
from fd_async.evaluation.suite import ticket_seed
from fd_async.types import Rollout, Statement, Ticket, Verdict

pytestmark = pytest.mark.anyio


class Runner:
    """Keeps what it was asked; every third statement is solved."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.seeds: dict[str, set[int | None]] = {}
        self.failures: dict[str, str] = {}
        self.under_way = self.most_under_way = 0

    async def run(self, ticket: Ticket, *, seed: int | None = None, **_: Any) -> Rollout:
        self.asked.append(ticket.id)
        self.seeds.setdefault(ticket.id, set()).add(seed)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        self.under_way -= 1
        failure = self.failures.get(ticket.id, "")
        kind: Any = "infrastructure" if failure else "proved" if ticket.ordinal % 3 == 0 else "failed"
        return Rollout(
            id=ticket.id, ordinal=ticket.ordinal, sample=ticket.sample, purpose="eval", statement=ticket.statement,
            prompt_ids=[1], completion_ids=[2, 3], sampled_mask=[True, True], logprobs=[0.0, 0.0], spans=[], turns=[],
            verdict=Verdict(kind=kind, reason="why"), end_reason="failed" if failure else "stopped", failure=failure,
        )  # fmt: skip

    async def audit(self, rollout: Rollout) -> Rollout:
        return rollout


async def evaluate(runner: Runner, size: int, **options: Any) -> tuple[SuiteResult, list[str]]:
    recorded: list[str] = []

    async def record(rollout: Rollout) -> None:
        recorded.append(rollout.id)

    settings: dict[str, Any] = {"k": [1], "samples": 1, "temperature": 1.0, "concurrency": 4, "record": record}
    statements = [Statement(name=f"t{i}", formal_statement="theorem t : True :=") for i in range(size)]
    result = await evaluate_suite("s", statements, runner=runner, **(settings | options))  # type: ignore[arg-type]
    return result, recorded


async def test_every_statement_gets_its_first_sample_before_any_gets_its_second() -> None:
    """What an evaluation that is broken off has seen is a sample of the whole suite."""
    runner = Runner()
    result, recorded = await evaluate(runner, 5, samples=3, concurrency=1)
    assert [name.rsplit("-", 2)[1:] for name in runner.asked] == [
        [f"{ordinal:07d}", f"{sample:02d}"] for sample in range(3) for ordinal in range(5)
    ]
    assert sorted(recorded) == sorted(runner.asked)
    assert result.counts == {"t0": (3, 3), "t1": (3, 0), "t2": (3, 0), "t3": (3, 3), "t4": (3, 0)}
    assert result.response_tokens == 2.0


async def test_a_suite_of_100000_statements_takes_the_room_of_those_under_way() -> None:
    """Tickets are made as they are needed; no more attempts sample at once than were allowed."""
    runner = Runner()
    tasks: list[int] = []

    async def record(_: Rollout) -> None:
        tasks.append(len(asyncio.all_tasks()) if not len(tasks) % 100 else 0)

    known = {(ordinal, 0): Outcome(ordinal % 3 == 0, 2) for ordinal in range(95_000)}
    result, _ = await evaluate(runner, 100_000, concurrency=16, record=record, known=known)
    assert len(runner.asked) == len(tasks) == 5000
    assert 1 < runner.most_under_way <= 16
    assert max(tasks) < 2 * 16 + 10
    found = result.pass_at[1]
    assert found is not None
    assert found.value == pytest.approx(33334 / 100_000)


async def test_an_attempt_that_failed_is_tried_once_more_from_the_same_seed() -> None:
    """Then it counts apart. What is wrong with the statement itself is not tried again."""
    runner = Runner()
    runner.failures = {"eval-s-0000000-00": "engine", "eval-s-0000001-00": "prompt_too_long"}
    result, recorded = await evaluate(runner, 4, seed=1)
    assert Counter(runner.asked) == Counter(
        {"eval-s-0000000-00": 2, "eval-s-0000001-00": 1, "eval-s-0000002-00": 1, "eval-s-0000003-00": 1}
    )
    assert len(recorded) == 4
    assert result.failures == {"engine": 1, "prompt_too_long": 1}
    assert (result.num_judged, result.num_usable(1)) == (2, 2)
    assert [len(seeds) for seeds in runner.seeds.values()] == [1, 1, 1, 1]


async def test_seeds_belong_to_tickets() -> None:
    """Different for every ticket and every run seed, and the same in every process; none where none was given."""
    runner, unseeded = Runner(), Runner()
    await evaluate(runner, 50, samples=4, seed=0)
    seeds = {name: next(iter(seeds)) for name, seeds in runner.seeds.items()}
    assert len(set(seeds.values())) == 200
    assert seeds["eval-s-0000007-01"] == ticket_seed(0, "eval-s-0000007-01") == 8403872218699087403
    assert ticket_seed(1, "eval-s-0000007-01") != seeds["eval-s-0000007-01"]
    assert all(seed is not None and 0 <= seed < 2**63 for seed in seeds.values())
    await evaluate(unseeded, 1)
    assert unseeded.seeds == {"eval-s-0000000-00": {None}}


async def test_what_is_known_is_not_asked_again_and_counts() -> None:
    """But for samples beyond those that were asked for, which wait for a call that asks for them."""
    runner = Runner()
    known = {
        (0, 0): Outcome(False, 9),
        (1, 0): Outcome(True, 9),
        (2, 0): Outcome(False, 9, "engine"),
        (0, 5): Outcome(True, 9),
    }
    result, _ = await evaluate(runner, 4, known=known)
    assert runner.asked == ["eval-s-0000003-00"]
    assert result.counts == {"t0": (1, 0), "t1": (1, 1), "t2": (0, 0), "t3": (1, 1)}
    assert result.failures == {"engine": 1}


async def test_all_attempts_failed_is_no_pass_rate() -> None:
    """An error that names the last cause, not a 0."""
    runner = Runner()
    runner.failures = {f"eval-s-000000{i}-00": "timeout" for i in range(3)}
    with pytest.raises((VerifierError, BaseExceptionGroup)) as caught:
        await evaluate(runner, 3)
    assert str(first_cause(caught.value)).endswith(
        "all 3 evaluation attempts of s failed, none was judged; last cause timeout: why"
    )


async def test_a_k_without_enough_verdicts_is_none_and_never_zero() -> None:
    """With one of two samples lost everywhere there is a pass@1 and no pass@2."""
    runner = Runner()
    runner.failures = {f"eval-s-000000{i}-01": "engine" for i in range(3)}
    result, _ = await evaluate(runner, 3, samples=2, k=[1, 2])
    assert result.pass_at[2] is None
    assert result.metrics()["eval/s/pass@2"] is None
    assert result.metrics()["eval/s/pass@1"] == pytest.approx(1 / 3)
    assert result.metrics()["eval/s/failed"] == 3
