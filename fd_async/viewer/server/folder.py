"""The run folder as it grows: rows of metrics.jsonl, status.json, result.json, and what is wrong with them.

`refresh` reads only what is new. What cannot be read becomes a line for people, and what was read before stays.
"""

from __future__ import annotations

import bisect
import json
import os
import time
import tomllib
from operator import itemgetter
from pathlib import Path
from typing import Any

from fd_async.data.ledger.browsing import read_mark
from fd_async.errors import LedgerError
from fd_async.telemetry.redact import redact
from fd_async.viewer.curves import is_step, merge_rows
from fd_async.viewer.documents import Document
from fd_async.viewer.report import read_config
from fd_async.viewer.summary import period, standing, summary


class Rows:
    """Follows metrics.jsonl: whole lines as they are appended, all of it where the file was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: tuple[int, int] | None = None
        self._offset = self._num_lines = 0
        self.rows: list[dict[str, Any]] = []
        self.bad_lines: list[int] = []

    def refresh(self) -> bool:
        """Read what was appended; say whether anything changed.

        Raises:
            OSError: the file is there and cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                self._begin_anew_if_replaced(file.fileno())
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")  # a last line without its end is still being written
        except FileNotFoundError:
            return False
        if not newline:
            return False
        self._offset += len(whole) + 1
        added = [row for line in whole.split(b"\n") if (row := self._parse(line)) is not None]
        if added:
            begin = bisect.bisect_left(self.rows, min(row["step"] for row in added), key=itemgetter("step"))
            self.rows[begin:] = merge_rows([*self.rows[begin:], *added])
        return True

    def _begin_anew_if_replaced(self, fd: int) -> None:
        stat = os.fstat(fd)
        if self._file != (stat.st_dev, stat.st_ino) or stat.st_size < self._offset:
            self._file = (stat.st_dev, stat.st_ino)
            self._offset = self._num_lines = 0
            self.rows, self.bad_lines = [], []

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        self._num_lines += 1
        if not line.strip():
            return None
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not is_step(row.setdefault("step", 0)):
            self.bad_lines.append(self._num_lines)
            return None
        return row


class RunFolder:
    """All that the page shows but the attempts. Used by one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / "ledger.db"
        self._config_text = read_config(path)
        self._config = tomllib.loads(self._config_text)
        self.name = str(self._config.get("run", {}).get("name") or path.resolve().name)
        self._rows = Rows(path / "metrics.jsonl")
        self._status, self._result = Document(path / "status.json"), Document(path / "result.json")
        self._version = 0
        self._born = time.time_ns()

    def refresh(self) -> dict[str, Any]:
        """Look at the folder again; return what changes from second to second.

        `version` tells when `overview` would say something new, `mark` when the attempts would.
        """
        notices: list[str] = []
        num_attempts, mark = None, None
        if not self.path.is_dir():
            notices.append(f"{self.path} is gone: deleted or moved. This page shows what was read before")
        else:
            phase = self._status.value.get("phase")
            self._status.refresh()
            changed = self._result.refresh() or phase != self._status.value.get("phase")
            try:
                changed |= self._rows.refresh()
            except OSError as error:
                notices.append(f"metrics.jsonl cannot be read: {error.strerror or error}")
            self._version += changed
            try:
                num_attempts, mark = read_mark(self.ledger) if has_ledger(self.ledger) else (0, 0)
            except LedgerError as error:
                notices.append(str(error))
        notices += [document.error for document in (self._status, self._result) if document.error]
        if bad := self._rows.bad_lines:
            lines = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
            notices.append(f"metrics.jsonl: left out {len(bad)} lines that are no JSON object with a step: {lines}")
        now = standing(self._status.value, time.time())
        return {
            **now,
            "phase": now["phase"] or self._phase_of_evaluation(num_attempts),
            "name": self.name,
            "version": f"{self._born}-{self._version}",
            "mark": mark,
            "attempts": num_attempts,
            "notices": [redact(notice) for notice in notices],
        }

    def _phase_of_evaluation(self, num_attempts: int | None) -> str:
        """Tell an evaluation, which has neither metrics nor status, from a run that has not begun."""
        if self._result.value:
            return "evaluated"
        return "evaluating" if num_attempts and not self._rows.rows and not self._status.value else ""

    def overview(self) -> dict[str, Any]:
        """Return facts, totals, charts and tables as of the last `refresh`."""
        shown = summary(self._config, self._rows.rows, self._status.value, self._result.value)
        return {**shown, "period": self._period(), "config": redact(self._config_text)}

    def _period(self) -> str:
        try:
            return period(self.path, self._status.value)
        except OSError:  # the folder is gone, which `refresh` says
            return ""


def has_ledger(path: Path) -> bool:
    """Say whether there is anything to open: a run makes the file before its first attempt."""
    return path.exists() and path.stat().st_size > 0
