"""A real try of the sandbox, from inside: it must start, and everything it is there to prevent must fail.

The probe is a short Python program in the same room as the workers, with the same limits on system calls; it gets
baits that it would reach if the sandbox had a hole: a listening socket, a file, the folders of the user and of the run.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec

from fd_async.errors import PreflightError
from fd_async.scratch import scratch_folder
from fd_async.verifier.sandbox.room import SCRATCH, Limits, Room, find_bubblewrap, launch_argv

_TIMEOUT_S = 20.0
_INSTALL = "install bubblewrap 0.7 or newer (apt, dnf, apk and pacman call it `bubblewrap`)."
_NO_NAMESPACES = (
    "the system allows no user namespaces: on Ubuntu `sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
    " or an AppArmor profile for bwrap, on older Debian `sysctl kernel.unprivileged_userns_clone=1`, in Docker"
    " `--security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined`."
)
_HINTS = {
    "mount proc": "in Docker start the container with `--security-opt systempaths=unconfined`.",
    "namespace": _NO_NAMESPACES,
    "uid map": _NO_NAMESPACES,
    "rtm_newaddr": _NO_NAMESPACES,
    "operation not permitted": _NO_NAMESPACES,
    "permission denied": _NO_NAMESPACES,
    "unknown option": _INSTALL,
}

_ATTACKS = r"""
import json, os, socket, sys
bait = json.loads(sys.argv[1])
leaks = []

def must_fail(what, attack):
    try:
        attack()
    except (OSError, ValueError):
        return
    leaks.append(what)

def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.settimeout(2.0)
        one.connect(address)

def write(folder):
    os.close(os.open(os.path.join(folder, bait["nonce"]), os.O_CREAT | os.O_EXCL | os.O_WRONLY))

must_fail("it reaches the network", lambda: connect(socket.AF_INET, ("127.0.0.1", bait["port"])))
must_fail("it reaches local sockets", lambda: connect(socket.AF_UNIX, "\0" + bait["nonce"]))
must_fail("it reads files of other programs", lambda: open(bait["file"]).close())
for folder, expected in bait["hidden"].items():
    try:
        extra = sorted(set(os.listdir(folder)) - set(expected))
    except OSError:
        continue
    if extra:
        leaks.append("it sees " + os.path.join(folder, extra[0]))
for name in sorted(set(os.environ) - set(bait["variables"]) - {"PWD", "LC_CTYPE"}):
    leaks.append("it has the variable " + name)
def environment(pid):
    with open("/proc/" + pid + "/environ") as file:
        if bait["nonce"] not in file.read():
            raise OSError

for pid in filter(str.isdigit, os.listdir("/proc")):
    must_fail("it reads the environment of the run", lambda: environment(pid))
others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) not in (1, os.getpid())]
if others:
    leaks.append("it sees other processes")
setting = "/proc/sys/kernel/core_pattern"
must_fail("it changes the settings of the system", lambda: os.close(os.open(setting, os.O_WRONLY)))
try:
    write(bait["scratch"])
    os.unlink(os.path.join(bait["scratch"], bait["nonce"]))
except OSError as error:
    leaks.append("its scratch cannot be written: " + str(error))
if bait["no_fork"]:
    def fork():
        if os.fork() == 0:
            os._exit(0)
    must_fail("it starts processes", fork)
for folder in [] if leaks else bait["folders"]:
    try:
        write(folder)  # outside, somebody looks whether it is there
    except OSError:
        pass
print(json.dumps(leaks))
"""


def probe_sandbox(room: Room) -> str | None:
    """Try the sandbox; return None when it holds, else one line that says what is wrong and what to do.

    Blocks for about 50 ms, at most `_TIMEOUT_S`.
    """
    program = find_bubblewrap()
    if program is None:
        return f"bubblewrap (`bwrap`) is not installed: {_INSTALL}"
    try:
        with ExitStack() as stack:
            return _probe(room, program, stack)
    except PreflightError as error:
        return f"{error}."
    except OSError as error:
        return f"bubblewrap could not be tried: {error}."


def _probe(room: Room, program: str, stack: ExitStack) -> str | None:
    inside = replace(room, read=(*room.read, *_python()))
    bait = _lay_bait(inside, stack)
    argv = [sys.executable, "-I", "-S", "-c", _ATTACKS, msgspec.json.encode(bait).decode()]
    process = stack.enter_context(
        subprocess.Popen(
            launch_argv(argv, limits=Limits(), wrapper=inside.wrapper(program)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, bait.nonce: "a secret"},
            start_new_session=True,
        )
    )
    try:
        output, errors = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"bubblewrap did not answer within {_TIMEOUT_S:g} s."
    finally:
        _kill(process)
    written = [name for folder in bait.folders if os.path.lexists(name := os.path.join(folder, bait.nonce))]
    for name in written:
        os.unlink(name)
    if written:
        return f"the sandbox has a hole: it writes to {os.path.dirname(written[0])}."
    return _judge(process.returncode, output, errors.decode("utf-8", "replace"))


class _Bait(msgspec.Struct):
    """What the probe tries to get at."""

    nonce: str
    port: int
    file: str
    hidden: dict[str, list[str]]
    """Folders, each with the names in it that may be seen."""
    folders: list[str]
    """Where nothing may be written."""
    variables: list[str]
    scratch: str
    no_fork: bool


def _lay_bait(inside: Room, stack: ExitStack) -> _Bait:
    nonce = "fd" + secrets.token_hex(8)
    tcp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    tcp.bind(("127.0.0.1", 0))
    tcp.listen(1)
    local = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    local.bind("\0" + nonce)
    local.listen(1)
    secret = stack.enter_context(scratch_folder("bait")) / nonce
    secret.write_text("a secret")
    shown = inside.shown()
    hidden = {folder: _expected(folder, shown) for folder in _private_folders()}
    return _Bait(
        nonce=nonce,
        port=tcp.getsockname()[1],
        file=str(secret),
        hidden=hidden,
        folders=[*hidden, *filter(os.path.isdir, shown), "/"],
        variables=list(inside.environment),
        scratch=SCRATCH,
        no_fork="--seccomp" in inside.wrapper(),
    )


def _judge(returncode: int, output: bytes, errors: str) -> str | None:
    try:
        leaks = msgspec.json.decode(output, type=list[str])
    except msgspec.DecodeError:
        last = (errors.strip().splitlines() or [f"exit code {returncode}"])[-1][:300]
        hint = next((text for word, text in _HINTS.items() if word in last.lower()), "see docs/verifier.md.")
        return f"bubblewrap does not work here ({last}): {hint}"
    if returncode != 0:
        return f"the probe in the sandbox ended with exit code {returncode}."
    return f"the sandbox has a hole: {leaks[0]}; look at verifier.sandbox_read." if leaks else None


def _python() -> list[str]:
    """Return what the probe's Python needs."""
    found = [sys.executable, os.path.join(sys.prefix, "pyvenv.cfg"), sysconfig.get_paths()["stdlib"]]
    return [*found, sysconfig.get_paths()["platstdlib"], os.path.join(sys.base_prefix, "lib")]


def _private_folders() -> list[str]:
    """Return the user's folder and the one in which the run keeps its own."""
    found = {os.path.realpath(folder) for folder in (Path.home(), Path.cwd())}
    return sorted(found - {"/"})


def _expected(folder: str, shown: list[str]) -> list[str]:
    """Return the names in a folder that lead to something shown on purpose."""
    start = folder.rstrip("/") + "/"
    return [path.removeprefix(start).split("/")[0] for path in shown if path.startswith(start)]


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended just now
        process.wait()
