"""When an attempt may start: one decision over everything that can be full.

    staleness     (S + v + 1) * B - outstanding > 0             the buffer's slots; they take the version of that moment
    concurrency   under way < rollout.concurrency
    kv            usage <= admission.max_kv_usage, and under way < a limit that falls to 0.8 of what is under way when
                  vLLM preempts, or queues with a full cache, and grows by 5 % a tick after 15 s of calm
    checks        waiting per verifier worker <= admission.max_checks_waiting
    feedback      seconds of feedback queued <= admission.max_feedback_wait_s
    budget        attempts not yet paid < what is left of feedback.max_usd / price of one so far

    new ticket ──▶ room() ──▶ slot ──▶ attempt(): the gate, continued ones first, then the oldest ──▶ under way
                     ▲                    ▲                                                           │
                     └────────────────────┴── every arrival and every end, and a tick ◀───────────────┘

Invariants:
    * Nothing is under way beyond the limits as they were when it started; what runs is never stopped for them.
    * With nothing under way the first one at the gate starts, whatever is full: what fills the rest always drains.
    * Whatever starts ends once, also where its task is cancelled at the gate.
    * Time is that of the event loop.
"""

from __future__ import annotations

import heapq
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import anyio
import anyio.lowlevel
from msgspec import Struct

from fd_async.config.schema import RunConfig
from fd_async.pipeline.board import Wait

CAUSES = ("staleness", "concurrency", "kv", "checks", "feedback", "budget")
TICK_S = 1.0
READING_S = 0.25
"""What the parts say of themselves is read again after this long."""
CUT = 0.8
GROWTH = 0.05
CALM_S = 15.0


class Reports(Protocol):
    """A part of the run that says how full it is."""

    def statistics(self) -> Mapping[str, Any]: ...


class Slots(Protocol):
    """What of the buffer bounds staleness."""

    @property
    def capacity(self) -> int: ...
    @property
    def num_unresolved(self) -> int: ...


class Hold(Struct, frozen=True):
    """Why nothing starts now."""

    cause: str
    text: str


class KvLimit:
    """Attempts that the KV cache bears: cut at once where it does not, grown slowly where it does."""

    def __init__(self, ceiling: int, max_usage: float) -> None:
        self.limit = self._ceiling = ceiling
        self._max_usage = max_usage
        self._preemptions = float("inf")
        """Of the reading before; an engine that served earlier has preempted before this object was there."""
        self._grows_from = -float("inf")

    def observe(self, now: float, engine: Mapping[str, Any], under_way: int) -> None:
        """Take a reading of the engine."""
        preemptions, usage = engine.get("preemptions", 0.0), engine["kv_usage"]
        is_full = usage > self._max_usage
        is_short = preemptions > self._preemptions or (is_full and engine["waiting"] > 0)
        self._preemptions = preemptions
        if is_short:
            self.limit = max(1, min(self.limit, int(CUT * under_way)))
            self._grows_from = now + CALM_S
        elif under_way >= self.limit and not is_full and now >= self._grows_from:
            self.limit = min(self._ceiling, self.limit + max(1, int(GROWTH * self.limit)))
            self._grows_from = now + TICK_S


class _Waiter:
    __slots__ = ("is_gone", "is_let_in", "turn")

    def __init__(self) -> None:
        self.turn = anyio.Event()
        self.is_let_in = self.is_gone = False


class Admission:
    """Decides when attempts start; used by the attempt loops, `run` beside them."""

    def __init__(
        self, config: RunConfig, *, slots: Slots, engine: Reports, verifier: Reports, provider: Reports
    ) -> None:
        self._config = config
        self._slots, self._engine, self._verifier, self._provider = slots, engine, verifier, provider
        self._kv = KvLimit(config.rollout.concurrency, config.admission.max_kv_usage)
        self._under_way = 0
        self._gate: list[tuple[bool, int, int, int, _Waiter]] = []
        """Heap; the serial number makes entries comparable."""
        self._num_arrived = self._num_waiting = 0
        self._open = anyio.Event()
        said = provider.statistics()
        self._first_usd, self._first_answered = float(said.get("usd", 0.0)), float(said.get("answered", 0.0))
        self._read_at = -float("inf")
        self._started_since = 0
        self._said: tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]
        self._bound: Hold | None = None
        self._bound_at: float | None = None
        self._held_since = anyio.current_time()
        self._held_s = dict.fromkeys(CAUSES, 0.0)
        self._row_s = dict(self._held_s)
        """Of it, what the row before has told."""

    async def run(self) -> None:
        """Look again now and then, since what was full empties without a word; until cancelled."""
        while True:
            self._let_in()
            await anyio.sleep(TICK_S)

    async def room(self) -> None:
        """Wait until an attempt more than those at the gate may start."""
        await anyio.lowlevel.checkpoint()  # those just started take their places first
        while self._num_waiting or self._hold():
            await self._open.wait()

    @asynccontextmanager
    async def attempt(self, ordinal: int, sample: int = 0, *, continued: bool = False) -> AsyncIterator[None]:
        """Wait for the turn of an attempt and hold its place until the block ends.

        Args:
            ordinal: of its prompt; the oldest goes first.
            sample: inside its group.
            continued: it has begun before, and goes before all that have not.
        """
        waiter = _Waiter()
        self._num_arrived += 1
        self._num_waiting += 1
        heapq.heappush(self._gate, (not continued, ordinal, sample, self._num_arrived, waiter))
        try:
            self._let_in()
            await waiter.turn.wait()
            yield
        finally:
            if waiter.is_let_in:
                self._under_way -= 1
            else:
                waiter.is_gone = True
                self._num_waiting -= 1
            self._let_in()

    @property
    def binding(self) -> str:
        """What keeps the next attempt from starting, for people; empty when nothing does."""
        self._account(self._hold())
        return self._bound.text if self._bound else ""

    def statistics(self) -> dict[str, float]:
        """Return `under_way`, `waiting` at the gate, `limit` (attempts), and CAUSE_s: seconds held since the start."""
        self._account(self._hold())
        limit = min(self._config.rollout.concurrency, self._kv.limit)
        held = {f"{cause}_s": self._held_s[cause] for cause in CAUSES}
        return {"under_way": self._under_way, "waiting": self._num_waiting, "limit": limit, **held}

    def row(self) -> dict[str, float | int | None]:
        """Return the columns of a step; seconds are those since the row before."""
        said = self.statistics()
        held = {f"admission/{cause}_s": self._held_s[cause] - self._row_s[cause] for cause in CAUSES}
        self._row_s = dict(self._held_s)
        return {"admission/limit": said["limit"], **held}

    def waits(self) -> list[Wait]:
        """Return the row of the wait table for who has not started; none where nothing holds anyone."""
        text = self.binding
        if not text:
            return []
        oldest = f"prompt {self._gate[0][1]}" if self._num_waiting else "the next prompt"
        seconds = round(anyio.current_time() - self._held_since, 1)
        return [Wait("admission", max(1, self._num_waiting), oldest, seconds, text, "run.stall_abort_s")]

    def _let_in(self) -> None:
        """Start whoever may, in order; then open the door for new tickets if there is room left."""
        while self._gate:
            if self._gate[0][-1].is_gone:
                heapq.heappop(self._gate)
                continue
            if hold := self._hold():
                self._account(hold)
                return
            waiter = heapq.heappop(self._gate)[-1]
            waiter.is_let_in = True
            self._num_waiting -= 1
            self._under_way += 1
            self._started_since += 1
            waiter.turn.set()
        hold = self._hold()
        self._account(hold)
        if hold is None:
            self._open.set()
            self._open = anyio.Event()

    def _account(self, hold: Hold | None) -> None:
        """Charge the seconds since the last look to what held then."""
        now = anyio.current_time()
        if self._bound is not None and self._bound_at is not None:
            self._held_s[self._bound.cause] += now - self._bound_at
        if hold is None and self._slots.capacity <= 0 and not self._num_waiting:
            hold = self._staleness()
        if hold is None or self._bound is None or hold.cause != self._bound.cause:
            self._held_since = now
        self._bound, self._bound_at = hold, now

    def _hold(self) -> Hold | None:
        """Say what keeps one more attempt from starting, staleness aside."""
        if not self._under_way:
            return None
        engine, verifier, provider = self._read()
        return self._by_engine(engine) or self._by_verifier(verifier) or self._by_provider(provider)

    def _read(self) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
        now = anyio.current_time()
        if now - self._read_at >= READING_S:
            self._said = self._engine.statistics(), self._verifier.statistics(), self._provider.statistics()
            self._read_at, self._started_since = now, 0
            if self._config.admission.max_kv_usage < 1:
                self._kv.observe(now, self._said[0], self._under_way)
        return self._said

    def _by_engine(self, engine: Mapping[str, Any]) -> Hold | None:
        most, limit = self._config.rollout.concurrency, self._config.admission.max_kv_usage
        if self._under_way >= most:
            return Hold("concurrency", f"rollout.concurrency = {most} attempts are under way")
        usage = engine["kv_usage"]
        # What has started since the reading will take its share.
        expected = usage * (1 + self._started_since / max(1.0, engine["running"]))
        if limit < 1 and expected > limit:
            return Hold("kv", f"KV cache {usage:.0%} full (admission.max_kv_usage = {limit:g})")
        if self._under_way >= self._kv.limit:
            return Hold("kv", f"KV cache was short: {self._kv.limit} attempts for now (admission.max_kv_usage)")
        return None

    def _by_verifier(self, verifier: Mapping[str, Any]) -> Hold | None:
        limit, waiting = self._config.admission.max_checks_waiting, verifier.get("waiting", 0.0)
        if limit and waiting > limit * self._config.verifier.workers:
            return Hold(
                "checks",
                f"{waiting:.0f} checks wait for verifier.workers = {self._config.verifier.workers} "
                f"(admission.max_checks_waiting = {limit:g} each)",
            )
        return None

    def _by_provider(self, provider: Mapping[str, Any]) -> Hold | None:
        limit, backlog_s = self._config.admission.max_feedback_wait_s, provider.get("backlog_s", 0.0)
        if limit and backlog_s > limit:
            text = f"feedback queued takes {backlog_s:.0f} s (admission.max_feedback_wait_s = {limit:g})"
            return Hold("feedback", text)
        max_usd, answered = self._config.feedback.max_usd, provider.get("answered", 0.0) - self._first_answered
        usd = provider.get("usd", 0.0)
        price = (usd - self._first_usd) / answered if answered > 0 else 0.0
        unpaid = self._slots.num_unresolved - self._num_waiting
        if max_usd and price > 0 and (unpaid + 1) * price > max_usd - usd:
            text = f"{max_usd - usd:.2f} US dollars are left for {unpaid} attempts (feedback.max_usd = {max_usd:g})"
            return Hold("budget", text)
        return None

    def _staleness(self) -> Hold:
        bound = 0 if self._config.run.mode == "sync" else self._config.admission.max_staleness
        return Hold("staleness", f"the learner: every slot is taken (admission.max_staleness = {bound})")
