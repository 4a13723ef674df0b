"""metrics.jsonl: one JSON object per row, on disk before `append` returns.

Invariants:
    * Whole lines only: a line cut by a crash or a full disk is removed, never read.
    * After a resume from step s no row with step > s is left, so no step appears from two histories.
    * File work runs in a thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import msgspec

from fd_async.errors import PreflightError
from fd_async.scratch import is_alive
from fd_async.telemetry.metrics import complete_row

_FULL = {errno.ENOSPC, errno.EDQUOT}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file, without a last line that was cut; [] without a file.

    Raises:
        PreflightError: if a line before the last is not a JSON object.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(msgspec.json.decode(line, type=dict[str, Any]))
        except msgspec.MsgspecError as error:
            if number == len(lines):
                continue
            raise PreflightError(f"{path}:{number}: not a JSON object ({error}); remove that line") from error
    return rows


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that a reader or a crash sees the old content or the new one, nothing between."""
    for left_by_a_kill in path.parent.glob(f".{path.name}.*.tmp"):
        pid = left_by_a_kill.name.split(".")[-2]
        if pid.isdigit() and not is_alive(int(pid)):
            left_by_a_kill.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


class MetricsFile:
    """Appends rows. `open` it, `append` one row per step, `aclose` it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._lock = anyio.Lock()

    async def open(self, resume_step: int | None = None) -> None:
        """Create the file, or keep the rows up to `resume_step` and drop those after it.

        Raises:
            PreflightError: if the file has rows and this is no resume, if it is damaged, or if the disk is full.
        """
        await anyio.to_thread.run_sync(self._open, resume_step)

    async def append(self, row: Mapping[str, float | int | None]) -> None:
        """Write one row, completed with null for the columns it lacks, and wait until it is on disk.

        Raises:
            PreflightError: if the disk is full; the file is left with whole lines.
        """
        async with self._lock:
            await anyio.to_thread.run_sync(self._append, complete_row(row))

    async def aclose(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self, resume_step: int | None) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            rows = read_rows(self.path)
            if rows and resume_step is None:
                raise PreflightError(f"{self.path} has {len(rows)} rows already: use --resume or another --run name")
            kept = [row for row in rows if row.get("step", 0) <= (resume_step or 0)]
            replace_file(self.path, b"".join(msgspec.json.encode(row) + b"\n" for row in kept))
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise _disk_error(error, self.path) from error

    def _append(self, row: dict[str, float | int | None]) -> None:
        if self._fd is None:
            raise RuntimeError("MetricsFile.append before open")
        line = msgspec.json.encode(row) + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            _write_all(self._fd, line)
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, size)
            raise _disk_error(error, self.path) from error


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _disk_error(error: OSError, path: Path) -> PreflightError:
    if error.errno in _FULL:
        return PreflightError(f"{path}: the disk is full; free space there, then continue with --resume")
    return PreflightError(f"{path}: cannot be written: {error.strerror or error}")
