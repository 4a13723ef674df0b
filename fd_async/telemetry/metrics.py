"""One row of numbers per gradient step.

Invariants:
    * A mean is a (sum, count) pair until the row is made: never a mean of ratios.
    * No data is `null`, never 0. Only counters start at 0, because "nothing happened" is data there.
    * Counters and durations cover the time since the previous row, so their sum over rows is the run's total and a
      resume needs no state.
    * `METRICS` is the one list of names and units; docs/metrics.md documents each of them.
"""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

from msgspec import Struct

Kind = Literal["counter", "mean", "value", "max", "seconds", "percentile"]
Number = float | int
Row = dict[str, float | int | None]


class Metric(Struct, frozen=True, array_like=True):
    """Name, unit and kind of one column; `always` columns stand in every row, the others only when there is data."""

    key: str
    unit: str
    kind: Kind
    always: bool = True


METRICS: tuple[Metric, ...] = (
    Metric("weight_version", "versions", "value"),
    Metric("loss", "nats/token", "value"),
    Metric("teacher/topk_mass", "share", "value"),
    Metric("teacher/entropy", "nats/token", "value"),
    Metric("teacher/feedback_gain", "nats/token", "value"),
    Metric("policy/entropy", "nats/token", "value"),
    Metric("policy/mismatch_kl", "nats/token", "value"),
    Metric("grad_norm", "norm", "value"),
    Metric("lr", "per step", "value"),
    Metric("train/pass_rate", "share", "mean"),
    Metric("train/response_tokens", "tokens", "mean"),
    Metric("staleness/mean", "versions", "mean"),
    Metric("staleness/max", "versions", "max"),
    Metric("queue/depth", "samples", "value"),
    Metric("tokens/generated", "tokens", "counter"),
    Metric("tokens/trained", "tokens", "counter"),
    Metric("tokens/dropped", "tokens", "counter"),
    Metric("time/step_s", "s", "seconds"),
    Metric("time/wait_for_batch_s", "s", "seconds"),
    Metric("time/push_stall_s", "s", "seconds"),
    Metric("loop/lag_p99_ms", "ms", "value"),
    Metric("lean/checks", "checks", "counter"),
    Metric("lean/infra_errors", "checks", "counter"),
    Metric("feedback/calls", "calls", "counter"),
    Metric("feedback/usd", "USD", "counter"),
    Metric("teacher/anchor_loss", "nats/token", "value", False),
    Metric("policy/kl", "nats/token", "value", False),
    Metric("policy/clip_share", "share", "value", False),
    Metric("policy/probe_max_abs", "nats", "value", False),
    Metric("policy/tokens_per_s", "tokens/s", "value", False),
    Metric("train/turns", "turns", "mean", False),
    Metric("train/truncated", "share", "mean", False),
    Metric("train/tool_ok", "share", "mean", False),
    Metric("train/epistemic_per_1k_words", "words/1k", "mean", False),
    Metric("train/distinct_tactics", "tactics", "value", False),
    Metric("train/distinct_lemmas", "lemmas", "value", False),
    Metric("tokens/queued", "tokens", "value", False),
    Metric("tokens/evaluated", "tokens", "counter", False),
    Metric("time/learn_s", "s", "seconds", False),
    Metric("time/push_s", "s", "seconds", False),
    Metric("time/eval_s", "s", "seconds", False),
    Metric("time/checkpoint_s", "s", "seconds", False),
    Metric("rollout/seconds", "s", "percentile", False),
    Metric("rollout/generate_s", "s", "mean", False),
    Metric("rollout/tool_s", "s", "mean", False),
    Metric("loop/lag_max_ms", "ms", "value", False),
    Metric("lean/check_s", "s", "percentile", False),
    Metric("feedback/latency_s", "s", "percentile", False),
    Metric("feedback/tokens", "tokens", "mean", False),
    Metric("feedback/cut", "feedbacks", "counter", False),
)

PATTERNS: dict[str, str] = {
    "eval/SUITE/pass@K": "share",
    "eval/SUITE/statements": "statements",
    "dropped/CAUSE": "attempts",
    "tokens/dropped/CAUSE": "tokens",
}
"""Families of keys: capitals stand for a name."""

PERCENTILES = (50, 90)
BY_KEY: dict[str, Metric] = {metric.key: metric for metric in METRICS}
_PATTERN = re.compile("|".join(re.sub(r"SUITE|CAUSE", r"[^/]+", key).replace("@K", r"@\d+") for key in PATTERNS))


def percentile(values: Sequence[float], q: float) -> float | None:
    """Return the q-th percentile (0 to 100) by linear interpolation, None without values."""
    if not values:
        return None
    ordered = sorted(values)
    rank = (len(ordered) - 1) * q / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def is_documented(key: str) -> bool:
    """Say whether `key` is `step`, in METRICS, a percentile of one, or of a family in PATTERNS."""
    base, _, stat = key.rpartition("/")
    if base in BY_KEY and BY_KEY[base].kind == "percentile":
        return stat in {f"p{q}" for q in PERCENTILES}
    known = BY_KEY.get(key)
    return key == "step" or (known is not None and known.kind != "percentile") or _PATTERN.fullmatch(key) is not None


class StepMetrics:
    """Collects what happens between two rows. Used from the event loop only; it never awaits and does no I/O."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._counters: defaultdict[str, Number] = defaultdict(int)
        self._means: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._values: dict[str, Number | None] = {}
        self._samples: defaultdict[str, list[float]] = defaultdict(list)

    def count(self, key: str, amount: Number = 1) -> None:
        """Add to a counter."""
        self._counters[key] += amount

    def mean(self, key: str, total: Number, num: Number = 1) -> None:
        """Add `num` observations whose sum is `total`; the row shows sum of totals over sum of nums."""
        pair = self._means[key]
        pair[0] += total
        pair[1] += num

    def value(self, key: str, value: Number | None) -> None:
        """Set a column; the last one of the step stands."""
        self._values[key] = value

    def values(self, values: Mapping[str, Number | None]) -> None:
        """Set several columns, e.g. those of a learner's step report."""
        self._values.update(values)

    def high(self, key: str, value: Number) -> None:
        """Keep the largest value of the step."""
        before = self._values.get(key)
        self._values[key] = value if before is None else max(before, value)

    def sample(self, key: str, value: Number) -> None:
        """Add one observation of a distribution; the row shows its percentiles as `key/p50` and `key/p90`."""
        self._samples[key].append(value)

    def seconds(self, key: str, seconds: float) -> None:
        """Add a duration, seconds."""
        self._counters[key] += seconds

    @contextmanager
    def timer(self, key: str) -> Iterator[None]:
        """Add the wall time of the block to a duration, also when it raises."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds(key, time.monotonic() - start)

    def peek_mean(self, key: str) -> float | None:
        """Return a mean so far, without closing the step."""
        total, num = self._means.get(key, (0.0, 0.0))
        return total / num if num else None

    def peek_count(self, key: str) -> Number:
        """Return a counter so far, without closing the step."""
        return self._counters.get(key, 0)

    def snapshot(self, step: int) -> Row:
        """Return the row of `step` and start the next one. Values that are not finite become None."""
        row: Row = {"step": step}
        for metric in METRICS:
            if metric.always:
                row[metric.key] = 0 if metric.kind == "counter" else None
        row.update(self._counters)
        row.update({key: total / num for key, (total, num) in self._means.items() if num})
        row.update(self._values)
        for key, samples in self._samples.items():
            row.update({f"{key}/p{q}": percentile(samples, q) for q in PERCENTILES})
        self._clear()
        return {key: _finite(value) for key, value in row.items()}


def _finite(value: Number | None) -> Number | None:
    return value if value is None or math.isfinite(value) else None
