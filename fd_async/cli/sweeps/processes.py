"""One command at a time: what it says on stderr passes through, its last line is kept, signals are passed on.

A command runs in a session of its own, so that Ctrl-C on the terminal reaches it once, through here; a second request
would cost a run its checkpoint. Its stderr is a file without a name: it never waits for whoever reads it, and stays
writable when the sweep is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import anyio
import anyio.to_thread
from anyio.abc import Process
from msgspec import Struct

from fd_async.pipeline.signals import wanted_signals
from fd_async.pipeline.stopping import beside

COMMAND = (sys.executable, "-m", "fd_async.cli")
"""In front of `run`, `eval` and `check`."""
_CHILD = (sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py")))
_INTERRUPTED = 130
_ECHO_S = 0.2
_TAIL_BYTES = 16384
_GRACE_S = 60.0
"""For a command that was asked to end, beyond its own time for it."""


class Ended(Struct, frozen=True):
    """How a command ended."""

    code: int
    """Exit code; 128 + N after signal N."""
    last_line: str
    """Of its stderr; empty where it said nothing."""
    seconds: float

    @property
    def text(self) -> str:
        """Say it in one line."""
        by = f"killed by {signal.Signals(self.code - 128).name}" if self.was_killed else f"exit code {self.code}"
        return f"{by} after {self.seconds:.0f} s" + (f": {self.last_line}" if self.last_line else "")

    @property
    def was_killed(self) -> bool:
        return self.code - 128 in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGHUP)


class Processes:
    """Runs commands inside `listening`, which takes the signals."""

    def __init__(self, command: Sequence[str] = ()) -> None:
        self._command = [*(command or COMMAND)]
        self._process: Process | None = None
        self.asked = anyio.Event()
        """Set by the first signal."""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Pass SIGINT, SIGTERM and SIGHUP on to the command that runs."""
        with anyio.open_signal_receiver(*wanted_signals()) as signals:

            async def listen() -> None:
                async for received in signals:
                    self.asked.set()
                    self._send(received)

            async with beside(listen):
                yield

    async def run(self, arguments: Sequence[str], *, shutdown_s: float) -> Ended:
        """Run `fd-...` to its end.

        No deadline: how long a run may take nobody knows, and its own watchdog ends it when nothing moves.

        Args:
            arguments: name of the command and what it is given.
            shutdown_s: what the command takes to end when asked; a minute later it is killed.
        """
        if self.asked.is_set():
            return Ended(_INTERRUPTED, "", 0.0)
        started = time.monotonic()
        argv = [*_CHILD, str(os.getpid()), *self._command, *arguments]
        with tempfile.TemporaryFile() as errors:
            process = await anyio.open_process(
                argv, stdin=subprocess.DEVNULL, stdout=None, stderr=errors, start_new_session=True
            )
            self._process = process
            if self.asked.is_set():  # while it was starting, and nobody has told it
                self._send(signal.SIGTERM)
            try:
                async with beside(lambda: self._kill_late(process, shutdown_s), lambda: _echo(errors)):
                    await process.wait()
            finally:
                with anyio.CancelScope(shield=True):
                    await self._end(process, shutdown_s)
                self._process = None
            last_line = await anyio.to_thread.run_sync(_last_line, errors)
        code = process.returncode if process.returncode is not None else 1
        return Ended(code if code >= 0 else 128 - code, last_line, time.monotonic() - started)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _kill_late(self, process: Process, shutdown_s: float) -> None:
        await self.asked.wait()
        await anyio.sleep(shutdown_s + _GRACE_S)
        _kill(process)
        await anyio.sleep_forever()

    async def _end(self, process: Process, shutdown_s: float) -> None:
        """End what still runs because something failed here."""
        if process.returncode is None:
            self._send(signal.SIGTERM)
            with anyio.move_on_after(shutdown_s + _GRACE_S):
                await process.wait()
        if process.returncode is None:
            _kill(process)
            await process.wait()


def _kill(process: Process) -> None:
    """Kill the command with all that stayed in its session's group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


async def _echo(errors: BinaryIO) -> None:
    """Hand on what the command writes; nothing tells that a file grew, so it is looked at."""
    place = 0
    try:
        while True:
            place = await anyio.to_thread.run_sync(_hand_on, errors.fileno(), place)
            await anyio.sleep(_ECHO_S)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_hand_on, errors.fileno(), place)


def _hand_on(descriptor: int, place: int) -> int:
    while chunk := os.pread(descriptor, _TAIL_BYTES, place):
        place += len(chunk)
        with suppress(OSError, ValueError):  # nobody reads any more
            sys.stderr.buffer.write(chunk)
            sys.stderr.flush()
    return place


def _last_line(errors: BinaryIO) -> str:
    size = os.fstat(errors.fileno()).st_size
    tail = os.pread(errors.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode("utf-8", "replace")
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    return lines[-1][:1000] if lines else ""
