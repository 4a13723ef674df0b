"""report.html: one file with everything in it, no network, readable in any browser.

Invariants:
    * Text of attempts is untrusted. It travels as JSON in which `<`, `>` and `&` are escaped and is shown as text
      nodes; the page's policy runs its own script only, by hash, and loads nothing.
    * A missing file or a missing key leaves its part out; nothing is invented.
"""

from __future__ import annotations

import base64
import hashlib
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fd_async.data.ledger import read_attempts
from fd_async.errors import PreflightError
from fd_async.telemetry.progress import decimal, duration, percent, short
from fd_async.telemetry.redact import redact
from fd_async.telemetry.sinks import read_rows, replace_file
from fd_async.viewer.accounts import books
from fd_async.viewer.attempts import attempt
from fd_async.viewer.curves import charts, evaluation, merge_rows, points, total

DEFAULT_ATTEMPTS = 300
_TEMPLATE = Path(__file__).parent / "template"


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of a run, finished or not, and return its path (`run_dir/report.html` by default).

    Blocks for up to some seconds: call it in a thread.

    Raises:
        PreflightError: if `run_dir` is no run folder.
        LedgerError: if the ledger is there and unreadable.
    """
    config_path = run_dir / "config.toml"
    if not config_path.exists():
        raise PreflightError(f"{run_dir}: no config.toml there, so it is not a run folder; give runs/NAME")
    config_text = config_path.read_text(encoding="utf-8")
    config = tomllib.loads(config_text)
    rows = merge_rows(read_rows(run_dir / "metrics.jsonl"))
    ledger = run_dir / "ledger.db"
    limit = config.get("telemetry", {}).get("report_attempts", DEFAULT_ATTEMPTS)
    records = read_attempts(ledger, limit) if ledger.exists() else []
    status = _status(run_dir / "status.json")
    script = (_TEMPLATE / "report.js").read_text(encoding="utf-8")
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            name=config.get("run", {}).get("name") or run_dir.resolve().name,
            facts=_facts(config),
            phase=status.get("phase"),
            period=_period(run_dir, status),
            totals=_totals(rows, len(records), len(records) >= limit),
            evaluation=evaluation(rows),
            books=books(rows, status),
            num_attempts=len(records),
            config_text=redact(config_text),
            style=Markup((_TEMPLATE / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            data=embed({"charts": charts(rows), "attempts": [attempt(record) for record in records]}),
        )
    )
    path = out or run_dir / "report.html"
    replace_file(path, page.encode("utf-8", "replace"))
    return path


def embed(value: Any) -> Markup:
    """Return JSON that may stand inside a script element: no character in it can end the element."""
    text = msgspec.json.encode(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(percent=percent, short=short, decimal=decimal)
    return environment


def _status(path: Path) -> dict[str, Any]:
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Any]) if path.exists() else {}


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
    facts = [(label, config.get(table, {}).get(key)) for label, table, key in wanted]
    return [(label, str(value)) for label, value in facts if value not in (None, "")]


def _period(run_dir: Path, status: Mapping[str, Any]) -> str:
    """Return when the run's last process began and was last heard of, local time."""
    metrics, config = run_dir / "metrics.jsonl", run_dir / "config.toml"
    end = status.get("updated_at") or (metrics if metrics.exists() else config).stat().st_mtime
    start = end - status["elapsed_s"] if "elapsed_s" in status else config.stat().st_mtime
    shown = [time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) for moment in (start, end)]
    return f"{shown[0]} – {shown[1]} ({duration(max(0.0, end - start))})"


def _totals(rows: Sequence[Mapping[str, Any]], num_attempts: int, more: bool) -> list[tuple[str, str]]:
    """Return label and value of the figures at the top; what is unknown is left out."""
    totals: list[tuple[str, str]] = []
    if rows:
        totals.append(("steps", f"{rows[-1]['step']}"))
    table = evaluation(rows)
    for index, column in enumerate(table["columns"]):
        values = [row["cells"][index]["value"] for row in table["rows"]]
        known = [value for value in values if value is not None]
        totals.append((f"held-out {column}", " → ".join(percent(value) for value in known[:1] + known[1:][-1:])))
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
    totals.append(("attempts below, the rest in ledger.db" if more else "attempts", f"{num_attempts}"))
    return totals
