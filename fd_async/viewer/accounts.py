"""Where tokens, money and time of a run went, as tables whose parts sum to their last line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fd_async.telemetry.accounts import ENGINE, LEARNER
from fd_async.telemetry.progress import duration
from fd_async.viewer.curves import Row, accounting

_CLOSES_USD = 1e-6
_DOING = {
    "waiting": "waiting for a batch",
    "learning": "learning",
    "pushing": "pushing weights",
    "evaluating": "evaluation",
    "checkpoint": "checkpoints",
    "rollback": "rollbacks",
    "restarting": "restarting ranks",
    "generating": "generating",
    "idle": "without a request",
    "push": "held by a push",
    "down": "dead",
    "other": "everything else",
}
_PAID = {
    "trained": "feedback that was trained on",
    "queued": "feedback of attempts that wait",
    "dropped": "feedback of attempts that were dropped",
    "wasted": "answers that gave no feedback",
    "unrecorded": "calls in flight",
}


def books(rows: Sequence[Row], status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the tables that have data: title, what is counted, and lines of name, text, share and whether it closes.

    Args:
        rows: as `merge_rows` gives them; seconds are those of all processes up to the last row.
        status: of status.json.
    """
    outcomes = status.get("tokens")
    tokens = [
        {"name": line["name"], "text": f"{line['tokens']:,.0f}", "share": line["share"], "ok": line["ok"]}
        for line in accounting(rows, outcomes if isinstance(outcomes, dict) else {})
    ]
    made = [
        ("Generated tokens", "training attempts", tokens),
        ("Money", "US dollars", _dollars(rows)),
        ("Time of the learner", "wall time", _seconds(rows, "learner", LEARNER)),
        ("Time of the engine", "wall time", _seconds(rows, "engine", ENGINE)),
    ]
    return [{"title": title, "of": of, "lines": lines} for title, of, lines in made if lines]


def _dollars(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Split the money of the last row that has it; nothing where feedback is free."""
    row = next((row for row in reversed(rows) if row.get("usd/trained") is not None), None)
    if row is None or not row.get("feedback/usd"):
        return []
    spent = row["feedback/usd"]
    parts = {name: row.get(f"usd/{key}") or 0.0 for key, name in _PAID.items()}
    lines = [_line(name, f"{usd:,.2f}", usd / spent) for name, usd in parts.items() if usd]
    if abs(missing := spent - sum(parts.values())) > _CLOSES_USD:
        lines.append(_line("unaccounted", f"{missing:,.2f}", missing / spent, ok=False))
    return [*lines, _line("spent", f"{spent:,.2f}", 1.0)]


def _seconds(rows: Sequence[Row], side: str, states: Sequence[str]) -> list[dict[str, Any]]:
    parts = {state: sum(row.get(f"{side}/{state}_s") or 0.0 for row in rows) for state in states}
    wall = sum(parts.values())
    if not wall:
        return []
    lines = [_line(_DOING[s], duration(parts[s]), parts[s] / wall) for s in sorted(parts, key=lambda s: -parts[s])]
    return [*(line for line in lines if line["share"]), _line("all", duration(wall), 1.0)]


def _line(name: str, text: str, share: float, *, ok: bool = True) -> dict[str, Any]:
    return {"name": name, "text": text, "share": share, "ok": ok}
