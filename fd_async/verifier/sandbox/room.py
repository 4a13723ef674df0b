"""How a worker is started: limits first, then the sandbox, then the program, all in one process.

Owns what a worker can see and do. Starts from an empty root and shows only what is named: nothing of the home folder,
the run, other rollouts, the environment, the network or other processes is there to be read. All of it is set up once
per worker, before its first instruction; `probe_sandbox` then tries from inside whether it holds.

    sh (limits) ─exec─▶ nice ─exec─▶ bwrap ─fork─▶ bwrap (first process inside, reaps) ─fork─▶ the program
                                       └── one process group: killpg, SIGSTOP and SIGCONT reach all of it

The kernel kills the outer bwrap when the thread that started it ends, so workers are started from the event loop's
thread; and everything inside when the outer or the first inner process ends.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fd_async.errors import PreflightError
from fd_async.verifier.sandbox.syscalls import filter_path, machine

SCRATCH = "/tmp"
"""Where the sandbox has its private folder in memory."""
_FILTER_DESCRIPTOR = "9"
_NOBODY = "65534"
_OOM_SCORE = 800
"""The kernel, out of memory, takes workers before the run itself."""
_LAUNCHER = f"""\
ulimit -c 0
[ "$1" -le 0 ] || ulimit -v "$1" || exit 126
[ "$2" -le 0 ] || ulimit -t "$2" || exit 126
[ "$3" -le 0 ] || ulimit -f "$3" || exit 126
echo {_OOM_SCORE} 2>/dev/null >/proc/self/oom_score_adj
n=$4 f=$5
shift 5
[ -z "$f" ] || exec {_FILTER_DESCRIPTOR}<"$f" || exit 126
exec nice -n "$n" "$@"
"""
_SYSTEM = (
    *("/bin", "/lib", "/lib32", "/lib64", "/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib"),
    *("/etc/ld.so.cache", "/nix/store"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_KEPT_VARIABLES = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH")
_MAX_LINKS = 64


@dataclass(frozen=True)
class Limits:
    """What a worker may use up; 0 sets no limit. They hold for each process, and for all threads of it together."""

    nice: int = 0
    memory_gib: float = 0.0
    """Address space."""
    cpu_s: int = 0
    file_mib: int = 0
    """Longest file that it can write."""


@dataclass(frozen=True)
class Room:
    """What is inside the sandbox of one kind of program."""

    read: tuple[str, ...]
    """Files and folders shown read-only, beside the system's libraries; links on the way to them are shown too."""
    env: Mapping[str, str] = field(default_factory=dict)
    scratch_mib: int = 256
    may_fork: bool = False
    """Leaves out the filter of system calls, for a program that has to start others."""

    def wrapper(self, program: str = "bwrap") -> tuple[str, ...]:
        """Return the argv that comes before the program's own (which must start with an absolute path).

        Raises:
            PreflightError: Something in `read` would show everything.
        """
        folders, links = _closure([*_SYSTEM, *self.read])
        argv = [program, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
        argv += ["--unshare-cgroup-try", "--uid", _NOBODY, "--gid", _NOBODY, "--hostname", "lean", "--die-with-parent"]
        argv += ["--cap-drop", "ALL", "--clearenv"]
        for name, value in self.environment.items():
            argv += ["--setenv", name, value]
        if machine() and not self.may_fork:
            argv += ["--seccomp", _FILTER_DESCRIPTOR]
        argv += ["--tmpfs", "/", "--proc", "/proc", "--size", str(self.scratch_mib << 20), "--tmpfs", SCRATCH]
        for device in _DEVICES:
            argv += ["--dev-bind", device, device]
        for folder in folders:
            argv += ["--ro-bind", folder, folder]
        for path, target in links:
            argv += ["--symlink", target, path]
        # As root outside, nobody inside still owns root's files, those of /proc/sys too.
        return (*argv, "--remount-ro", "/proc", "--remount-ro", "/", "--chdir", SCRATCH, "--")

    @property
    def environment(self) -> dict[str, str]:
        """The variables inside: what the program needs, never a key."""
        kept = {n: v for n, v in self.env.items() if n in _KEPT_VARIABLES or n.startswith("LEAN")}
        own = [f"{self.env['LEAN_SYSROOT']}/bin"] if self.env.get("LEAN_SYSROOT") else []
        path = os.pathsep.join([*own, "/usr/bin", "/bin"])
        return {**kept, "PATH": path, "HOME": SCRATCH, "TMPDIR": SCRATCH}

    def shown(self) -> list[str]:
        """Return the folders and files that are readable inside, links resolved."""
        return _closure([*_SYSTEM, *self.read])[0]


def launch_argv(argv: Sequence[str], *, limits: Limits, wrapper: Sequence[str] = ()) -> list[str]:
    """Return the argv of a launcher that sets the limits and becomes `wrapper` followed by `argv`."""
    kib, blocks = int(limits.memory_gib * (1 << 20)), limits.file_mib * 2048
    bpf = filter_path() if "--seccomp" in wrapper else ""
    numbers = [str(kib), str(limits.cpu_s), str(blocks), str(limits.nice)]
    # The first process inside shows the environment that bwrap was started with, whatever bwrap clears.
    empty = ["env", "-i"] if "--clearenv" in wrapper else []
    return ["/bin/sh", "-c", _LAUNCHER, "sh", *numbers, bpf, *empty, *wrapper, *argv]


def find_bubblewrap() -> str | None:
    """Return the program, which must not come from a relative PATH entry."""
    found = shutil.which("bwrap")
    return found if found and os.path.isabs(found) else None


@functools.cache
def unsandboxed_wrapper() -> tuple[str, ...]:
    """Return what at least ends a worker with the run, also when the run is killed; empty where there is no setpriv."""
    program = shutil.which("setpriv")
    if program is None:
        return ()
    argv = (program, "--pdeathsig", "KILL")
    try:
        done = subprocess.run([*argv, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10.0, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return argv if done.returncode == 0 else ()


def signal_or_code(returncode: int, wrapper: Sequence[str]) -> int:
    """Return the exit status as `Process.returncode` counts it; bwrap reports a signal inside as 128 + its number."""
    inside = bool(wrapper) and os.path.basename(wrapper[0]) == "bwrap"
    return 128 - returncode if inside and 128 < returncode < 128 + 65 else returncode


def _closure(paths: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return what to bind and which links to make, so that every path means inside what it means outside."""
    real: set[str] = set()
    links: dict[str, str] = {}
    for path in paths:
        end = _walk(os.path.abspath(path), links)
        if end is not None:
            if end in ("/", "/proc", "/dev", "/sys", "/tmp", "/run", "/etc", "/home", "/root", "/var"):
                raise PreflightError(
                    f"verifier.sandbox: {path} is {end}, which would show workers far too much; name a smaller folder"
                )
            real.add(end)
    folders = sorted(path for path in real if not any(_is_under(path, other) for other in real))
    kept = sorted((at, to) for at, to in links.items() if not any(_is_under(at, folder) for folder in folders))
    return folders, kept


def _walk(path: str, links: dict[str, str]) -> str | None:
    """Follow a path step by step, noting every link; None when it leads nowhere."""
    at, left, hops = "/", deque(part for part in path.split("/") if part), 0
    while left:
        part = left.popleft()
        if part in (".", ""):
            continue
        step = os.path.dirname(at) if part == ".." else os.path.join(at, part)
        if not os.path.lexists(step):
            return None
        if not os.path.islink(step):
            at = step
            continue
        hops += 1
        if hops > _MAX_LINKS:
            return None
        target = os.readlink(step)
        links[step] = target
        left.extendleft(reversed([part for part in target.split("/") if part]))
        at = "/" if target.startswith("/") else os.path.dirname(step)
    return at


def _is_under(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")
