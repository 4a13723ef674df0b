"""The row of a step: sums, means, nothing invented."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_async.telemetry.metrics import METRICS, StepMetrics, is_documented, percentile

CONTRACT = [
    "step",
    "weight_version",
    "loss",
    "teacher/topk_mass",
    "teacher/entropy",
    "teacher/feedback_gain",
    "policy/entropy",
    "policy/mismatch_kl",
    "grad_norm",
    "lr",
    "train/pass_rate",
    "train/response_tokens",
    "staleness/mean",
    "staleness/max",
    "queue/depth",
    "tokens/generated",
    "tokens/trained",
    "tokens/dropped",
    "time/step_s",
    "time/wait_for_batch_s",
    "time/push_stall_s",
    "loop/lag_p99_ms",
    "lean/checks",
    "lean/infra_errors",
    "feedback/calls",
    "feedback/usd",
]


def test_an_empty_step_has_every_contract_key_with_null_or_a_true_zero() -> None:
    """Only counters may say 0 when nothing happened."""
    row = StepMetrics().snapshot(3)
    assert list(row) == CONTRACT
    assert row.pop("step") == 3
    zeros = {key for key, value in row.items() if value == 0}
    assert zeros == {metric.key for metric in METRICS if metric.always and metric.kind == "counter"}
    assert all(value is None for key, value in row.items() if key not in zeros)


def test_a_mean_weighs_observations_and_not_groups() -> None:
    """One of one and none of three is a quarter, not a half."""
    metrics = StepMetrics()
    metrics.mean("train/pass_rate", 1, 1)
    metrics.mean("train/pass_rate", 0, 3)
    assert metrics.peek_mean("train/pass_rate") == 0.25
    assert metrics.snapshot(1)["train/pass_rate"] == 0.25


def test_a_mean_over_nothing_is_null() -> None:
    """A sum with count 0 never divides and never shows 0."""
    metrics = StepMetrics()
    metrics.mean("train/pass_rate", 0, 0)
    assert metrics.peek_mean("train/pass_rate") is None
    assert metrics.snapshot(1)["train/pass_rate"] is None


def test_a_snapshot_starts_the_next_step_from_nothing() -> None:
    """A stale loss is not repeated on the next row."""
    metrics = StepMetrics()
    metrics.count("lean/checks", 4)
    metrics.values({"loss": 1.5, "lr": 1e-5})
    metrics.high("staleness/max", 2)
    metrics.high("staleness/max", 1)
    first, second = metrics.snapshot(1), metrics.snapshot(2)
    assert (first["lean/checks"], first["loss"], first["staleness/max"]) == (4, 1.5, 2)
    assert (second["lean/checks"], second["loss"], second["staleness/max"]) == (0, None, None)


def test_values_that_are_not_finite_become_null() -> None:
    """JSON has no NaN."""
    metrics = StepMetrics()
    metrics.values({"loss": math.nan, "grad_norm": math.inf})
    row = metrics.snapshot(1)
    assert row["loss"] is None
    assert row["grad_norm"] is None


def test_a_timer_counts_a_block_that_raises() -> None:
    """Time is spent even when the work fails."""
    metrics = StepMetrics()
    with pytest.raises(ZeroDivisionError), metrics.timer("time/learn_s"):
        _ = 1 // 0
    assert isinstance(metrics.snapshot(1)["time/learn_s"], float)


def test_samples_become_percentiles() -> None:
    """Distributions show p50 and p90 under documented names."""
    metrics = StepMetrics()
    for second in range(11):
        metrics.sample("feedback/latency_s", second)
    row = metrics.snapshot(1)
    assert row["feedback/latency_s/p50"] == 5
    assert row["feedback/latency_s/p90"] == 9
    assert "feedback/latency_s" not in row


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_lies_between_the_extremes(values: list[float], q: float) -> None:
    """Interpolation never leaves the data."""
    found = percentile(values, q)
    assert found is not None
    assert min(values) - 1e-6 <= found <= max(values) + 1e-6


def test_percentiles_at_the_ends_and_of_nothing() -> None:
    """p0 is the smallest, p100 the largest, and no data gives None."""
    assert percentile([3, 1, 2], 0) == 1
    assert percentile([3, 1, 2], 100) == 3
    assert percentile([1, 2], 50) == 1.5
    assert percentile([], 50) is None


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("step", True),
        ("loss", True),
        ("eval/minif2f_test/pass@32", True),
        ("tokens/dropped/feedback_rejected", True),
        ("feedback/latency_s/p90", True),
        ("feedback/latency_s", False),
        ("feedback/latency_s/p42", False),
        ("eval/pass@1", False),
        ("losss", False),
    ],
)
def test_documented_keys_are_told_from_others(key: str, known: bool) -> None:
    """Families and percentiles count as documented, misspellings do not."""
    assert is_documented(key) is known
