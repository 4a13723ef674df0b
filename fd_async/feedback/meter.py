"""Counters of one provider, and the snapshot that telemetry shows."""

from __future__ import annotations

from collections import Counter, deque
from typing import TypedDict

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


class Meter:
    """Mutable counters behind `Statistics`."""

    def __init__(self) -> None:
        self.calls = 0
        self.requests = 0
        self.answered = 0
        self.rejected = 0
        self.retries = 0
        self.usd_unconfirmed = 0.0
        self.input_tokens = 0
        self.output_tokens = 0
        self.in_flight = 0
        self.drops: Counter[str] = Counter()
        self._latencies_s: deque[float] = deque(maxlen=_LATENCIES_KEPT)

    def answer(self, seconds: float) -> None:
        """Count one usable feedback."""
        self.answered += 1
        self._latencies_s.append(seconds)

    def snapshot(self, *, usd: float = 0.0, waiting: int = 0) -> Statistics:
        """Freeze the counters."""
        ordered = sorted(self._latencies_s)
        return Statistics(
            calls=self.calls,
            requests=self.requests,
            answered=self.answered,
            rejected=self.rejected,
            retries=self.retries,
            usd=usd,
            usd_unconfirmed=self.usd_unconfirmed,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            in_flight=self.in_flight,
            waiting=waiting,
            latency_p50_s=_quantile(ordered, 0.5),
            latency_p90_s=_quantile(ordered, 0.9),
            drops=dict(self.drops),
        )


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(int(q * len(ordered)), len(ordered) - 1)] if ordered else 0.0
