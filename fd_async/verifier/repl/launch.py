"""How a REPL process is started, and the ways in which it can fail.

Owns the pipes and the environment of a new process. It is started from the event loop's own thread, whose end would be
the end of a process that watches its parent; the exec takes the loop one or two milliseconds.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import anyio

from fd_async.errors import VerifierError
from fd_async.verifier.backend import HeaderRefused
from fd_async.verifier.sandbox.room import Limits, Room, launch_argv

_PASSED_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "ELAN_HOME", "LD_LIBRARY_PATH", "PYTHONPATH")


class Started(NamedTuple):
    """A process and our ends of its pipes, which do not block."""

    process: subprocess.Popen[bytes]
    stdin: int
    stdout: int
    stderr: int


class ReplFailure(VerifierError):
    """The process ended, hung or cannot be trusted any more; it has to be replaced."""


class ReplExited(ReplFailure):
    """The process is gone. `returncode` is negative for a signal."""

    def __init__(self, message: str, returncode: int | None, stderr: str, *, is_condemned: bool = False) -> None:
        super().__init__(message)
        self.returncode = returncode
        self.stderr = stderr
        self.is_condemned = is_condemned
        """We killed it, because it used too much memory."""

    @property
    def is_out_of_memory(self) -> bool:
        if self.is_condemned:
            return True
        text = self.stderr.lower()
        return "out of memory" in text or "bad_alloc" in text or "memoryerror" in text or "cannot allocate" in text


class ReplTimeout(ReplFailure):
    """No complete answer inside the deadline."""


class ReplDesync(ReplFailure):
    """Bytes where none belong, or an answer to something else."""


class HeaderRejected(ReplFailure, HeaderRefused):
    """The REPL works but does not accept the header; `args[0]` has its first error."""


@dataclass(frozen=True)
class ReplSpec:
    """How to start a process. `env` replaces the environment, never extends it."""

    argv: tuple[str, ...]
    wrapper: tuple[str, ...] = ()
    """Argv that comes before `argv` and behind the limits: the sandbox."""
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    room: Room | None = None
    """What the program needs to see; `wrapper` is made of it."""
    limits: Limits = field(default_factory=Limits)
    import_timeout_s: float = 180.0
    max_answer_bytes: int = 1 << 24

    @property
    def command(self) -> list[str]:
        """The argv behind a launcher that sets the limits and then becomes the process itself."""
        return launch_argv(self.argv, limits=self.limits, wrapper=self.wrapper)


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Pass on what a program needs to start, and no secrets."""
    kept = {name: os.environ[name] for name in _PASSED_VARIABLES if name in os.environ}
    return {**kept, "LEAN_NUM_THREADS": "1", **(extra or {})}


def start_process(spec: ReplSpec) -> Started:
    """Start a process in a group of its own; raises VerifierError when there is no such program."""
    pipes: list[int] = []
    try:
        for _ in range(3):
            pipes += os.pipe()
    except OSError as error:
        for descriptor in pipes:
            os.close(descriptor)
        raise VerifierError(f"cannot open pipes to a verifier worker: {error}; raise `ulimit -n`") from error
    child_in, stdin, stdout, child_out, stderr, child_err = pipes
    for descriptor in (stdin, stdout, stderr):
        os.set_blocking(descriptor, False)
    try:
        process = subprocess.Popen(
            spec.command,
            stdin=child_in,
            stdout=child_out,
            stderr=child_err,
            cwd=spec.cwd,
            env=dict(spec.env),
            start_new_session=True,
        )
    except BaseException as error:
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
        if isinstance(error, OSError):
            raise VerifierError(f"cannot start {' '.join(spec.argv)}: {error}") from error
        raise
    finally:
        for descriptor in (child_in, child_out, child_err):
            os.close(descriptor)
    return Started(process, stdin, stdout, stderr)


def exit_descriptor(pid: int) -> tuple[int, ...]:
    """Return a descriptor that becomes readable when the process ends; none where the system has no such thing."""
    try:
        return (os.pidfd_open(pid),)
    except (AttributeError, OSError):
        return ()


async def reap(process: subprocess.Popen[bytes], exit_descriptors: tuple[int, ...], seconds: float) -> None:
    """Wait until the process has ended and its status is known, at most so long."""
    loop, pause_s = asyncio.get_running_loop(), 0.0005
    with anyio.move_on_after(seconds):
        while process.poll() is None:
            if not exit_descriptors:
                await anyio.sleep(pause_s)
                pause_s = min(0.05, 2 * pause_s)
                continue
            ended = loop.create_future()
            loop.add_reader(exit_descriptors[0], lambda ended=ended: ended.done() or ended.set_result(None))
            try:
                await ended
            finally:
                loop.remove_reader(exit_descriptors[0])
