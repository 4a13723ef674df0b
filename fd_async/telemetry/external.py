"""Metrics for TensorBoard, Weights & Biases and trackio: each in a process of its own that can never hold up the run.

    event loop ── queue of at most MAX_ROWS rows ──▶ thread ── pipe, one JSON object per row ──▶ process

A package that raises, hangs in a network call, crashes or is slow is left out with one line; at the end it gets CLOSE_S
seconds and is then killed. In a thread it could still hang the exit (its own exit hooks) or take signals away.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import structlog

import fd_async
from fd_async.errors import PreflightError
from fd_async.telemetry.external_process import END
from fd_async.telemetry.observers import Observer

log = structlog.stdlib.get_logger(__name__)

MAX_ROWS = 1000
CLOSE_S = 5.0


def demand_packages(sinks: Sequence[str]) -> None:
    """Raise PreflightError naming the packages of `telemetry.sinks` that are not installed."""
    if missing := [sink for sink in sinks if not is_installed(sink)]:
        raise PreflightError(
            f"telemetry.sinks names {', '.join(missing)}, not installed here: pip install {' '.join(missing)}, "
            "or take it out of telemetry.sinks"
        )


def is_installed(package: str) -> bool:
    """Say whether a package can be imported, without importing it."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a folder of that name, as wandb makes one, has no origin


class ExternalSink(Observer):
    """Feeds one package. `row` returns at once; `close` blocks for up to about CLOSE_S seconds.

    Args:
        name: of the package.
        run_dir: takes the files of the package, and its output in logs/.
        project: that the run is filed under.
        step: that the run starts or resumes from.
        config: shown beside the curves.
    """

    def __init__(self, name: str, run_dir: Path, project: str, step: int, config: Mapping[str, Any]) -> None:
        self.name = name
        self._log_path = run_dir / "logs" / f"sink_{name}.log"
        self._start = {
            "run_dir": str(run_dir.resolve()),
            "run": run_dir.resolve().name,
            "project": project,
            "step": step,
            "config": config,
        }
        self._rows: queue.Queue[Mapping[str, float | int | None] | None] = queue.Queue(MAX_ROWS)
        self._left_out = False
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name=f"sink-{name}", daemon=True)
        self._thread.start()

    def row(self, row: Mapping[str, float | int | None]) -> None:
        """Queue a row."""
        if not self._left_out:
            try:
                self._rows.put_nowait(row)
            except queue.Full:
                self._leave_out(f"{MAX_ROWS} rows wait for it")
                self._kill()  # at once; the thread, which may hang in the pipe, hears of it by that

    def close(self) -> None:
        """Let the package finish, for CLOSE_S seconds."""
        if not self._left_out:
            try:
                self._rows.put_nowait(None)
            except queue.Full:
                self._leave_out(f"{MAX_ROWS} rows wait for it")
            else:
                self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._leave_out(f"did not finish within {CLOSE_S:g} s")
            self._kill()
            self._thread.join(1.0)

    def _run(self) -> None:
        try:
            with self._log_path.open("ab") as output:
                self._process = process = _spawn(self.name, output)
            if self._left_out:
                self._kill()  # it was given up before there was a process to kill
            try:
                self._feed(process)
            finally:
                code = process.wait()  # the end of its input ends it, or whoever closes this sink does
            if code:
                self._leave_out(f"ended with {code}: {self._last_words()}")
        except OSError as error:
            self._leave_out(self._last_words() or str(error))
        finally:
            self._kill()  # what it started and left behind

    def _feed(self, process: subprocess.Popen[bytes]) -> None:
        """Send rows until the sentinel; OSError when the process is gone."""
        pipe = process.stdin
        assert pipe is not None
        with pipe:
            pipe.write(msgspec.json.encode(self._start, enc_hook=str) + b"\n")
            pipe.flush()
            while (row := self._rows.get()) is not None and not self._left_out:
                pipe.write(msgspec.json.encode(row) + b"\n")
                pipe.flush()
            pipe.write(END)

    def _leave_out(self, reason: str) -> None:
        if not self._left_out:
            self._left_out = True
            log.warning("sink_left_out", sink=self.name, reason=reason, log=str(self._log_path))
            with suppress(queue.Full):  # else the thread has rows to take, and sees it then
                self._rows.put_nowait(None)

    def _last_words(self) -> str:
        lines = [line for line in self._log_path.read_text("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else ""

    def _kill(self) -> None:
        """End the process and what it started; the thread takes note of it."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # all gone


def _spawn(name: str, output: Any) -> subprocess.Popen[bytes]:
    """Start the process, in a group of its own: Ctrl-C is for the run, which then ends this one in order."""
    path = os.pathsep.join(filter(None, [str(Path(fd_async.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "fd_async.telemetry.external_process", name, str(CLOSE_S), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
