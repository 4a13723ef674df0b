"""What a run is and how it stands, as the page's script reads it: small JSON objects, nothing rendered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from fd_async.telemetry.progress import duration, percent, short
from fd_async.telemetry.redact import redact
from fd_async.viewer.accounts import books
from fd_async.viewer.curves import charts, evaluation, is_number, points, total

_ENDED = ("done", "failed", "stopped", "interrupted")
_SILENT_S = 30.0
"""status.json is written every two seconds or so while a run goes on."""


def summary(
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    status: Mapping[str, Any],
    result: Mapping[str, Any],
) -> dict[str, Any]:
    """Return facts, totals, charts and tables; a part without data is empty.

    Args:
        config: of config.toml.
        rows: as `merge_rows` gives them.
        status: of status.json.
        result: of the result.json of an evaluation.
    """
    return {
        "facts": _facts(config),
        "totals": _totals(rows) + _scores(result),
        "charts": charts(rows),
        "evaluation": suites(result) if result else evaluation(rows),
        "books": books(rows, status),
    }


def standing(status: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Return how the run stands at this moment, from status.json."""
    phase = str(status.get("phase") or "")
    silent_s = max(0.0, now - status["updated_at"]) if is_number(status.get("updated_at")) else None
    waits = status.get("waits")
    return {
        "phase": phase,
        "alive": bool(phase) and phase not in _ENDED and silent_s is not None and silent_s < _SILENT_S,
        "silent": duration(silent_s) if silent_s is not None and phase not in _ENDED and silent_s >= _SILENT_S else "",
        "error": redact(str(status.get("error") or "")),
        "step": status.get("step"),
        "max_steps": status.get("max_steps"),
        "figures": _figures(status),
        "flow": _flow(status),
        "waits": [wait for wait in waits if isinstance(wait, dict)] if isinstance(waits, list) else [],
        "alarms": {str(name): redact(str(text)) for name, text in _table(status, "alarms").items()},
        "dropped": _table(status, "dropped"),
    }


def suites(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of an evaluation's result.json: a line per suite, pass@k with its interval."""
    given = result.get("suites")
    found = [suite for suite in given if isinstance(suite, dict)] if isinstance(given, list) else []
    ks = sorted({int(k) for suite in found for k in _table(suite, "pass_at") if k.isdecimal()})
    lines = []
    for suite in found:
        measured = [_table(suite, "pass_at").get(str(k)) for k in ks]
        measured = [cell if isinstance(cell, list) and all(map(is_number, cell)) else None for cell in measured]
        cells = [{"value": cell[0] if cell else None, "interval": (cell or ())[1:3] or None} for cell in measured]
        lines.append({"label": str(suite.get("suite")), "cells": cells})
    return {"columns": [f"pass@{k}" for k in ks], "rows": lines}


def period(run_dir: Path, status: Mapping[str, Any]) -> str:
    """Return when the run's last process began and was last heard of, local time."""
    metrics, config = run_dir / "metrics.jsonl", run_dir / "config.toml"
    end, lasted = status.get("updated_at"), status.get("elapsed_s")
    if not _is_moment(end):
        end = (metrics if metrics.exists() else config).stat().st_mtime
    start = end - lasted if _is_moment(lasted) and lasted <= end else config.stat().st_mtime
    shown = [time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) for moment in (start, end)]
    return f"{shown[0]} – {shown[1]} ({duration(max(0.0, end - start))})"


def _facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the few settings that tell runs apart."""
    wanted = (
        ("model", "model", "path"),
        ("initialised from", "model", "init_from"),
        ("algorithm", "algorithm", "type"),
        ("feedback", "feedback", "type"),
        ("feedback model", "feedback", "model"),
        ("verifier", "verifier", "backend"),
        ("mode", "run", "mode"),
        ("prompts per step", "learner", "prompts_per_step"),
        ("samples per prompt", "rollout", "samples_per_prompt"),
        ("learning rate", "learner", "lr"),
        ("staleness bound", "admission", "max_staleness"),
        ("seed", "run", "seed"),
    )
    facts = [(label, _table(config, table).get(key)) for label, table, key in wanted]
    return [(label, redact(str(value))) for label, value in facts if value not in (None, "")]


def _totals(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return label and value of the figures at the top; what is unknown is left out."""
    if not rows:
        return []
    totals: list[tuple[str, str]] = [("steps", f"{rows[-1]['step']}")]
    table = evaluation(rows)
    for index, column in enumerate(table["columns"]):
        values = [row["cells"][index]["value"] for row in table["rows"]]
        known = [value for value in values if value is not None]
        totals.append(
            (f"held-out {column.replace('/', ' ')}", " → ".join(percent(value) for value in known[:1] + known[1:][-1:]))
        )
    counters = (
        ("tokens generated", "tokens/generated", short),
        ("proof checks", "lean/checks", short),
        ("feedback calls", "feedback/calls", short),
        ("spent", "feedback/usd", lambda usd: f"${usd:,.2f}"),
    )
    totals += [(label, show(value)) for label, key, show in counters if (value := total(rows, key)) is not None]
    if num_alarmed := sum(bool(value) for _, value in points(rows, "alarms/raised")):
        totals.append(("steps with an alarm", f"{num_alarmed}"))
    if rollbacks := points(rows, "alarms/rollback_to"):
        totals.append(("rolled back", ", ".join(f"step {step} to {to_step}" for step, to_step in rollbacks)))
    totals.append(("time in steps", duration(sum(value for _, value in points(rows, "time/step_s")))))
    return totals


def _scores(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    table = suites(result)
    return [
        (f"{row['label']} {column}", percent(cell["value"]))
        for row in table["rows"]
        for column, cell in zip(table["columns"], row["cells"], strict=True)
        if cell["value"] is not None
    ][:8]


def _flow(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return every stage with its number, in the order of the flow, so that none comes and goes."""
    ready = f"{status.get('ready') or 0}/{status.get('batch') or 0}"
    return [(str(name), ready if name == "ready" else str(num)) for name, num in _table(status, "stages").items()]


def _figures(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    wanted = (
        ("solved lately", "pass_rate", percent),
        ("tokens/s", "tokens_per_s", short),
        ("spent", "usd", lambda usd: f"${usd:,.2f}"),
        ("time left", "eta_s", duration),
        ("attempts under way", "outstanding", short),
        ("room for more", "capacity", short),
    )
    return [(label, show(value)) for label, key, show in wanted if is_number(value := status.get(key))]


def _is_moment(seconds: Any) -> TypeGuard[float]:
    return is_number(seconds) and 0 <= seconds < 1e11


def _table(source: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = source.get(key)
    return value if isinstance(value, dict) else {}
