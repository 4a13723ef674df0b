"""What the report shows of metrics.jsonl: totals, curves, the evaluation table and the token accounting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from fd_async.analysis.passk import wilson_interval
from fd_async.telemetry.metrics import METRICS

Row = Mapping[str, Any]
Point = list[float]

CHARTS: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Loss", "nats/token", "line", (("loss", "loss"), ("anchor", "anchor/loss"))),
    ("Policy entropy", "nats/token", "line", (("policy", "policy/entropy"), ("teacher", "teacher/entropy"))),
    ("Feedback gain", "nats/token", "line", (
        ("teacher with feedback against without", "teacher/feedback_gain"),
        ("teacher against policy", "policy/teacher_kl"))),
    ("The teacher's top K", "share", "line", (
        ("its mass", "teacher/topk_mass"), ("the policy's mass", "policy/topk_mass"),
        ("shared with the policy's top K", "policy/topk_overlap"))),
    ("Distinct names in accepted proofs, since the start", "names", "line", (
        ("lemmas", "proofs/lemmas_total"), ("tactics", "proofs/tactics_total"))),
    ("Words of doubt per attempt", "words", "line", (
        ("all ten", "words/total"), ("wait", "words/wait"), ("check", "words/check"))),
    ("Teacher against policy under three feedbacks", "nats/token", "line", (
        ("the attempt's own", "causality/kl_true"), ("another attempt's", "causality/kl_shuffled"),
        ("none", "causality/kl_empty"))),
    ("Staleness", "versions", "line", (
        ("mean", "staleness/mean"), ("max", "staleness/max"), ("feedback, mean", "staleness/feedback_mean"))),
    ("Idle share", "share", "line", (
        ("learner", "idle/learner"), ("engine", "idle/engine"), ("verifier", "idle/verifier"),
        ("feedback", "idle/feedback"))),
    ("Queue", "samples", "line", (("depth", "queue/depth"),)),
    ("Tokens per step", "tokens", "line", (("generated", "tokens/generated"), ("trained", "tokens/trained"),
                                           ("dropped", "tokens/dropped"))),
    ("Response length", "tokens", "line", (("mean", "train/response_tokens"),)),
    ("Engine–learner KL", "nats/token", "line", (("k3", "policy/mismatch_kl"),)),
    ("Gradient norm", "norm", "line", (("before clipping", "grad_norm"),)),
    ("Event-loop lag, p99", "ms", "line", (("lag", "loop/lag_p99_ms"),)),
)  # fmt: skip
"""Title, unit, kind and (name, key) of each chart after pass rate and before time; charts without data are left out."""

LEARNING = {
    "Pass rate", "Loss", "Policy entropy", "Feedback gain", "The teacher's top K", "Response length",
    "Distinct names in accepted proofs, since the start", "Words of doubt per attempt",
    "Teacher against policy under three feedbacks",
}  # fmt: skip
"""What says whether the run learns; the other charts say whether it is healthy."""

_MOST_POINTS = 2000
_MAX_STEP = 10**12

TOTALS = {metric.key for metric in METRICS if metric.total and not metric.key.startswith("proofs/")}
"""Drawn as growth per step. How many distinct names were found is drawn as it is (paper figure 3)."""

TIME_PARTS = (
    ("waiting for a batch", "time/wait_for_batch_s"),
    ("learning", "time/learn_s"),
    ("staging weights", "time/stage_s"),
    ("push stall", "time/push_stall_s"),
    ("evaluation", "time/eval_s"),
)


def is_number(value: object) -> TypeGuard[float]:
    """Say whether a value is a number that can be drawn and sent on: finite, in 64 bits, and no bool."""
    bound = 2**63 if isinstance(value, int) else 1e300
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < bound


def is_step(value: object) -> TypeGuard[int]:
    """Say whether a value is the step of a row."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_STEP


def merge_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one row per step in order; of two rows of a step, later numbers win. What is no number becomes None."""
    merged: dict[int, dict[str, Any]] = {}
    for row in rows:
        if is_step(step := row.get("step", 0)):
            known = merged.setdefault(step, {"step": step})
            found = {key: value if is_number(value) else None for key, value in row.items()}
            known.update({key: value for key, value in found.items() if value is not None or key not in known})
    return [merged[step] for step in sorted(merged)]


def points(rows: Sequence[Row], key: str) -> list[Point]:
    """Return [step, value] where there is a value."""
    return [[row["step"], row[key]] for row in rows if row.get(key) is not None]


def increments(rows: Sequence[Row], key: str) -> list[Point]:
    """Return [step, growth since the row before] of a running total; a total that fell began again at 0."""
    grown, before = [], 0.0
    for step, value in points(rows, key):
        grown.append([step, value - before if value >= before else value])
        before = value
    return grown


def total(rows: Sequence[Row], key: str) -> float | None:
    """Return a running total over the whole run, resumes included; None when no row has it."""
    grown = increments(rows, key)
    return sum(value for _, value in grown) if grown else None


def eval_keys(rows: Sequence[Row]) -> list[str]:
    """Return the `eval/SUITE/pass@K` keys, by suite and then by k."""
    found = {key for row in rows for key in row if key.startswith("eval/") and key.rpartition("/pass@")[2].isdecimal()}
    return sorted(found, key=lambda key: (key.rpartition("/")[0], int(key.rpartition("@")[2])))


def charts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the charts that have data: pass rates first, time last."""
    passed = [("train", "train/pass_rate")]
    passed += [(key.removeprefix("eval/"), key) for key in eval_keys(rows)]
    specs = (("Pass rate", "share", "line", tuple(passed)), *CHARTS)
    made = [_chart(rows, *spec) for spec in specs]
    made.append(_time_chart(rows))
    return [chart for chart in made if chart["series"]]


def thin(points: list[Point], limit: int = _MOST_POINTS) -> list[Point]:
    """Return at most about `limit` points: the lowest and the highest of each stretch of steps, so no spike is lost."""
    if len(points) <= limit:
        return points
    width = -(-2 * len(points) // limit)
    kept = []
    for start in range(0, len(points), width):
        stretch = points[start : start + width]
        ends = {id(point): point for point in (min(stretch, key=_value), max(stretch, key=_value))}
        kept += sorted(ends.values())
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def _value(point: Point) -> float:
    return point[1]


def _chart(rows: Sequence[Row], title: str, unit: str, kind: str, names: Sequence[tuple[str, str]]) -> dict[str, Any]:
    series = [
        {
            "name": name,
            "points": found if key.startswith("eval/") else thin(found),
            "marks": key.startswith("eval/"),
            "smooth": not key.startswith("eval/") and not key.endswith("/max"),
        }
        for name, key in names
        if (found := (increments if key in TOTALS else points)(rows, key))
    ]
    about = "learning" if title in LEARNING else "health"
    return {"title": title, "unit": unit, "kind": kind, "about": about, "series": series}


def _time_chart(rows: Sequence[Row]) -> dict[str, Any]:
    """Split each step's wall time; what no part explains is `other`."""
    timed = [row for row in rows if row.get("time/step_s") is not None]
    timed = timed[:: -(-len(timed) // _MOST_POINTS) or 1]
    parts = [(name, key) for name, key in TIME_PARTS if any(row.get(key) for row in timed)]
    series = [
        {"name": name, "points": [[row["step"], row.get(key) or 0.0] for row in timed], "marks": False, "smooth": False}
        for name, key in parts
    ]
    if timed:
        rest = [
            [row["step"], max(0.0, row["time/step_s"] - sum(row.get(key) or 0.0 for _, key in parts))] for row in timed
        ]
        series.append({"name": "other", "points": rest, "marks": False, "smooth": False})
    return {"title": "Where a step's time goes", "unit": "s", "kind": "stack", "about": "health", "series": series}


def evaluation(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the evaluation table: columns, and per evaluated step the shares with 95 % intervals of pass@1."""
    keys = eval_keys(rows)
    table = []
    for row in rows:
        cells = []
        for key in keys:
            value, suite = row.get(key), key.rpartition("/")[0]
            num = row.get(f"{suite}/statements")
            known = value is not None and 0 <= value <= 1 and num is not None and num >= 1 and _at_1(key)
            interval = wilson_interval(round(value * num), round(num)) if known else None
            cells.append({"value": value, "interval": interval})
        if any(cell["value"] is not None for cell in cells):
            table.append({"step": row["step"], "cells": cells})
    return {"columns": [key.removeprefix("eval/") for key in keys], "rows": table}


def _at_1(key: str) -> bool:
    return key.endswith("/pass@1")


def accounting(rows: Sequence[Row], outcomes: Mapping[str, int]) -> list[dict[str, Any]]:
    """Return where every generated training token went: name, tokens, share, and whether the books close.

    Args:
        rows: As `merge_rows` gives them; the last one with token counts decides.
        outcomes: Tokens per outcome of status.json, which split the dropped ones by cause when they are of that row.
    """
    row = next((row for row in reversed(rows) if row.get("tokens/generated") is not None), None)
    if row is None:
        return []
    generated, trained, dropped = (row.get(f"tokens/{name}") or 0 for name in ("generated", "trained", "dropped"))
    causes = {
        name: tokens
        for name, tokens in sorted(outcomes.items())
        if name[:8] == "dropped:" and is_number(tokens) and tokens
    }
    if sum(causes.values()) != dropped:
        causes = {"dropped": dropped}
    queued, rest = row.get("tokens/queued"), generated - trained - dropped
    lines: list[tuple[str, float, bool]] = [("trained", trained, True)]
    lines += [(name.replace(":", ": "), tokens, True) for name, tokens in causes.items()]
    if queued is None:
        lines.append(("queued or in flight, by difference", rest, rest >= 0))
    else:
        lines += [("queued", queued, True), ("unaccounted", rest - queued, rest == queued)]
    lines.append(("generated", generated, True))
    return [
        {"name": name, "tokens": tokens, "share": tokens / generated if generated else None, "ok": ok}
        for name, tokens, ok in lines
    ]
