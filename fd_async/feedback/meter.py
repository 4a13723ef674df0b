"""Counters of one provider, and the snapshot that telemetry shows."""

from __future__ import annotations

from collections import Counter, deque
from decimal import Decimal
from typing import Any, TypedDict

_LATENCIES_KEPT = 1024


class Statistics(TypedDict):
    """A snapshot. Counts are since the provider was opened; `usd` includes what earlier runs of a resume spent."""

    calls: int
    """Feedback asked for, answered or not."""
    requests: int
    """Requests sent, retries and second questions included."""
    answered: int
    """Usable feedback returned."""
    rejected: int
    """Answers that were paid for and refused, the first of two included."""
    retries: int
    usd: float
    usd_unconfirmed: float
    """Part of `usd`: input price of requests that broke off, which the provider may or may not have billed."""
    input_tokens: int
    output_tokens: int
    in_flight: int
    """Requests on the wire."""
    waiting: int
    """Callers held back by concurrency, rates or the budget."""
    latency_p50_s: float
    """Median seconds from the first request to the usable answer, over the last 1,024; 0 before the first."""
    latency_p90_s: float
    drops: dict[str, int]
    """Feedback that ended without text, by cause."""
    pending: int
    """Feedback asked for and not ended yet."""
    backlog_s: float
    """Estimate: how long the pending feedback takes at the pace of the last answers and of the rate limits; grows with
    an outage. 0 before the first answer where no limit is known."""
    places: int
    """Requests that may be on the wire at once; below `feedback.concurrency` after refusals."""
    rates: dict[str, dict[str, float]]
    """`remaining`, `limit` and `reset_s` of each limit, as the provider last told."""
    outages: int
    outage_s: float
    """Since when the provider is down; 0 while it is there."""
    awaited_s: float
    """Since when callers wait for the end of an outage; 0 also where the fallback answers them meanwhile."""
    outages_s: float
    """How long it was down in all, the present outage included."""
    fallback_calls: int
    """Feedback that `[fallback]` was asked for; its requests, answers and dollars are part of the counts above."""
    fallback_usd: float


class Meter:
    """Mutable counters behind `Statistics`."""

    def __init__(self) -> None:
        self.calls = 0
        self.requests = 0
        self.answered = 0
        self.rejected = 0
        self.retries = 0
        self.usd_unconfirmed = Decimal(0)
        self.input_tokens = 0
        self.output_tokens = 0
        self.in_flight = 0
        self.ended = 0
        """Calls that are over, however."""
        self.drops: Counter[str] = Counter()
        self._latencies_s: deque[float] = deque(maxlen=_LATENCIES_KEPT)

    @property
    def pending(self) -> int:
        """Calls under way."""
        return self.calls - self.ended

    @property
    def latency_s(self) -> float:
        """Median seconds of a feedback; 0 before the first."""
        return _quantile(sorted(self._latencies_s), 0.5)

    def answer(self, seconds: float) -> None:
        """Count one usable feedback."""
        self.answered += 1
        self._latencies_s.append(seconds)

    def snapshot(self, **more: Any) -> Statistics:
        """Freeze the counters; `more` are the fields of `Statistics` that are not counted here."""
        ordered = sorted(self._latencies_s)
        own = Statistics(
            calls=self.calls,
            requests=self.requests,
            answered=self.answered,
            rejected=self.rejected,
            retries=self.retries,
            usd=0.0,
            usd_unconfirmed=float(self.usd_unconfirmed),
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            in_flight=self.in_flight,
            waiting=0,
            latency_p50_s=_quantile(ordered, 0.5),
            latency_p90_s=_quantile(ordered, 0.9),
            drops=dict(self.drops),
            pending=self.pending,
            backlog_s=0.0,
            places=0,
            rates={},
            outages=0,
            outage_s=0.0,
            awaited_s=0.0,
            outages_s=0.0,
            fallback_calls=0,
            fallback_usd=0.0,
        )
        own.update(more)  # type: ignore[typeddict-item]
        return own


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)] if ordered else 0.0
