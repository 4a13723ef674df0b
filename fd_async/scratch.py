"""Temporary folders of a process: gone with it, and after a `kill -9` with the next one.

A folder is named after its host and process, so whoever makes one first sweeps those whose process is dead.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_open: set[Path] = set()


@contextmanager
def scratch_folder(kind: str, root: Path | None = None) -> Iterator[Path]:
    """Make a folder, see `make_folder`, for the length of the block."""
    folder = make_folder(kind, root)
    try:
        yield folder
    finally:
        remove_folder(folder)


def make_folder(kind: str, root: Path | None = None) -> Path:
    """Make a private folder, and sweep those of its kind that dead processes left.

    Args:
        kind: a word that says what for; part of the name.
        root: where; the system's folder for temporary files by default.

    Raises:
        OSError: it cannot be made.
    """
    root = root or Path(tempfile.gettempdir())
    sweep(kind, root)
    folder = root / f"fd_async-{kind}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    folder.mkdir(mode=0o700)
    _open.add(folder)
    return folder


def remove_folder(folder: Path) -> None:
    """Remove what `make_folder` made."""
    shutil.rmtree(folder, ignore_errors=True)
    _open.discard(folder)


def sweep(kind: str, root: Path) -> None:
    """Remove the folders of a kind whose process, on this host, is gone."""
    # Names of hosts may begin alike, and a folder that several hosts see is swept by all of them.
    name = re.compile(rf"fd_async-{re.escape(kind)}-{re.escape(_host())}-(\d+)-[0-9a-f]+")
    for old in root.glob(f"fd_async-{kind}-*"):
        match = name.fullmatch(old.name)
        if match and not is_alive(int(match[1])):
            shutil.rmtree(old, ignore_errors=True)


def remove_all() -> None:
    """Remove every folder of this process, which is about to end without leaving its blocks."""
    for folder in list(_open):
        remove_folder(folder)


def _host() -> str:
    """Return this host's name, short enough for the path of a socket."""
    return platform.node()[:32]


def is_alive(pid: int) -> bool:
    """Say whether a process of this number runs on this host."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
