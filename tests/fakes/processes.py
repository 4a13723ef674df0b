"""Watches processes that are nobody's children here."""

from __future__ import annotations

from pathlib import Path

import anyio


async def all_gone(pids: list[int]) -> None:
    """Wait until none of the processes runs; a kill takes effect a moment after it is sent."""
    with anyio.fail_after(30):
        while not all(map(_is_gone, pids)):  # noqa: ASYNC110  # no event tells of other processes' ends
            await anyio.sleep(0.02)


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
