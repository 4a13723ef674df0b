"""What the client must make of each way in which `repl_faulty.py` misbehaves, and what it may leave behind: nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from msgspec import Struct

from fd_async.types import VerdictKind
from fd_async.verifier.repl.process import ReplDesync, ReplExited, ReplFailure, ReplTimeout


class Fault(Struct, frozen=True):
    """One way to misbehave."""

    mode: str
    way: int
    """Its number in the list of ways, 1 to 16."""
    verdict: VerdictKind
    """On a proof that is right, when it happens to its body every time."""
    failure: type[ReplFailure] | None = None
    """How the exchange with the process ends; None: with the true answer."""


def _faults(way: int, verdict: VerdictKind, failure: type[ReplFailure] | None, *modes: str) -> list[Fault]:
    return [Fault(mode, way, verdict, failure) for mode in modes]


FAULTS: list[Fault] = [
    *_faults(1, "crash", ReplDesync, "wrong_env", "other", "tactic"),
    *_faults(
        1, "crash", ReplDesync, "garbage", "invalid_json", "invalid_utf8", "deep", "nan", "huge_number", "endless"
    ),
    *_faults(2, "crash", ReplDesync, "banner"),
    *_faults(2, "crash", None, "stray"),
    *_faults(3, "proved", None, "bytewise", "split", "huge", "many"),
    *_faults(4, "proved", None, "slow"),
    *_faults(4, "timeout", ReplTimeout, "hang", "spin", "half", "unended"),
    *_faults(4, "crash", ReplDesync, "double", "forged"),
    *_faults(4, "crash", None, "late", "forged_early"),
    *_faults(4, "infrastructure", None, "forged_both"),  # an unreadable list of axioms may be a new Lean's wording
    *_faults(5, "crash", ReplExited, "exit0", "exit", "abort", "segv", "half_then_exit", "unended_exit", "close"),
    *_faults(5, "out_of_memory", ReplExited, "die", "memory"),
    *_faults(5, "crash", None, "leave"),
    *_faults(6, "proved", None, "stderr", "stderr_during", "stderr_after"),
    *_faults(7, "crash", None, "refuse"),
    *_faults(7, "crash", ReplDesync, "no_env"),
    *_faults(8, "timeout", ReplTimeout, "stubborn"),
    *_faults(8, "proved", None, "child", "child_own_group"),
    *_faults(8, "out_of_memory", ReplExited, "grandchild", "grandchild_session"),
    *_faults(10, "proved", None, "grow"),
    *_faults(10, "out_of_memory", ReplExited, "swell"),
]
"""Those that one command can ask for. The others (header, start, clock, fairness, shutdown, cache) have tests of
their own."""

AFTERWARDS = ("late", "stray", "leave", "stderr_after")
"""They hurt who comes after the answer: the probe of the same check, or, in a probe, the next check."""
SLOW = ("stubborn", "unended", "half", "spin", "endless", "swell", "close", "many")
"""They wait for a deadline, or move a lot."""
ESCAPES = ("grandchild_session",)
"""What these start is nobody's child and in nobody's group; only a sandbox ends it."""


def left_behind(token: str) -> list[int]:
    """Return the processes that have this token in their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if token.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue  # it ended meanwhile
    return found


def zombies() -> list[int]:
    """Return the children of this process that ended and were not waited for."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state == "Z" and int(parent) == os.getpid():
                found.append(int(folder.name))
    return found


def open_descriptors() -> int:
    """Count the open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


def end(pids: list[int]) -> None:
    """Kill what a test left behind."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
