"""Whether what goes on in a container is well: cheap enough to be asked every minute, without GPUs, torch or Lean.

A run's health is its pulse: `status.json`, which the event loop writes every few seconds from the first second to the
last. Asking what `fd-check` asks would be wrong there: the run itself fills the memory of the GPUs and holds the ports.
"""

from __future__ import annotations

import json
import time
from importlib.util import find_spec
from pathlib import Path

import psutil

from fd_async.preflight.findings import Finding

PULSE_S = 120.0
"""An event loop that has not written for this long is blocked, or its disk is."""
_CLOCK_S = 2.0
"""Start times of processes are rounded."""
_NEEDED = ("torch", "vllm", "deepspeed")


def health(runs: Path) -> Finding:
    """Look at the newest run below a folder, or at the environment where no run is going."""
    files = [(file.stat().st_mtime, file) for file in runs.glob("*/status.json")]
    for _, file in sorted(files, reverse=True):
        if (found := _pulse(file)) is not None:
            return found
    lacking = [name for name in _NEEDED if find_spec(name) is None]
    if lacking:
        return Finding("missing", "environment", f"lacks {', '.join(lacking)}", "make the image anew")
    return Finding("ok", "environment", f"no run is going in {runs}/")


def _pulse(file: Path) -> Finding | None:
    """Return how the run is; None where its process is not there, or the file is no status."""
    try:
        status = json.loads(file.read_bytes())
        pid, updated_at, phase = int(status["pid"]), float(status["updated_at"]), str(status.get("phase", ""))
        # Another process may have the number: in a container that was started again they all begin anew.
        is_there = psutil.Process(pid).create_time() <= updated_at + _CLOCK_S
    except (OSError, ValueError, OverflowError, KeyError, TypeError, psutil.Error):
        return None
    if not is_there:
        return None
    age, run = max(0.0, time.time() - updated_at), file.parent.name
    where = f"{run}: {phase}, step {status.get('step')} of {status.get('max_steps')}"
    if age > PULSE_S:
        advice = f"see {file.parent}/logs/controller.jsonl; the run ends itself after run.stall_abort_s"
        return Finding("missing", "pulse", f"{where}, last sign {age:.0f} s ago", advice)
    return Finding("ok", "pulse", f"{where}, last sign {age:.0f} s ago")
