"""The rules of who is served next, as pure data: short first, fair between callers, nobody waits for ever."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_async.verifier.repl.schedule import AGE_SHARE, USES_BEFORE_TURN, Costs, FairQueue, Ticket, choose_turn

PLACES = ("a", "b", "c")


def serve(queue: FairQueue[int], ready: tuple[str, ...] = PLACES) -> Ticket[int]:
    ticket = queue.choose(ready)
    assert ticket is not None
    queue.grant(ticket)
    return ticket


def test_a_check_seen_before_is_predicted_by_its_own_seconds_and_a_new_one_by_all() -> None:
    """Later seconds count more, and an unknown key costs what an average check costs."""
    costs = Costs()
    for _ in range(100):
        costs.observe("short", 0.1)
        costs.observe("long", 60.0)
    assert costs.predict("short") == pytest.approx(0.1, abs=0.05)
    assert costs.predict("long") == pytest.approx(60.0, rel=0.01)
    assert 10.0 < costs.predict("new") < 50.0
    for _ in range(10):
        costs.observe("long", 1.0)
    assert costs.predict("long") < 2.0


def test_the_record_of_costs_is_bounded_and_forgets_the_oldest() -> None:
    """Memory does not grow with the data set."""
    costs = Costs(max_keys=10)
    for number in range(1000):
        costs.observe(str(number), 50.0 if number == 0 else 1.0)
    assert costs.predict("0") < 5.0
    assert len(costs._means) == 10


def test_short_checks_pass_long_ones() -> None:
    """Of checks that wait at the same time, most short ones go before the long one."""
    queue: FairQueue[int] = FairQueue()
    queue.add(-1, "a", "slow", 60.0)
    for number in range(20):
        queue.add(number, "a", f"quick{number}", 0.5)
    order = [serve(queue).item for _ in range(21)]
    assert order[0] == 0  # by tag
    assert order.index(-1) <= 2  # and then the oldest has its share, once
    queue.add(-1, "a", "slow", 60.0)
    for number in range(20):
        queue.add(number, "a", f"quick{number}", 0.5)
    queue._credit = -100.0
    assert [serve(queue).item for _ in range(21)][-1] == -1


def test_a_callers_thousand_checks_do_not_delay_anothers_single_one() -> None:
    """The late, fast one is served after at most one that came by age."""
    queue: FairQueue[int] = FairQueue()
    for number in range(1000):
        queue.add(number, "a", "greedy", 60.0)
    for _ in range(10):
        serve(queue)
    queue.add(-1, "a", "modest", 0.4)
    assert -1 in [serve(queue).item for _ in range(2)]


def test_what_proves_to_be_long_while_it_waits_stands_further_back() -> None:
    """Checks of one statement come together; the first of them that runs tells about the others."""
    costs = dict.fromkeys(range(10), 1.0)
    queue: FairQueue[int] = FairQueue(costs.__getitem__)
    for number in range(10):
        queue.add(number, "a", str(number), 1.0)
    costs |= dict.fromkeys(range(5), 60.0)
    queue._credit = -1000.0
    assert {serve(queue).item for _ in range(5)} == set(range(5, 10))
    assert {serve(queue).item for _ in range(5)} == set(range(5))


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0.01, 60.0), st.integers(0, 3)), max_size=150), st.randoms())
@settings(max_examples=150, deadline=None)
def test_nobody_waits_longer_than_the_bound(arrivals: list[tuple[int, float, int]], rng: random.Random) -> None:
    """Whatever comes later, also the set aside: (older work + own + longest) / AGE_SHARE seconds, then it is served."""
    queue: FairQueue[int] = FairQueue()
    costs: dict[int, float] = {}
    latest: dict[int, float] = {}
    granted, longest = 0.0, 60.0

    def serve_one() -> None:
        nonlocal granted
        ticket = serve(queue)
        assert granted <= latest.pop(ticket.item) + 1e-6
        granted += costs.pop(ticket.item)

    for number, (caller, cost, num_served) in enumerate(arrivals):
        queue.add(number, rng.choice(PLACES), str(caller), cost, returns=rng.random() < 0.2)
        costs[number] = cost
        latest[number] = granted + (sum(costs.values()) + longest) / AGE_SHARE
        for _ in range(min(num_served, len(queue))):
            serve_one()
    while queue:
        serve_one()
    assert queue.num_callers == 0
    assert queue.places() == {}


@given(st.lists(st.sampled_from(["add", "leave", "serve", "settle"]), max_size=300), st.randoms())
@settings(max_examples=100, deadline=None)
def test_everybody_is_served_or_left_exactly_once(steps: list[str], rng: random.Random) -> None:
    """The queue agrees with a plain list, whatever the order of events, and forgets idle callers."""
    queue: FairQueue[int] = FairQueue()
    waiting: dict[int, Ticket[int]] = {}
    for number, step in enumerate(steps):
        if step == "add":
            place, caller = rng.choice(PLACES), rng.choice("xyz")
            waiting[number] = queue.add(number, place, caller, rng.uniform(0.01, 60))
        elif step == "leave" and waiting:
            queue.leave(waiting.pop(rng.choice(list(waiting))))
        elif step in ("serve", "settle"):
            ready = rng.sample(PLACES, rng.randint(1, 3))
            ticket = queue.choose(ready)
            fitting = [other for other in waiting.values() if other.place in ready]
            assert (ticket is None) == (not fitting)
            if ticket is not None:
                queue.grant(ticket)
                assert waiting.pop(ticket.item) is ticket
                if step == "settle":
                    queue.settle(ticket, rng.uniform(0, 60))
        assert len(queue) == len(waiting)
        assert queue.num_callers == len({ticket.caller for ticket in waiting.values()})
        assert {place: queue.waiting(place) for place in PLACES} == {
            place: sum(ticket.place == place for ticket in waiting.values()) for place in PLACES
        }


def test_those_that_left_take_no_memory() -> None:
    """A hundred thousand cancelled waiters beside one that stays leave nothing behind."""
    queue: FairQueue[int] = FairQueue()
    queue.add(-1, "a", "stays", 1.0)
    for number in range(100_000):
        queue.leave(queue.add(number, "a", "leaves", 1.0))
    line = queue._lines["a"]
    assert len(line._by_tag) < 100
    assert len(line._by_age) < 100


def test_a_header_without_a_process_gets_one_but_not_at_once_from_a_busy_one() -> None:
    """A process serves its own waiters a while first; the longest waiting header comes before others."""
    waiting = {"rare": 1, "own": 500, "rarer": 1}
    assert choose_turn("own", USES_BEFORE_TURN - 1, waiting, {"own": 1}, has_right=True) is None
    assert choose_turn("own", USES_BEFORE_TURN, waiting, {"own": 1}, has_right=True) == "rare"
    assert choose_turn("own", 0, {"rare": 1}, {"own": 1}, has_right=False) == "rare"
    assert choose_turn("own", 0, {"rare": 1}, {"own": 1, "rare": 1}, has_right=False) is None


def test_the_last_process_of_a_header_stays_unless_a_right_to_run_lies_idle() -> None:
    """Rare headers keep their process while spares suffice, and give it up when the common one lacks processes."""
    waiting, processes = {"common": 500}, {"common": 30, "own": 1}
    assert choose_turn("own", 1, waiting, processes, has_right=False) is None
    assert choose_turn("own", 1, waiting, processes, has_right=True) == "common"


@given(st.lists(st.integers(1, 500), min_size=2, max_size=5), st.integers(5, 40), st.integers(0, 4))
@settings(max_examples=150, deadline=None)
def test_turning_ends_and_leaves_no_header_without_a_process(crowds: list[int], num: int, first: int) -> None:
    """With constant demand processes move a bounded number of times, and then serve every header."""
    waiting = {f"h{index}": crowd for index, crowd in enumerate(crowds)}
    processes = dict.fromkeys(waiting, 0)
    processes[f"h{first % len(crowds)}"] = num
    turns = 0
    while turns <= 2 * num:
        moves = [
            (header, turn)
            for header, count in processes.items()
            if count and (turn := choose_turn(header, USES_BEFORE_TURN, waiting, processes, has_right=False))
        ]
        if not moves:
            break
        processes[moves[0][0]] -= 1
        processes[moves[0][1]] += 1
        turns += 1
    assert turns <= 2 * num
    assert all(processes.values())
