"""How fast and how expensively the provider is called: rates per minute, calls in flight, money.

Invariants:
- In no window of 60 s are more requests or estimated tokens admitted than configured. An estimate becomes the actual
  figure when the answer arrives; a single request larger than a whole limit passes alone.
- Below those bounds the provider's own word sets the pace, see `pace`.
- Waiting here is our own back-pressure: first come, first served, and never a reason to drop an attempt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from decimal import Decimal

import anyio

from fd_async.config.schema import FeedbackTable
from fd_async.feedback.money import ZERO, Budget, Prices, Usage
from fd_async.feedback.pace import Bucket, Congestion
from fd_async.feedback.rates import Kind, Rate


class Window:
    """Amounts admitted during the last `seconds`. Pure: the caller tells the time."""

    def __init__(self, limit: int, seconds: float = 60.0) -> None:
        self.limit = limit
        """Largest sum inside the window; 0 sets none."""
        self.seconds = seconds
        self._entries: deque[Entry] = deque()

    def wait_s(self, now: float, amount: int) -> float:
        """Return the seconds until `amount` fits, 0 when it fits now."""
        if not self.limit:
            return 0.0
        while self._entries and self._entries[0].at + self.seconds <= now:
            self._entries.popleft()
        excess = sum(entry.amount for entry in self._entries) + min(amount, self.limit) - self.limit
        for entry in self._entries:
            if excess <= 0:
                break
            excess -= entry.amount
            if excess <= 0:
                return entry.at + self.seconds - now
        return 0.0

    def charge(self, now: float, amount: int) -> Entry:
        """Admit `amount` at `now`; the entry's amount may be corrected later."""
        entry = Entry(now, min(amount, self.limit))
        if self.limit:
            self._entries.append(entry)
        return entry


class Entry:
    """One admitted amount."""

    __slots__ = ("amount", "at")

    def __init__(self, at: float, amount: int) -> None:
        self.at = at
        self.amount = amount


class Charge:
    """What one admitted request used; nothing, until `settle` says that something was (or may have been) billed."""

    def __init__(self, prices: Prices, number: int, amounts: Mapping[Kind, int]) -> None:
        self._prices = prices
        self.number = number
        """Requests are counted in the order in which they are sent."""
        self.amounts = amounts
        """Estimates, by limit."""
        self.sent_at = anyio.current_time()
        self.usage = Usage()
        self.usd = ZERO

    def settle(self, usage: Usage) -> Decimal:
        """Replace the estimates by the actual usage; return its price, US dollars."""
        self.usage = usage
        self.usd = self._prices.of(usage)
        return self.usd


class Limits:
    """All limits of one provider. Opened once; every request passes through `request` while it holds a `slot`."""

    def __init__(self, config: FeedbackTable, *, spent_usd: float = 0.0, window_s: float = 60.0) -> None:
        self._config = config
        self._prices = Prices(config)
        self._requests = Window(config.requests_per_minute, window_s)
        self._input = Window(config.input_tokens_per_minute, window_s)
        self._output = Window(config.output_tokens_per_minute, window_s)
        self._buckets: dict[Kind, Bucket] = {kind: Bucket() for kind in ("requests", "input", "output", "tokens")}
        self._congestion = Congestion(config.concurrency)
        self._slots = anyio.CapacityLimiter(config.concurrency)
        self._turn = anyio.Lock()
        self._changed = anyio.Event()
        self._paused_until = 0.0
        self._in_flight: dict[int, Charge] = {}
        self._sent = 0
        self.budget = Budget(config.max_usd, spent_usd)
        self.waiting = 0

    @property
    def places(self) -> int:
        """Requests that may be on the wire at once, as things stand."""
        return self._congestion.places

    @property
    def rates(self) -> dict[Kind, Rate]:
        """The provider's last word on each limit that it names."""
        return {kind: bucket.rate for kind, bucket in self._buckets.items() if bucket.rate is not None}

    def pause(self, seconds: float) -> None:
        """Hold every new request back: the provider asked for a rest, and it asked all of us."""
        self._paused_until = max(self._paused_until, anyio.current_time() + seconds)

    def hear(self, charge: Charge, rates: Mapping[Kind, Rate]) -> None:
        """Take over what the headers of an answer or a refusal said."""
        if not self._config.adapt_to_headers:
            return
        for kind, rate in rates.items():
            later = sum(other.amounts[kind] for number, other in self._in_flight.items() if number > charge.number)
            self._buckets[kind].hear(
                anyio.current_time(), rate, number=charge.number, later=later, cap_s=self._config.max_retry_after_s
            )
        self._wake()

    def refused(self, charge: Charge) -> None:
        """Send fewer at once: the provider had enough and did not say when it will have room."""
        in_flight = len(self._in_flight)
        self._congestion.refused(anyio.current_time(), sent_at=charge.sent_at, in_flight=in_flight)

    def answered(self) -> None:
        """Send a little more at once again."""
        self._congestion.answered()

    def seconds_for(self, calls: int, input_tokens: float, output_tokens: float) -> float:
        """Estimate how long the rate limits hold `calls` up; tokens are those of one call."""
        windows = ((self._requests, 1.0), (self._input, input_tokens), (self._output, output_tokens))
        configured = (calls * each * window.seconds / window.limit for window, each in windows if window.limit)
        tokens = {"requests": 1.0, "input": input_tokens, "output": output_tokens}
        tokens["tokens"] = input_tokens + output_tokens
        heard = (bucket.seconds_for(int(calls * tokens[kind])) for kind, bucket in self._buckets.items())
        return max(0.0, *configured, *heard)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of `feedback.concurrency` places for a whole feedback, its retries and rests included."""
        with self._counted():
            await self._slots.acquire_on_behalf_of(token := object())
        try:
            yield
        finally:
            self._slots.release_on_behalf_of(token)

    @asynccontextmanager
    async def request(self, input_tokens: int, output_tokens: int) -> AsyncIterator[Charge]:
        """Wait until one request fits every limit, then hold its reservation until the block ends.

        Args:
            input_tokens: estimate.
            output_tokens: the most the answer may have; reserved in full until the answer tells.

        Raises:
            FeedbackBudgetExceeded: from `Budget.reserve`.
        """
        reserved_usd = self._prices.dearest(input_tokens, output_tokens)
        with self._counted():
            await self.budget.reserve(reserved_usd)
            try:
                async with self._turn:
                    charge, input_entry, output_entry = await self._admit(input_tokens, output_tokens)
            except BaseException:
                self.budget.settle(reserved_usd, ZERO)
                raise
        try:
            yield charge
        finally:
            del self._in_flight[charge.number]
            input_entry.amount, output_entry.amount = charge.usage.input_tokens, charge.usage.output_tokens
            self.budget.settle(reserved_usd, charge.usd)
            self._wake()

    async def _admit(self, input_tokens: int, output_tokens: int) -> tuple[Charge, Entry, Entry]:
        """Charge every limit once all have room; the caller holds the turn, so first come is first served."""
        amounts: dict[Kind, int] = {
            "requests": 1, "input": input_tokens, "output": output_tokens, "tokens": input_tokens + output_tokens
        }  # fmt: skip
        while True:
            now = anyio.current_time()
            delay = max(
                self._paused_until - now,
                self._requests.wait_s(now, 1),
                self._input.wait_s(now, input_tokens),
                self._output.wait_s(now, output_tokens),
                *(bucket.wait_s(now, amounts[kind]) for kind, bucket in self._buckets.items()),
            )
            is_full = len(self._in_flight) >= self._congestion.places
            if delay <= 0 and not is_full:
                break
            with anyio.move_on_after(delay if delay > 0 else None):  # what changes may make room earlier
                await self._changed.wait()
        self._requests.charge(now, 1)
        for kind, bucket in self._buckets.items():
            bucket.charge(now, amounts[kind])
        self._sent += 1
        charge = self._in_flight[self._sent] = Charge(self._prices, self._sent, amounts)
        return charge, self._input.charge(now, input_tokens), self._output.charge(now, output_tokens)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1
