"""report.html: one file with everything in it, no network, readable in any browser.

Invariants:
    * Text of attempts is untrusted. It travels as JSON in which `<`, `>` and `&` are escaped and is shown as text
      nodes; the page's policy runs its own script only, by hash, and loads nothing.
    * A missing file or a missing key leaves its part out; nothing is invented.
"""

from __future__ import annotations

import base64
import hashlib
import tomllib
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fd_async.data.ledger import read_attempts
from fd_async.errors import PreflightError
from fd_async.telemetry.redact import redact
from fd_async.telemetry.sinks import read_rows, replace_file
from fd_async.viewer.assets import embed, render, script, style
from fd_async.viewer.attempts import attempt
from fd_async.viewer.curves import merge_rows
from fd_async.viewer.documents import Document
from fd_async.viewer.summary import period, summary

DEFAULT_ATTEMPTS = 300


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the report of a run or an evaluation, finished or not; return its path (`run_dir/report.html` by default).

    Blocks for up to some seconds: call it in a thread.

    Raises:
        PreflightError: if `run_dir` is no run folder, or a file in it is no JSON.
        LedgerError: if the ledger is there and unreadable.
    """
    config_text = read_config(run_dir)
    config = tomllib.loads(config_text)
    rows = merge_rows(read_rows(run_dir / "metrics.jsonl"))
    ledger = run_dir / "ledger.db"
    limit = config.get("telemetry", {}).get("report_attempts", DEFAULT_ATTEMPTS)
    records = read_attempts(ledger, limit) if ledger.exists() else []
    status, result = _document(run_dir / "status.json"), _document(run_dir / "result.json")
    shown = summary(config, rows, status, result)
    more = len(records) >= limit
    shown["totals"].append(("attempts below, the rest in ledger.db" if more else "attempts", f"{len(records)}"))
    code = script("report")
    page = render(
        "report.html.j2",
        name=config.get("run", {}).get("name") or run_dir.resolve().name,
        phase=status.get("phase"),
        period=period(run_dir, status),
        num_attempts=len(records),
        config_text=redact(config_text),
        style=Markup(style("report")),
        script=Markup(code),
        script_hash=base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
        data=embed({**shown, "attempts": [attempt(record) for record in records]}),
    )
    path = out or run_dir / "report.html"
    replace_file(path, page.encode("utf-8", "replace"))
    return path


def read_config(run_dir: Path) -> str:
    """Return the text of config.toml.

    Raises:
        PreflightError: if there is none.
    """
    try:
        return (run_dir / "config.toml").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PreflightError(f"{run_dir}: no config.toml there, so it is not a run folder; give runs/NAME") from None


def _document(path: Path) -> dict[str, Any]:
    document = Document(path)
    document.refresh()
    if document.error:
        raise PreflightError(f"{path.parent}: {document.error}; remove that file")
    return document.value
