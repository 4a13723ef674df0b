"""Rows of metrics to the figures that decide a claim. Pure functions.

Accuracy is the proved share of the attempts that a step learnt from. They are made before it learns from them, and no
statement comes up twice, so it is held-out accuracy, and free. Steps are averaged in windows of at least `WINDOW`
attempts, whatever the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

Row = Mapping[str, Any]
WINDOW = 320
"""Attempts; the standard error of a pass rate over so many is at most 0.028."""
_AVERAGED = ("train/pass_rate", "policy/entropy", "policy/teacher_kl", "teacher/feedback_gain")


@dataclass(frozen=True)
class Window:
    """Means over neighbouring steps."""

    attempts: int
    """Trained up to its end."""
    step: int
    """Its last."""
    values: dict[str, float]


def trained(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of gradient steps."""
    return [row for row in rows if row.get("train/attempts")]


def windows(rows: Sequence[Row], *, until_step: int = 0) -> list[Window]:
    """Average over steps, weighted by attempts; an unfinished last window is left out."""
    found: list[Window] = []
    steps: list[Row] = []
    seen = 0
    for row in trained(rows):
        if until_step and row["step"] > until_step:
            break
        steps.append(row)
        seen += row["train/attempts"]
        if sum(step["train/attempts"] for step in steps) >= WINDOW:
            found.append(_window(steps, seen))
            steps = []
    return found


def _window(steps: list[Row], seen: int) -> Window:
    values = {}
    for key in _AVERAGED:
        measured = [(row[key], row["train/attempts"]) for row in steps if row.get(key) is not None]
        if measured:
            values[key] = sum(value * weight for value, weight in measured) / sum(weight for _, weight in measured)
    return Window(attempts=seen, step=steps[-1]["step"], values=values)


def mean_over(rows: Sequence[Row], key: str = "train/pass_rate", *, attempts: int = 0, steps: int = 0) -> float | None:
    """Average a column, the accuracy by default, over the first attempts or steps: the area under its curve.

    None when the run is shorter.
    """
    total, seen, taken = 0.0, 0, 0
    for row in trained(rows):
        if (attempts and seen >= attempts) or (steps and taken >= steps):
            break
        weight = min(row["train/attempts"], attempts - seen) if attempts else 1
        total += weight * row[key]
        seen += weight
        taken += 1
    enough = (attempts and seen == attempts) or (steps and taken == steps)
    return total / seen if enough else None


def attempts_until(rows: Sequence[Row], level: float) -> int | None:
    """Return the attempts trained when the accuracy first reaches a level; None when it never does."""
    return next((end.attempts for end in windows(rows) if end.values["train/pass_rate"] >= level), None)


def entropy_at(rows: Sequence[Row], level: float) -> float | None:
    """Return the policy's entropy where the accuracy first passes a level, nats per token.

    Interpolated between two windows; None when the level is not crossed.
    """
    ends = windows(rows)
    for before, after in pairwise(ends):
        low, high = before.values["train/pass_rate"], after.values["train/pass_rate"]
        if low < level <= high:
            share = (level - low) / (high - low)
            start, end = before.values["policy/entropy"], after.values["policy/entropy"]
            return start + share * (end - start)
    return None


def drop(rows: Sequence[Row], *, until_step: int = 0) -> float | None:
    """Return best minus last accuracy of the windows."""
    rates = [end.values["train/pass_rate"] for end in windows(rows, until_step=until_step)]
    return max(rates) - rates[-1] if rates else None


def written_tokens(rows: Sequence[Row]) -> list[float]:
    """Return what the model itself wrote per attempt, by step: the sampled tokens, without tool output."""
    lengths, before = [], 0
    for row in trained(rows):
        lengths.append((row["tokens/trained"] - before) / row["train/attempts"])
        before = row["tokens/trained"]
    return lengths


def start_and_end(values: Sequence[float], first: int, last: int) -> tuple[float, float] | None:
    """Average the first and the last steps; None when they would overlap."""
    return (fmean(values[:first]), fmean(values[-last:])) if len(values) >= first + last else None


def nearest_step(steps: Sequence[int], rates: Mapping[int, float], target: float) -> int:
    """Return the step whose accuracy, read from the nearest window, is closest to the target."""
    if not steps or not rates:
        raise ValueError("no checkpoint to choose from")
    window_of = {step: min(rates, key=lambda end: (abs(end - step), end)) for step in steps}
    return min(steps, key=lambda step: (abs(rates[window_of[step]] - target), abs(window_of[step] - step), step))
