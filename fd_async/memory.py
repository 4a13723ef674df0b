"""The memory that this process may take: a container or a Slurm job has often less than the machine (cgroup v2)."""

from __future__ import annotations

from pathlib import Path


def free_bytes(free: int, own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the least of what the machine has free and what every group around this process leaves.

    Args:
        free: of the machine, bytes.
        own: says in which group this process is.
        groups: where the kernel shows the groups.
    """
    try:
        place = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return free
    group = groups / place.strip("/")
    for folder in (group, *group.parents):
        left = _left(folder)
        free = free if left is None else min(free, max(0, left))
        if folder == groups:
            break
    return free


def _left(group: Path) -> int | None:
    """Return what a group may still take; None where it has no limit. The kernel takes pages of files back."""
    try:
        limit = int((group / "memory.max").read_text())
        usage = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text())
        return limit - used + int(usage["inactive_file"]) + int(usage["active_file"])
    except (OSError, ValueError, KeyError):
        return None
