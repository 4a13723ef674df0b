"""What the benchmark of kills finds: answers and attempts that a run had and lost."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import anyio
import msgspec
import pytest

from bench.crash_resume import failures
from bench.crashes.calls import RECORDED_S, Purchases, call_figures, count_calls
from bench.crashes.history import Continued, begun_attempts, check_continued, continued_figures
from bench.crashes.plans import PROMPT_IDS, plan
from bench.crashes.seller import purchases, serve, silence
from bench.crashes.standins import Buyer
from fd_async.data.ledger import open_ledger
from fd_async.types import PartialRollout, Rollout, Statement, Ticket, Verdict, VersionSpan

pytestmark = pytest.mark.anyio

TICKET = Ticket(ordinal=0, sample=0, purpose="train", statement=Statement(name="t", formal_statement="theorem t"))
KILL = 100.0
EARLY, LATE = KILL - RECORDED_S - 0.01, KILL - RECORDED_S + 0.01
KEPT, NOTHING = frozenset({"q"}), frozenset[str]()


def bought(delivered_at: float | None, times: int = 1) -> Purchases:
    return Purchases(sold=Counter({"q": times}), delivered_at={} if delivered_at is None else {"q": delivered_at})


@pytest.mark.parametrize(
    ("delivered_at", "killed_at", "recorded", "lost", "cut_off"),
    [
        (EARLY, KILL, NOTHING, 1, 0),
        (EARLY, KILL, KEPT, 0, 0),
        (LATE, KILL, NOTHING, 0, 1),
        (LATE, KILL, KEPT, 0, 0),
        (KILL + 0.01, KILL, NOTHING, 0, 1),
        (None, KILL, NOTHING, 0, 1),
        (LATE, None, NOTHING, 1, 0),
        (None, None, NOTHING, 1, 0),
        (None, None, KEPT, 0, 0),
    ],
)
def test_an_early_answer_that_the_ledger_lacks_is_lost_and_a_late_one_was_cut_off(
    delivered_at: float | None, killed_at: float | None, recorded: frozenset[str], lost: int, cut_off: int
) -> None:
    """A life that ended by itself has waited for what it paid."""
    calls = count_calls([bought(delivered_at)], [recorded], [killed_at])
    assert (calls.lost, calls.cut_off, calls.rebought) == (lost, cut_off, 0)
    assert failures(call_figures([calls])) == (["lost_answers"] if lost else [])


def test_a_lost_answer_is_found_though_the_next_life_buys_and_records_it() -> None:
    """At the end everything is there; only what stood in the ledger at the kill tells."""
    calls = count_calls([bought(EARLY), bought(KILL + 5)], [NOTHING, KEPT], [KILL, None])
    assert (calls.lost, calls.due, calls.cut_off, calls.rebought) == (1, 2, 0, 0)


def test_what_the_ledger_has_is_not_to_be_bought_again() -> None:
    """Nor is anything to be bought twice in one life."""
    again = count_calls([bought(EARLY), bought(KILL + 5, 2)], [KEPT, KEPT], [KILL, None])
    assert (again.rebought, again.lost) == (2, 0)


def make_rollout(ids: list[int] | None = None, version: int = 3) -> Rollout:
    """Return an attempt that ends after the first turn of its plan, or with other ids."""
    whole, end = plan(TICKET.id), plan(TICKET.id).turn_ends[0]
    return Rollout(
        id=TICKET.id, ordinal=0, sample=0, purpose="train", statement=TICKET.statement, prompt_ids=PROMPT_IDS,
        completion_ids=ids or whole.ids[:end], sampled_mask=[True] * end, logprobs=whole.logprobs[:end],
        spans=[VersionSpan(version, 0, 4), VersionSpan(5, 4, end)], turns=[], verdict=Verdict(kind="failed"),
        end_reason="stopped",
    )  # fmt: skip


def make_partial(length: int) -> PartialRollout:
    whole = plan(TICKET.id)
    spans = [VersionSpan(3, 0, min(length, 4))] + ([VersionSpan(5, 4, length)] if length > 4 else [])
    return PartialRollout(
        id=TICKET.id, ordinal=0, sample=0, admitted_version=3, prompt_ids=PROMPT_IDS,
        completion_ids=whole.ids[:length], logprobs=whole.logprobs[:length], spans=spans, turns=[],
    )  # fmt: skip


async def test_the_seller_tells_when_an_answer_was_delivered(tmp_path: Path) -> None:
    """After the sale, and before its buyer goes on for long; in silence it sells and delivers nothing."""
    socket, key = tmp_path / "seller.sock", f"question-of-{TICKET.id}"
    async with anyio.create_task_group() as tasks:
        await tasks.start(serve, tmp_path, socket)
        with anyio.fail_after(5):
            before = time.monotonic()
            await Buyer(socket, "run", 1).feedback(make_rollout())
            while not purchases(tmp_path, "run")[1].delivered_at:  # noqa: ASYNC110
                await anyio.sleep(0.005)
            after = time.monotonic()
        with silence(tmp_path, "run"), anyio.move_on_after(0.1) as unanswered:
            await Buyer(socket, "run", 1).feedback(make_rollout())
        tasks.cancel_scope.cancel()
    assert unanswered.cancelled_caught
    first, second = purchases(tmp_path, "run")
    assert not first.sold
    assert second.sold == {key: 2}
    assert before < second.delivered_at[key] < after


async def keep(ledger: Path, rollout: Rollout | None) -> None:
    """Write the ledger of a run that ended with an attempt, or without it."""
    async with open_ledger(ledger) as opened:
        if rollout is not None:
            await opened.put_rollout(rollout, "queued", admitted_version=3, step=None)


async def test_an_attempt_that_goes_on_proves_the_tokens_on_record(tmp_path: Path) -> None:
    """Those of its longest record; two kills do not count them twice."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await ledger.put_partials([make_partial(3)])
    first = begun_attempts(tmp_path)
    await keep(tmp_path / "ledger.db", make_rollout())
    continued = check_continued(tmp_path, [first, [make_partial(5)], []])
    assert continued == Continued(attempts=1, tokens=5, discarded=0, other=[])
    assert begun_attempts(tmp_path) == []


@pytest.mark.parametrize(
    ("ended", "problem"),
    [
        (None, "never finished"),
        (make_rollout(ids=[7] * plan(TICKET.id).turn_ends[0]), "ids"),
        (msgspec.structs.replace(make_rollout(), logprobs=[-9.0] * plan(TICKET.id).turn_ends[0]), "log-probs"),
        (make_rollout(version=4), "weights"),
    ],
)
async def test_an_attempt_that_was_begun_anew_is_found(tmp_path: Path, ended: Rollout | None, problem: str) -> None:
    """Other ids, other log-probs, other weights, or no end at all."""
    await keep(tmp_path / "ledger.db", ended)
    continued = check_continued(tmp_path, [[make_partial(5)]])
    assert (continued.attempts, continued.tokens, len(continued.other)) == (0, 0, 1)
    assert problem in continued.other[0]


async def test_an_attempt_whose_tokens_were_given_up_is_counted_apart(tmp_path: Path) -> None:
    """The ledger names the cause; a benchmark that changes no configuration fails by it."""
    async with open_ledger(tmp_path / "ledger.db") as ledger:
        await ledger.put_partials([make_partial(5)])
        await ledger.discard_partial(TICKET.id, "config_changed")
    await keep(tmp_path / "ledger.db", make_rollout(version=4))
    continued = check_continued(tmp_path, [[make_partial(5)]])
    assert continued == Continued(attempts=0, tokens=0, discarded=1, other=[])
    assert failures(continued_figures([continued])) == ["discarded_attempts"]
