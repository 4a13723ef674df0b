"""How fast and how expensively the provider is called: rates per minute, calls in flight, money.

Invariants:
- In no window of 60 s are more requests or estimated tokens admitted than configured. An estimate becomes the actual
  figure when the answer arrives; a single request larger than a whole limit passes alone.
- Money is reserved before a request, for its dearest case, and settled after it: nothing is sent that could take
  spent + reserved above `max_usd`, as far as the estimate of the input holds. A call that might still fit once others
  settle waits for them; one that cannot fit any more raises `FeedbackBudgetExceeded`.
- Waiting here is our own back-pressure: first come, first served, and never a reason to drop an attempt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackBudgetExceeded

_USD_EPSILON = 1e-9


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


class Budget:
    """Money spent and reserved, US dollars."""

    def __init__(self, max_usd: float, spent_usd: float = 0.0) -> None:
        self.max_usd = max_usd
        self.spent_usd = spent_usd
        self.reserved_usd = 0.0
        self._settled = anyio.Event()

    async def reserve(self, usd: float) -> None:
        """Set `usd` aside, waiting for calls in flight to settle when only they stand in the way.

        Raises:
            FeedbackBudgetExceeded: what is left of `feedback.max_usd` cannot pay for this call.
        """
        while self.max_usd:
            left = self.max_usd - self.spent_usd + _USD_EPSILON
            if usd > left:
                raise FeedbackBudgetExceeded(
                    f"feedback.max_usd = {self.max_usd:g} is spent: {self.spent_usd:.4f} US dollars are gone and the"
                    f" next call may cost {usd:.4f}. Raise feedback.max_usd and continue with --resume."
                )
            if usd + self.reserved_usd <= left:
                break
            await self._settled.wait()
        self.reserved_usd += usd

    def settle(self, reserved_usd: float, actual_usd: float) -> None:
        """Turn a reservation into what was really paid."""
        self.reserved_usd -= reserved_usd
        self.spent_usd += actual_usd
        self._settled.set()
        self._settled = anyio.Event()


class Charge:
    """What one admitted request used; nothing, until `settle` says that something was (or may have been) billed."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.input_tokens = 0
        self.output_tokens = 0
        self.usd = 0.0

    def settle(self, input_tokens: int, output_tokens: int) -> float:
        """Replace the estimates by the actual usage; return its price, US dollars."""
        self.input_tokens, self.output_tokens = input_tokens, output_tokens
        self.usd = self._limits.price(input_tokens, output_tokens)
        return self.usd


class Limits:
    """All limits of one provider. Opened once; every request passes through `request` while it holds a `slot`."""

    def __init__(self, config: FeedbackTable, *, spent_usd: float = 0.0, window_s: float = 60.0) -> None:
        self._config = config
        self._requests = Window(config.requests_per_minute, window_s)
        self._input = Window(config.input_tokens_per_minute, window_s)
        self._output = Window(config.output_tokens_per_minute, window_s)
        self._slots = anyio.CapacityLimiter(config.concurrency)
        self._turn = anyio.Lock()
        self._corrected = anyio.Event()
        self._paused_until = 0.0
        self.budget = Budget(config.max_usd, spent_usd)
        self.waiting = 0

    def price(self, input_tokens: int, output_tokens: int) -> float:
        """Price of one answer, US dollars."""
        return (
            input_tokens * self._config.usd_per_million_input_tokens
            + output_tokens * self._config.usd_per_million_output_tokens
        ) / 1e6

    def pause(self, seconds: float) -> None:
        """Hold every new request back: the provider asked for a rest, and it asked all of us."""
        self._paused_until = max(self._paused_until, anyio.current_time() + seconds)

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
        reserved_usd = self.price(input_tokens, output_tokens)
        with self._counted():
            await self.budget.reserve(reserved_usd)
            try:
                async with self._turn:
                    input_entry, output_entry = await self._admit(input_tokens, output_tokens)
            except BaseException:
                self.budget.settle(reserved_usd, 0.0)
                raise
        charge = Charge(self)
        try:
            yield charge
        finally:
            input_entry.amount, output_entry.amount = charge.input_tokens, charge.output_tokens
            self.budget.settle(reserved_usd, charge.usd)
            self._corrected.set()
            self._corrected = anyio.Event()

    async def _admit(self, input_tokens: int, output_tokens: int) -> tuple[Entry, Entry]:
        """Charge the three windows once all have room; the caller holds the turn, so first come is first served."""
        while True:
            now = anyio.current_time()
            delay = max(
                self._paused_until - now,
                self._requests.wait_s(now, 1),
                self._input.wait_s(now, input_tokens),
                self._output.wait_s(now, output_tokens),
            )
            if delay <= 0:
                self._requests.charge(now, 1)
                return self._input.charge(now, input_tokens), self._output.charge(now, output_tokens)
            with anyio.move_on_after(delay):  # a correction may make room earlier
                await self._corrected.wait()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1
