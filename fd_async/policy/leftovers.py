"""Shared memory that killed engine processes leave behind: named when they start, removed when they are gone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from multiprocessing import resource_tracker
from pathlib import Path

import psutil

_SHARED_MEMORY = Path("/dev/shm")
_KINDS = {"sem.mp-": "semaphore", "psm_": "shared_memory"}
"""Prefix of a name that Python's multiprocessing makes -> how its resource tracker calls the kind."""


def shared_files(processes: Iterable[psutil.Process]) -> list[Path]:
    """Return the semaphores and shared memory of Python's making that the processes have mapped."""
    held = {inode for process in processes for inode in _mapped_inodes(process.pid)}
    if not held:
        return []
    # A semaphore is mapped under the name that it had before it got its own: only the inode tells.
    files = (entry for entry in os.scandir(_SHARED_MEMORY) if entry.name.startswith(tuple(_KINDS)))
    return [Path(entry.path) for entry in files if entry.inode() in held]


def remove_shared_files(files: Iterable[Path]) -> None:
    """Remove those that their processes did not, and tell the resource tracker, which would complain at the end."""
    for file in files:
        try:
            file.unlink()
        except FileNotFoundError:
            continue
        prefix = next(prefix for prefix in _KINDS if file.name.startswith(prefix))
        resource_tracker.unregister("/" + file.name.removeprefix("sem."), _KINDS[prefix])


def _mapped_inodes(pid: int) -> set[int]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()
    # address perms offset device inode path
    return {int(fields[4]) for fields in map(str.split, lines) if len(fields) > 5 and "/dev/shm/" in fields[5]}
