"""Rows of metrics to the figures that decide a claim."""

from __future__ import annotations

from typing import Any

import pytest

from bench.mini.curves import (
    attempts_until,
    drop,
    entropy_at,
    mean_over,
    nearest_step,
    start_and_end,
    windows,
    written_tokens,
)


def rows(rates: list[float], attempts: int = 160, **columns: list[float]) -> list[dict[str, Any]]:
    """Make one row per rate."""
    return [
        {"step": step, "train/attempts": attempts, "train/pass_rate": rate}
        | {key.replace("__", "/"): values[step - 1] for key, values in columns.items()}
        for step, rate in enumerate(rates, 1)
    ]


def test_windows_hold_enough_attempts_whatever_the_batch() -> None:
    """Two steps of 160 make one; the step that is left over makes none."""
    found = windows(rows([0.0, 0.2, 0.4, 0.6, 1.0]))
    assert [(end.attempts, end.step) for end in found] == [(320, 2), (640, 4)]
    assert [end.values["train/pass_rate"] for end in found] == pytest.approx([0.1, 0.5])


def test_windows_weigh_by_attempts_and_skip_what_is_not_measured() -> None:
    """A short batch counts less; a column with None is averaged over the others."""
    steps = rows([1.0, 0.0], policy__entropy=[0.1, 0.3])
    steps[0]["train/attempts"], steps[1]["train/attempts"] = 80, 240
    steps[0]["policy/entropy"] = None
    assert windows(steps)[0].values == {"train/pass_rate": pytest.approx(0.25), "policy/entropy": pytest.approx(0.3)}


def test_evaluation_rows_are_no_steps() -> None:
    """The row of step 0 has no batch."""
    steps = [{"step": 0, "eval/test/pass@1": 0.1}, *rows([0.0, 0.2])]
    assert [end.step for end in windows(steps)] == [2]


def test_the_area_takes_exactly_the_attempts_asked_for() -> None:
    """Half of the second step, and nothing of a run that is too short."""
    steps = rows([0.0, 1.0])
    assert mean_over(steps, attempts=240) == pytest.approx(1 / 3)
    assert mean_over(steps, attempts=321) is None
    assert mean_over(steps, steps=2) == pytest.approx(0.5)
    assert mean_over(steps, steps=3) is None
    assert mean_over([], steps=0) is None


def test_reaching_a_level_and_entropy_there() -> None:
    """The first crossing counts, between two windows by interpolation."""
    steps = rows([0.1, 0.1, 0.3, 0.3, 0.2, 0.2, 0.5, 0.5], policy__entropy=[0.1, 0.1, 0.2, 0.2, 0.9, 0.9, 0.9, 0.9])
    assert attempts_until(steps, 0.25) == 640
    assert attempts_until(steps, 0.9) is None
    assert entropy_at(steps, 0.2) == pytest.approx(0.15)
    assert entropy_at(steps, 0.6) is None


def test_a_drop_is_best_minus_last() -> None:
    """Up to a step, where asked; nothing without windows."""
    steps = rows([0.1, 0.1, 0.6, 0.6, 0.2, 0.2])
    assert drop(steps) == pytest.approx(0.4)
    assert drop(steps, until_step=4) == pytest.approx(0.0)
    assert drop([]) is None


def test_written_tokens_leave_tool_output_out() -> None:
    """They come from the running total of sampled tokens."""
    steps = rows([0.0, 0.0], attempts=10, tokens__trained=[500, 1100])
    assert written_tokens(steps) == [50, 60]


def test_start_and_end_do_not_overlap() -> None:
    """A run too short for both has neither."""
    assert start_and_end([1, 3, 9, 5, 7], 2, 2) == (2, 6)
    assert start_and_end([1, 2, 3], 2, 2) is None


def test_the_checkpoint_nearest_in_accuracy_is_chosen() -> None:
    """By the window that ends nearest to it."""
    rates = {10: 0.1, 20: 0.3, 30: 0.5}
    assert nearest_step([6, 12, 18, 24, 30], rates, 0.32) == 18
    assert nearest_step([6, 30], rates, 0.32) == 30
    with pytest.raises(ValueError, match="no checkpoint"):
        nearest_step([], rates, 0.3)
