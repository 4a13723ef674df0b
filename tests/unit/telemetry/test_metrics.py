"""The columns of metrics.jsonl."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_async.telemetry.metrics import FAMILIES, METRICS, complete_row, is_documented, percentile

ROOT = Path(__file__).parents[3]
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
"""What scripts rely on."""


def test_a_row_has_every_column_that_scripts_rely_on() -> None:
    """What was not measured is null and not 0."""
    row = complete_row({"step": 3, "loss": 0.0, "eval/a/pass@1": 0.5})
    assert list(row) == [*CONTRACT, "eval/a/pass@1"]
    assert (row["step"], row["loss"], row["eval/a/pass@1"]) == (3, 0.0, 0.5)
    assert {key for key, value in row.items() if value is None} == set(CONTRACT) - {"step", "loss"}


def test_values_that_are_not_finite_become_null() -> None:
    """JSON has no NaN."""
    row = complete_row({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    assert row["loss"] is None
    assert row["grad_norm"] is None


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("step", True),
        ("loss", True),
        ("eval/minif2f_test/pass@32", True),
        ("eval/minif2f_test/statements", True),
        ("eval/pass@1", False),
        ("eval/a/b/pass@1", False),
        ("losss", False),
    ],
)
def test_documented_columns_are_told_from_others(key: str, known: bool) -> None:
    """Families count as documented, misspellings do not."""
    assert is_documented(key) is known


def test_every_column_that_the_code_writes_is_documented() -> None:
    """A column without a unit and a meaning helps nobody."""
    pattern = re.compile(
        r'"((?:alarms|anchor|feedback|grpo|importance|lean|loop|policy|push|queue|staleness|teacher|time|tokens|train)/\w+)"'
    )
    written = {
        key: path.name
        for folder in ("pipeline", "learner")
        for path in (ROOT / "fd_async" / folder).glob("*.py")
        for key in pattern.findall(path.read_text(encoding="utf-8"))
    }
    assert len(written) > 20
    assert {key: name for key, name in written.items() if not is_documented(key)} == {}


def table_rows(page: str) -> dict[str, list[str]]:
    """Return the cells of each table row of a Markdown page whose first cell is `code`, by that code."""
    rows: dict[str, list[str]] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if match := re.fullmatch(r"`([^`]+)`", cells[0]):
            assert match.group(1) not in rows, f"{match.group(1)} stands twice"
            rows[match.group(1)] = cells[1:]
    return rows


def test_the_page_about_metrics_has_each_column_with_unit_meaning_range_and_advice() -> None:
    """docs/metrics.md and METRICS name the same columns with the same units."""
    rows = table_rows((ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"))
    units = {metric.key: metric.unit for metric in (*METRICS, *FAMILIES)}
    assert {key: cells[0] for key, cells in rows.items()} == units
    for key, cells in rows.items():
        assert len(cells) == 4, key
        assert all(cells), key
        assert cells[2] != "–", f"{key} has no healthy range"


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
