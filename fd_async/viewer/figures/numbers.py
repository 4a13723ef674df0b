"""The table of final and best values, with what is known of their uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from fd_async.analysis.passk import Z_95, wilson, wilson_interval
from fd_async.viewer.figures.curves import Missing, curve, resolve_key
from fd_async.viewer.figures.runs import Group, Run, points
from fd_async.viewer.figures.table import ENTROPY, LENGTH, MINIF2F, TEACHER_KL, TEST, TRAIN, Panel

LAST = 20
"""Steps whose mean is a final value, where each step measures little: pass rate, entropy, length, KL."""
_MEANS = (TRAIN, ENTROPY, LENGTH, TEACHER_KL, Panel("Epistemic words", "words/total", "per attempt"))
_COUNTS = (
    Panel("Distinct lemmas", "proofs/lemmas_total", "names"),
    Panel("Distinct tactics", "proofs/tactics_total", "names"),
)


class Number(Struct, frozen=True, kw_only=True):
    """One value of one label."""

    label: str
    quantity: str
    key: str
    unit: str
    statistic: str
    """`final`, `best`, or the mean of the last steps (LAST, or all where a run has fewer)."""
    step: int
    """As drawn: counted from the start of the run it was started from."""
    value: float
    low: float | None = None
    high: float | None = None
    interval: str = ""
    """What `low` and `high` are."""

    @property
    def shown(self) -> str:
        text = f"{100 * self.value:.1f}%" if self.unit == "share" else short(self.value)
        if self.low is None or self.high is None:
            return text
        ends = (f"{100 * end:.1f}" if self.unit == "share" else short(end) for end in (self.low, self.high))
        return f"{text} [{', '.join(ends)}]"


def numbers(groups: Sequence[Group], parts: Mapping[str, str]) -> list[Number]:
    """Return final and best values of every label; what a label lacks is left out.

    One run: Wilson's 95 % interval over statements, where their number is recorded. Seeds: mean, and the lowest and
    highest of them. The best of many evaluations is too high by chance; `final` is not.
    """
    found: list[Number] = []
    for group in groups:
        for panel in (TEST, MINIF2F):
            found += _evaluated(group, panel, resolve_key(panel, parts))
        for panel in _MEANS:
            found += _mean(group, panel)
        for panel in _COUNTS:
            found += _final(group, panel)
    return found


def short(value: float) -> str:
    """Write a number of an axis or a table in a few characters."""
    size = abs(value)
    if size >= 1e10:
        return f"{value:.3g}"
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if 0 < size < 1e-4:
        return f"{value:.1e}"
    return f"{value:.4g}" if size >= 100 else f"{value:.3g}"


def _evaluated(group: Group, panel: Panel, key: str) -> list[Number]:
    one = curve(group, 0, panel, key)
    if isinstance(one, Missing):
        return []
    best = max(range(len(one.x)), key=lambda index: (one.y[index], -one.x[index]))
    made = []
    for statistic, index in (("final", len(one.x) - 1), ("best", best)):
        low, high, interval = None, None, ""
        if one.low is not None and one.high is not None:
            low, high, interval = one.low[index], one.high[index], "seeds"
        elif num := _value_at(group.runs[0], f"{key.rpartition('/')[0]}/statements", one.x[index]):
            low, high = wilson_interval(round(one.y[index] * num), round(num))
            interval = "Wilson 95 %, statements"
        made.append(_number(group, panel, key, statistic, one.x[index], one.y[index], low, high, interval))
    return made


def _mean(group: Group, panel: Panel) -> list[Number]:
    one = curve(group, 0, panel, panel.key)
    if isinstance(one, Missing):
        return []
    steps = set(one.x[-LAST:])
    means = [_mean_of(run, panel.key, steps) for run in group.runs]
    value, low, high, interval = sum(means) / len(means), None, None, ""
    if len(means) > 1:
        low, high, interval = min(means), max(means), "seeds"
    elif panel is TRAIN:
        attempts = [num for step, num in points(group.runs[0], "train/attempts") if step in steps]
        at_one = group.runs[0].setting("rollout.samples_per_prompt")
        num = round(sum(attempts) / at_one) if isinstance(at_one, int) and at_one > 0 else 0
        if len(attempts) == len(steps) and num:  # attempts at one statement are no independent evidence
            low, high = wilson(value, num, Z_95)
            interval = "Wilson 95 %, statements"
    return [_number(group, panel, panel.key, f"mean of the last {LAST}", one.x[-1], value, low, high, interval)]


def _final(group: Group, panel: Panel) -> list[Number]:
    one = curve(group, 0, panel, panel.key)
    if isinstance(one, Missing):
        return []
    low, high = (one.low[-1], one.high[-1]) if one.low is not None and one.high is not None else (None, None)
    interval = "seeds" if low is not None else ""
    return [_number(group, panel, panel.key, "final", one.x[-1], one.y[-1], low, high, interval)]


def _number(
    group: Group,
    panel: Panel,
    key: str,
    statistic: str,
    step: int,
    value: float,
    low: float | None,
    high: float | None,
    interval: str,
) -> Number:
    return Number(
        label=group.label, quantity=panel.title, key=key, unit=panel.unit, statistic=statistic, step=step, value=value,
        low=low, high=high, interval=interval,
    )  # fmt: skip


def _mean_of(run: Run, key: str, steps: set[int]) -> float:
    values = [value for step, value in points(run, key) if step in steps]
    return sum(values) / len(values)


def _value_at(run: Run, key: str, step: int) -> float | None:
    return next((value for at, value in points(run, key) if at == step), None)
