"""How fast the provider lets us go. Pure: the caller tells the time.

Invariants:
- What the headers say is left is spread evenly until the reset, so a bucket that refills all the time settles half
  full at its full rate, and a fixed window is not emptied in its first second. Nothing left: wait for the reset.
- A reading is forgotten at its reset, and no reset is further away than its cap: no header can hold us for good.
- A refusal without such headers halves the requests at once; every second answer takes one back.
"""

from __future__ import annotations

from fd_async.feedback.rates import Rate


class Bucket:
    """What is left of one of the provider's limits, as far as it told."""

    def __init__(self) -> None:
        self.rate: Rate | None = None
        self._left = 0.0
        self._reset_at = 0.0
        self._next_at = 0.0
        self._heard_from = -1

    def hear(self, now: float, rate: Rate, *, number: int, later: int, cap_s: float) -> None:
        """Take over a reading.

        Args:
            now: event-loop seconds.
            rate: what the answer said.
            number: of the request that was answered; a reading of an earlier one than the last is old and ignored.
            later: amount of requests in flight that were sent after it, which the provider had not seen yet.
            cap_s: longest time to the reset that is believed.
        """
        if number < self._heard_from:
            return
        self.rate, self._heard_from = rate, number
        self._left = rate.remaining - later
        self._reset_at = now + min(rate.reset_s, cap_s)
        self._next_at = min(self._next_at, self._reset_at)

    def wait_s(self, now: float, amount: int) -> float:
        """Return the seconds until `amount` may be used, 0 when now."""
        if now >= self._reset_at:
            return 0.0
        if self._left < amount:
            return self._reset_at - now
        return max(0.0, self._next_at - now)

    def charge(self, now: float, amount: int) -> None:
        """Use `amount`: the next one waits for its share of the time to the reset."""
        if now < self._reset_at and self._left > 0:
            self._next_at = max(now, self._next_at) + (self._reset_at - now) * min(amount / self._left, 1.0)
            self._left -= amount

    def seconds_for(self, amount: int) -> float:
        """Estimate how long `amount` takes at the last reading's pace; 0 when nothing was heard."""
        if self.rate is None or amount <= self.rate.remaining:
            return 0.0
        refilled = max(self.rate.limit - self.rate.remaining, self.rate.remaining, 1)
        return (amount - self.rate.remaining) * self.rate.reset_s / refilled


class Congestion:
    """Requests at once: halved by a refusal, one more after every second answer.

    Where refusals come by chance, as when the provider is short for everyone, a share p of them leaves about 1/p.
    """

    def __init__(self, ceiling: int) -> None:
        self._ceiling = ceiling
        self._allowed = float(ceiling)
        self._halved_at = float("-inf")

    @property
    def places(self) -> int:
        """Requests allowed on the wire now, at least 1."""
        return int(self._allowed)

    def refused(self, now: float, *, sent_at: float, in_flight: int) -> None:
        """Halve, once for all requests that were sent before the last halving."""
        if sent_at >= self._halved_at:
            self._allowed = max(1.0, min(self._allowed, in_flight) / 2)
            self._halved_at = now

    def answered(self) -> None:
        """Creep back."""
        self._allowed = min(float(self._ceiling), self._allowed + 0.5)
