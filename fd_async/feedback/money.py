"""Prices and the budget, exact to the last digit of the configured prices.

Invariants:
- Money is reserved before a request, for its dearest case, and settled after it: nothing is sent that could take
  spent + reserved above `max_usd`, as far as the estimate of the input holds. A call that might still fit once others
  settle waits for them; one that cannot fit any more raises `FeedbackBudgetExceeded`.
- Amounts are decimal, never negative, and rounded nowhere: a sum of a million answers is a million answers' price.
"""

from __future__ import annotations

from decimal import Decimal

import anyio
from msgspec import Struct

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackBudgetExceeded

ZERO = Decimal(0)
_MILLION = Decimal(1_000_000)
_SMALLEST = Decimal("1e-12")


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens of one answer, as the provider counted them."""

    input_tokens: int = 0
    """All of them, read from a cache or not."""
    output_tokens: int = 0
    cache_read_tokens: int = 0
    """Part of the input."""
    cache_write_tokens: int = 0
    """Part of the input."""


def dollars(amount: float) -> Decimal:
    """Take over a sum of floats without its rounding errors."""
    return Decimal(repr(amount)).quantize(_SMALLEST) if amount > 0 else ZERO


class Prices:
    """US dollars per token. Cache tokens cost what other input does unless the table says more or less."""

    def __init__(self, config: FeedbackTable) -> None:
        per_million = (
            config.usd_per_million_input_tokens,
            config.usd_per_million_output_tokens,
            config.usd_per_million_cache_read_tokens or config.usd_per_million_input_tokens,
            config.usd_per_million_cache_write_tokens or config.usd_per_million_input_tokens,
        )
        self._input, self._output, self._read, self._write = (Decimal(repr(price)) / _MILLION for price in per_million)

    def of(self, usage: Usage) -> Decimal:
        """Price one answer."""
        plain = usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens
        return (
            max(plain, 0) * self._input
            + usage.cache_read_tokens * self._read
            + usage.cache_write_tokens * self._write
            + usage.output_tokens * self._output
        )

    def dearest(self, input_tokens: int, output_tokens: int) -> Decimal:
        """Price a request before it is sent, whatever its input turns out to be."""
        return input_tokens * max(self._input, self._read, self._write) + output_tokens * self._output


class Budget:
    """Money spent and reserved, US dollars."""

    def __init__(self, max_usd: float, spent_usd: float = 0.0) -> None:
        self.max_usd = dollars(max_usd)
        self.spent_usd = dollars(spent_usd)
        self.reserved_usd = ZERO
        self._settled = anyio.Event()

    async def reserve(self, usd: Decimal) -> None:
        """Set `usd` aside, waiting for calls in flight to settle when only they stand in the way.

        Raises:
            FeedbackBudgetExceeded: what is left of `feedback.max_usd` cannot pay for this call.
        """
        while self.max_usd:
            left = self.max_usd - self.spent_usd
            if usd > left:
                raise FeedbackBudgetExceeded(
                    f"feedback.max_usd = {self.max_usd.normalize():f} is spent: {self.spent_usd:.4f} US dollars are"
                    f" gone and the next call may cost {usd:.4f}. Raise feedback.max_usd and continue with --resume."
                )
            if usd + self.reserved_usd <= left:
                break
            await self._settled.wait()
        self.reserved_usd += usd

    def settle(self, reserved_usd: Decimal, actual_usd: Decimal) -> None:
        """Turn a reservation into what was really paid."""
        self.reserved_usd -= reserved_usd
        self.spent_usd += actual_usd
        self._settled.set()
        self._settled = anyio.Event()
