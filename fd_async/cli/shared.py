"""What several commands need: the log of errors, a run's folder, keys kept out of what is printed."""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path

import msgspec

from fd_async.config.schema import RunConfig
from fd_async.errors import ConfigError
from fd_async.telemetry.redact import protect, protect_environment, redact

STARTED = ("ledger.db", "metrics.jsonl", "checkpoints")
"""What a run folder holds once the run has begun; a folder without them may be used again."""


class ErrorLog:
    """Where the traceback of a failed command goes; nowhere until the run folder is known."""

    def __init__(self) -> None:
        self.path: Path | None = None

    def write(self, error: BaseException) -> Path | None:
        """Append the traceback; return the file, or None where there is none."""
        if self.path is None:
            return None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(time.strftime("%Y-%m-%d %H:%M:%S\n"))
                file.write(redact("".join(traceback.format_exception(error))))
        except OSError as failure:
            print(f"cannot write {self.path}: {failure.strerror}", file=sys.stderr)
            return None
        return self.path


def protect_keys(config: RunConfig) -> None:
    """Keep the keys out of all that is printed and written, also those whose variables do not look like a key's."""
    protect_environment()
    tables = (config.feedback, config.fallback, config.verifier)
    for name in (config.policy.servers_key_env, *(table.api_key_env for table in tables)):
        protect(os.environ.get(name, ""), name)


def run_folder(name: str) -> Path:
    """Take a folder, or the name of a run below the usual folder of runs."""
    runs = Path(msgspec.structs.fields(RunConfig)[0].default.dir)
    for folder in (Path(name), runs / name):
        if folder.is_dir():
            return folder
    known = sorted(entry.name for entry in runs.iterdir() if entry.is_dir()) if runs.is_dir() else []
    there = f"name one of {runs}/: {', '.join(known)}" if known else f"{runs}/ holds none; give the folder of a run"
    raise ConfigError(f"there is no run {name}; {there}")


def has_begun(run_dir: Path) -> bool:
    """Say whether the folder holds anything of value; a start that was refused leaves nothing of it."""
    from fd_async.data.ledger import is_empty

    ledger, metrics, checkpoints = (run_dir / name for name in STARTED)
    return (
        (metrics.exists() and metrics.stat().st_size > 0)
        or (checkpoints.is_dir() and any(checkpoints.iterdir()))
        or (ledger.exists() and not is_empty(ledger))
    )
