"""One curve per label: the run's values, or mean and band over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct, field

from fd_async.viewer.figures.runs import Group, Run, points
from fd_async.viewer.figures.table import Figure, Panel

SMOOTH_FROM = 60
"""A panel with a curve of at least so many steps shows running means."""
MAX_DRAWN = 600
"""Points of a drawn curve; more than a figure can show."""


class Curve(Struct, frozen=True, kw_only=True):
    """What one label shows in one panel. Lists agree in length; `low` and `high` are the lowest and highest seed."""

    label: str
    colour: int
    """Place of the label among all labels: the same in all figures."""
    x: list[int]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None
    num_runs: int = 1
    marks: bool = False
    """Draw the points themselves: they are evaluations or few."""
    is_total: bool = False
    """Made of a running total, which is smooth already."""
    window: int = 1
    """Steps that were averaged for the drawing."""
    note: str = ""
    """What of the seeds is not in the curve."""

    @property
    def is_averaged(self) -> bool:
        """Say whether neighbouring steps may be averaged for the drawing."""
        return not self.marks and not self.is_total


class Missing(Struct, frozen=True):
    """A label that has nothing to draw in a panel, and why."""

    label: str
    why: str


class Drawn(Struct, kw_only=True):
    """One figure with what is in it and what is not."""

    figure: Figure
    panels: list[tuple[Panel, str, list[Curve]]] = field(default_factory=list)
    """With the column's name; curves in full, as the CSV has them."""
    missing: list[tuple[str, Missing]] = field(default_factory=list)
    """Title of the panel, and who has nothing to draw in it."""
    notes: list[str] = field(default_factory=list)

    @property
    def has_data(self) -> bool:
        return any(curves for _, _, curves in self.panels)

    def groups(self, groups: Sequence[Group]) -> list[Group]:
        """Return those of which something is drawn."""
        labels = {one.label for _, _, curves in self.panels for one in curves}
        return [group for group in groups if group.label in labels]


def resolve_key(panel: Panel, parts: Mapping[str, str]) -> str:
    """Return the column of a panel; a part that no run evaluates stays in braces."""
    key = panel.key
    for part, suite in parts.items():
        key = key.replace(f"{{{part}}}", suite)
    return key


def curve(group: Group, place: int, panel: Panel, key: str) -> Curve | Missing:
    """Return a label's curve. Of seeds, only the steps that all of them have are drawn.

    Args:
        place: Index of the label among all labels.
        key: As `resolve_key` gives it.
    """
    found = [dict(points(run, key, per_step=panel.transform == "per step")) for run in group.runs]
    if not all(found):
        empty = [run for run, values in zip(group.runs, found, strict=True) if not values]
        whys = [_why(run, key) for run in empty]
        if len(empty) == len(group.runs) and len(set(whys)) == 1:
            return Missing(group.label, whys[0])
        return Missing(group.label, "; ".join(f"{run.name}: {why}" for run, why in zip(empty, whys, strict=True)))
    shared = sorted(set.intersection(*(set(values) for values in found)))
    if not shared:
        return Missing(group.label, f"its runs have {key} at no common step")
    rows = [[values[step] for values in found] for step in shared]
    several = len(found) > 1
    longer = [run.name for run, values in zip(group.runs, found, strict=True) if max(values) > shared[-1]]
    return Curve(
        label=group.label,
        colour=place,
        x=shared,
        y=[sum(row) / len(row) for row in rows],
        low=[min(row) for row in rows] if several else None,
        high=[max(row) for row in rows] if several else None,
        num_runs=len(found),
        marks=panel.is_evaluated or len(shared) < 3,
        is_total=panel.transform == "per step",
        note=f"{group.label}: drawn to step {shared[-1]}, which all its runs have; {', '.join(longer)} went further"
        if longer
        else "",
    )


def thinned(curves: Sequence[Curve]) -> list[Curve]:
    """Return the curves of a panel as they are drawn: averaged, and with no more points than can be seen.

    All take the window that suits the longest, unless they are so short that nothing of them would be left.
    """
    longest = max((len(one.x) for one in curves if one.is_averaged), default=0)
    half = max(2, longest // 60) if longest >= SMOOTH_FROM else 0
    return [_thinned(one, min(half, len(one.x) // 10) if one.is_averaged else 0) for one in curves]


def _thinned(one: Curve, half: int) -> Curve:
    every = max(1, -(-len(one.x) // MAX_DRAWN))
    kept = sorted({*range(0, len(one.x), every), len(one.x) - 1})

    def drawn(values: list[float]) -> list[float]:
        smooth = running_mean(values, half)
        return [smooth[index] for index in kept]

    return msgspec.structs.replace(
        one,
        x=[one.x[index] for index in kept],
        y=drawn(one.y),
        low=drawn(one.low) if one.low is not None else None,
        high=drawn(one.high) if one.high is not None else None,
        window=2 * half + 1,
    )


def running_mean(values: Sequence[float], half: int) -> list[float]:
    """Return the mean over up to `half` values before and after each; fewer at the ends."""
    if not half:
        return list(values)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [
        (sums[min(len(values), index + half + 1)] - sums[max(0, index - half)])
        / (min(len(values), index + half + 1) - max(0, index - half))
        for index in range(len(values))
    ]


def _why(run: Run, key: str) -> str:
    if run.problem:
        return run.problem
    if "{" in key:
        return f"evaluates no suite that is {'MiniF2F' if 'minif2f' in key else 'held out'}"
    return f"no {key} in metrics.jsonl"
