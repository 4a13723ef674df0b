"""What /proc knows about a worker and everything below it: time, memory, and how to stop or kill all of it.

A worker may be a sandbox whose pid is not the REPL's, and a descendant may have left the process group. So each
question is asked of the whole tree. Nothing here waits; where /proc does not tell, the answer covers the group alone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def process_tree(pid: int) -> list[int]:
    """Return the process and its descendants, parents before children; empty when it is gone."""
    if not os.path.exists(f"/proc/{pid}"):
        return []
    found = [pid]
    for parent in found:
        found += _children(parent)
    return found


def _children(pid: int) -> list[int]:
    children: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                children += map(int, Path(f"/proc/{pid}/task/{task}/children").read_bytes().split())
    return children


def cpu_seconds(pid: int, tree: Iterable[int] | None = None) -> float | None:
    """Return the processor time of a process and its descendants, or None where /proc does not tell.

    Args:
        pid: The process.
        tree: Its tree, when the caller knows it already.
    """
    ticks, is_known = 0, False
    for member in process_tree(pid) if tree is None else tree:
        with suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{member}/stat", "rb", buffering=0) as file:
                fields = file.read(1024).rpartition(b")")[2].split()
            ticks += sum(map(int, fields[11:15]))  # own and reaped children's
            is_known = True
    return ticks / _TICKS_PER_S if is_known else None


def own_bytes(pid: int) -> int:
    """Return the memory that a process and its descendants alone hold: without mapped files, which all share."""
    kib = 0
    for member in process_tree(pid):
        with suppress(OSError, ValueError):
            for line in Path(f"/proc/{member}/status").read_bytes().splitlines():
                if line.startswith((b"RssAnon:", b"RssShmem:")):
                    kib += int(line.split()[1])
    return kib * 1024


def stop_tree(pid: int) -> None:
    """Stop the group and all descendants; parents first, so that no child appears unseen."""
    _signal_tree(pid, signal.SIGSTOP)


def continue_tree(pid: int) -> None:
    """Let a stopped tree run again."""
    _signal_tree(pid, signal.SIGCONT)


def kill_tree(pid: int) -> None:
    """Kill the group and the descendants that left it.

    It is stopped first: a stopped parent neither forks nor reaps, so no pid below it can be another process's. What
    lost its parent before and left the session is not found; only the sandbox ends that.
    """
    members = _signal_tree(pid, signal.SIGSTOP)  # found before the first dies, which would orphan the others
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for member in members:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(member, signal.SIGKILL)
    _kill_session(pid)


def kill_group(pid: int) -> None:
    """Kill what is left of the group and the session of a process that has ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    _kill_session(pid)


def _kill_session(leader: int) -> None:
    """Kill the orphans of a worker: they may have left its group, and stand in no tree."""
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != leader:
                with suppress(ProcessLookupError, PermissionError):
                    if os.getsid(int(name)) == leader:
                        os.kill(int(name), signal.SIGKILL)


def _signal_tree(pid: int, number: signal.Signals) -> set[int]:
    members: set[int] = set()
    while True:
        if not members:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)
        new = [member for member in process_tree(pid) if member not in members]
        if not new:
            return members
        for member in new:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(member, number)
        members.update(new)
        if number != signal.SIGSTOP:
            return members
