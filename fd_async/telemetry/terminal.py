"""Who may write to the terminal: this process, never its children."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def children_output(path: Path) -> Iterator[None]:
    """Send what child processes and C libraries print to `path`; this process keeps its terminal.

    File descriptors 1 and 2, which children inherit, point to the file inside the block, while `sys.stdout` and
    `sys.stderr` go on writing to where they wrote before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = sys.stdout, sys.stderr
    for stream in before:
        stream.flush()
    saved = os.dup(1), os.dup(2)
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    streams = [os.fdopen(os.dup(fd), "w", buffering=1, errors="backslashreplace") for fd in saved]
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        sys.stdout, sys.stderr = streams
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.close()
        for fd, kept in enumerate(saved, start=1):
            os.dup2(kept, fd)
            os.close(kept)
        os.close(target)
