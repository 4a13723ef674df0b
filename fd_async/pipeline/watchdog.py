"""A thread that ends the process where its event loop no longer can.

Two reasons: the loop has not run for `run.stall_abort_s`, or an end that was announced takes longer than its time.
Stacks of all threads go to logs/stacks.txt, status.json says what happened as far as it can be written, all child
processes are killed, temporary folders removed, and one line on stderr says why.

Time is counted in ticks of the thread, so a process that was stopped as a whole (Ctrl-Z, a suspended machine) loses
none. A native call that never gives the interpreter back stops this thread too: then faulthandler, which needs no
interpreter, prints the stacks on stderr and ends the process with code 1, and children end because it is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec
import psutil

from fd_async.errors import StallDetected
from fd_async.scratch import remove_all
from fd_async.telemetry.sinks import replace_file

_BEAT_S = 1.0
_STATUS_S = 5.0
"""Time for status.json: the disk may be what blocks."""
_NATIVE_S = 60.0
"""Beyond the limit, before faulthandler takes over."""
_TRACKER = "multiprocessing.resource_tracker"
"""A helper of Python's that removes shared memory of processes that are gone, and then leaves."""


class Watchdog:
    """Watches one event loop; `beat` runs on it."""

    def __init__(self, run_dir: Path, limit_s: float, *, tick_s: float = 0.5) -> None:
        self._run_dir, self._limit_s, self._tick_s = run_dir, limit_s, tick_s
        self._beaten, self._closed = threading.Event(), threading.Event()
        self._silent_s = 0.0
        self._left_s, self._code = float("inf"), 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for the length of the block."""
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._closed.set()
            thread.join()
            faulthandler.cancel_dump_traceback_later()

    async def beat(self) -> None:
        """Show that the loop runs, until cancelled."""
        while True:
            self._beaten.set()
            await anyio.sleep(min(_BEAT_S, self._limit_s / 4))

    def leave_by(self, seconds: float, code: int) -> None:
        """End the process with `code` unless it has ended by then; of several deadlines the first one counts."""
        self._left_s, self._code = min(self._left_s, seconds), code

    def _watch(self) -> None:
        armed_s = float("inf")
        while not self._closed.wait(self._tick_s):
            if armed_s > self._limit_s / 4:
                armed_s = 0.0
                faulthandler.dump_traceback_later(self._limit_s + _NATIVE_S, exit=True, file=2)
            armed_s += self._tick_s
            self._silent_s = 0.0 if self._beaten.is_set() else self._silent_s + self._tick_s
            self._beaten.clear()
            self._left_s -= self._tick_s
            if self._left_s <= 0:
                self._end(self._code, "the run did not end in its time (run.shutdown_s) and was cut off")
            if self._silent_s >= self._limit_s:
                self._end(
                    StallDetected.exit_code,
                    f"the event loop was blocked for {self._silent_s:.0f} s (run.stall_abort_s)",
                )

    def _end(self, code: int, why: str) -> None:
        stacks = dump_stacks(self._run_dir)
        advice = f"{why}; {stacks}; continue with --resume"
        writing = threading.Thread(target=self._write_status, args=(advice,), daemon=True)
        writing.start()
        kill_children()
        remove_all()
        writing.join(_STATUS_S)
        with contextlib.suppress(OSError):
            os.write(2, f"fd-run: {advice}\n".encode())
        os._exit(code)

    def _write_status(self, error: str) -> None:
        path = self._run_dir / "status.json"
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            status = msgspec.json.decode(path.read_bytes()) if path.is_file() else {}
            status |= {"phase": "failed", "error": error, "updated_at": round(time.time(), 3)}
            replace_file(path, msgspec.json.format(msgspec.json.encode(status)) + b"\n")


def dump_stacks(run_dir: Path) -> str:
    """Write the stacks of all threads to logs/stacks.txt; return where they are, for a message."""
    path = run_dir / "logs" / "stacks.txt"
    try:
        with path.open("w") as file:
            faulthandler.dump_traceback(file)
    except OSError as error:
        return f"no stacks ({path}: {error.strerror})"
    return f"stacks in {path}"


def kill_children() -> None:
    """Kill every descendant of this process."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if not any(_TRACKER in word for word in process.cmdline()):
                process.kill()
