"""Who is served next: plain data structures without clock, I/O or processes.

Self-clocked fair queueing. A waiter's tag is the virtual time at its arrival, or the tag of its caller's last waiter
when that is later, plus the seconds that its check is predicted to take; the smallest tag goes first, and virtual time
is the tag that went last. So short checks pass long ones, and a caller with a thousand checks waits behind itself, not
before others. A prediction that has grown since the arrival counts when its ticket comes to the front.

`AGE_SHARE` of the granted seconds goes to whoever waits longest, whatever its tag: a waiter with C seconds of work
before it (its own included) is served before (C + longest check) / AGE_SHARE seconds are granted.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

AGE_SHARE = 0.25
USES_BEFORE_TURN = 16
_LEAST_COST_S = 0.01
_MUCH_LONGER = 1.5
_MAX_KEYS = 20_000
_KEY_WEIGHT = 0.4
_ALL_WEIGHT = 0.02
_T = TypeVar("_T")


class Costs:
    """Predicts the seconds of a check from earlier ones with the same key, else from all."""

    def __init__(self, max_keys: int = _MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._means: OrderedDict[str, float] = OrderedDict()
        self._all = 1.0
        self._num_seen = 0

    def predict(self, key: str) -> float:
        """Return seconds, never zero."""
        return max(_LEAST_COST_S, self._means.get(key, self._all))

    def observe(self, key: str, seconds: float) -> None:
        """Learn from a finished check; one that timed out counts with the seconds that it ran."""
        if key:
            mean = self._means.pop(key, self._all)
            self._means[key] = mean + _KEY_WEIGHT * (seconds - mean)
            if len(self._means) > self._max_keys:
                self._means.popitem(last=False)
        self._num_seen += 1
        self._all += max(_ALL_WEIGHT, 1.0 / self._num_seen) * (seconds - self._all)


@dataclass(eq=False, slots=True)
class Ticket(Generic[_T]):
    """One waiter. `place` is what it needs: a header that some process has loaded, or one certain process."""

    item: _T
    place: Hashable
    caller: str
    cost: float
    tag: float
    number: int
    is_waiting: bool = True
    by_age: bool = False


class _Line(Generic[_T]):
    """The waiters for one place, by tag and by age; those that left are dropped when they come to the front."""

    __slots__ = ("_by_age", "_by_tag", "num_waiting")

    def __init__(self) -> None:
        self._by_tag: list[tuple[float, int, Ticket[_T]]] = []
        self._by_age: deque[Ticket[_T]] = deque()
        self.num_waiting = 0

    def add(self, ticket: Ticket[_T]) -> None:
        self.num_waiting += 1
        heapq.heappush(self._by_tag, (ticket.tag, ticket.number, ticket))
        self._by_age.append(ticket)

    def leave(self) -> None:
        self.num_waiting -= 1
        limit = 2 * self.num_waiting + 32
        if len(self._by_tag) > limit:
            self._by_tag = [entry for entry in self._by_tag if entry[2].is_waiting]
            heapq.heapify(self._by_tag)
        if len(self._by_age) > limit:
            self._by_age = deque(ticket for ticket in self._by_age if ticket.is_waiting)

    def first(self) -> Ticket[_T]:
        while not self._by_tag[0][2].is_waiting:
            heapq.heappop(self._by_tag)
        return self._by_tag[0][2]

    def put_back(self, ticket: Ticket[_T]) -> None:
        """Give the first one its place anew, because its tag has grown."""
        heapq.heapreplace(self._by_tag, (ticket.tag, ticket.number, ticket))

    def oldest(self) -> Ticket[_T]:
        while not self._by_age[0].is_waiting:
            self._by_age.popleft()
        return self._by_age[0]

    def __iter__(self) -> Iterator[Ticket[_T]]:
        return (ticket for ticket in self._by_age if ticket.is_waiting)


class FairQueue(Generic[_T]):
    """Waiters of all places. Adding, choosing and leaving cost O(log waiters) each, apart from the places asked for."""

    def __init__(self, predict: Callable[[_T], float] | None = None) -> None:
        self._predict = predict
        self._lines: dict[Hashable, _Line[_T]] = {}
        self._callers: dict[str, tuple[float, int]] = {}
        self._now = 0.0
        self._credit = 0.0
        self._count = 0
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    @property
    def num_callers(self) -> int:
        """Callers that are remembered: those that have a waiter."""
        return len(self._callers)

    def waiting(self, place: Hashable) -> int:
        """Return how many wait for this place."""
        line = self._lines.get(place)
        return 0 if line is None else line.num_waiting

    def places(self) -> dict[Hashable, int]:
        """Return how many wait for each place; the place that was asked for first comes first."""
        return {place: line.num_waiting for place, line in self._lines.items()}

    def add(self, item: _T, place: Hashable, caller: str, cost: float, *, returns: bool = False) -> Ticket[_T]:
        """Let an item wait.

        Args:
            item: What waits.
            place: What it waits for.
            caller: For whom.
            cost: Predicted seconds.
            returns: It was served for a while and waits for the rest: it does not stand behind its caller's others.
        """
        last, num_own = self._callers.get(caller, (self._now, 0))
        tag = (self._now if returns else max(self._now, last)) + cost
        self._callers[caller] = (last if returns else tag, num_own + 1)
        self._count += 1
        ticket = Ticket(item, place, caller, cost, tag, self._count)
        self._lines.setdefault(place, _Line()).add(ticket)
        self._num_waiting += 1
        return ticket

    def choose(self, ready: Iterable[Hashable]) -> Ticket[_T] | None:
        """Return who is next among the waiters for places that are ready, and leave it where it is."""
        lines = [line for line in map(self._lines.get, ready) if line is not None]
        if not lines:
            return None
        oldest = min((line.oldest() for line in lines), key=lambda ticket: ticket.number)
        if self._credit > 0.0:
            chosen = oldest
        else:
            chosen = min(map(self._first, lines), key=lambda ticket: (ticket.tag, ticket.number))
        chosen.by_age = chosen is oldest
        return chosen

    def _first(self, line: _Line[_T]) -> Ticket[_T]:
        """Return the first by tag; what is now known to take much longer than when it came stands further back."""
        while True:
            ticket = line.first()
            cost = 0.0 if self._predict is None else self._predict(ticket.item)
            if cost <= _MUCH_LONGER * ticket.cost:
                return ticket
            ticket.tag += cost - ticket.cost
            ticket.cost = cost
            line.put_back(ticket)

    def grant(self, ticket: Ticket[_T], *, was_chosen: bool = True) -> None:
        """Take out a ticket; one that was chosen lets virtual time go on, any other would take it past its waiters."""
        if was_chosen and ticket is self._lines[ticket.place].first():
            self._now = max(self._now, ticket.tag)
        self._credit += AGE_SHARE * ticket.cost - (ticket.cost if ticket.by_age else 0.0)
        self.leave(ticket)

    def settle(self, ticket: Ticket[_T], seconds: float) -> None:
        """Replace the predicted seconds of a granted ticket by those that it took."""
        if self._num_waiting:
            excess = seconds - ticket.cost
            self._credit += AGE_SHARE * excess - (excess if ticket.by_age else 0.0)

    def leave(self, ticket: Ticket[_T]) -> None:
        """Take a waiter out; nothing happens when it does not wait any more."""
        if not ticket.is_waiting:
            return
        ticket.is_waiting = False
        self._num_waiting -= 1
        line = self._lines[ticket.place]
        line.leave()
        if not line.num_waiting:
            del self._lines[ticket.place]
        last, num_own = self._callers[ticket.caller]
        if num_own > 1:
            self._callers[ticket.caller] = (last, num_own - 1)
        else:
            del self._callers[ticket.caller]
        if not self._num_waiting:
            self._credit = 0.0

    def clear(self, place: Hashable) -> list[_T]:
        """Take out everybody who waits for this place."""
        tickets = list(self._lines.get(place, ()))
        for ticket in tickets:
            self.leave(ticket)
        return [ticket.item for ticket in tickets]


def choose_turn(
    own: str, served: int, waiting: Mapping[str, int], processes: Mapping[str, int], *, has_right: bool
) -> str | None:
    """Decide whether a process that is free gives up its header, and for which.

    A header without any process comes first, the one that waits longest before others; a process leaves waiters of its
    own for it only after `USES_BEFORE_TURN` checks, so that two headers on one process do not drive each other out at
    once, and never as the last one while another header has several. Otherwise a process moves when that leaves fewer
    waiters per process where they are most; the last one of a header only when nobody waits for it and there is a right
    to run that nobody can use.

    Args:
        own: The header that the process has loaded.
        served: Checks that it served since.
        waiting: Waiters by header, the header that was asked for first comes first.
        processes: Processes by header, also those that are loading it.
        has_right: Whether fewer checks run than may.
    """
    own_waiting, num_left = waiting.get(own, 0), processes.get(own, 1) - 1
    if own_waiting and served < USES_BEFORE_TURN:
        return None
    others = [header for header in waiting if header != own]
    unserved = next((header for header in others if not processes.get(header)), None)
    if unserved is not None or not others:
        is_last = own_waiting and num_left == 0
        return None if is_last and any(count > 1 for count in processes.values()) else unserved
    if num_left == 0 and (own_waiting or not has_right):
        return None

    def crowd(header: str) -> float:
        return waiting[header] / (processes[header] + 1)

    best = max(others, key=crowd)
    is_short = waiting[best] > processes[best]
    return best if is_short and (not own_waiting or crowd(best) > own_waiting / num_left) else None
