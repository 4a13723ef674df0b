"""The process of one external sink: reads rows from its standard input and hands them to the package.

The first line says what run it is; every further line is a row, and END follows the last one. Where the input ends
without it the run was killed: this process then ends within the seconds of its second argument, whatever the package
does meanwhile, and takes along what the package has started. The third argument is the run's process.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

END = b"null\n"


class Package(Protocol):
    """What is asked of a package."""

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Take the values of a row."""
        ...

    def close(self) -> None:
        """Finish; nothing follows."""
        ...


class TensorBoard:
    """Event files under RUN/tensorboard, written by TensorBoard's own package, without torch."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(Path(start["run_dir"]) / "tensorboard"))
        # A reader forgets what an earlier process wrote from this step on: those steps are taken again.
        begun = Event(wall_time=time.time(), step=start["step"] + 1, session_log=SessionLog(status=SessionLog.START))
        self._writer.add_event(begun)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Write one event with all values."""
        values = [self._summary.Value(tag=key, simple_value=value) for key, value in row.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


class WeightsAndBiases:
    """One run per run folder; a resume continues it."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        import wandb

        run_dir = Path(start["run_dir"])
        self._run = wandb.init(
            project=start["project"],
            name=start["run"],
            id=_run_id(run_dir / "logs" / "wandb_id"),
            resume="allow",
            dir=str(run_dir),
            config=dict(start["config"]),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Log a row; `step` stands in it as a value, since W&B's own counter cannot go back after a resume."""
        self._run.log({"step": step, **row})

    def close(self) -> None:
        """Upload what is left."""
        self._run.finish()


class Trackio:
    """One run per run folder name; a resume continues it."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        import trackio

        self._trackio = trackio
        trackio.init(start["project"], name=start["run"], resume="allow", config=dict(start["config"]))

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Log a row."""
        self._trackio.log(dict(row), step=step)

    def close(self) -> None:
        """Write what is left."""
        self._trackio.finish()


PACKAGES: dict[str, Callable[[Mapping[str, Any]], Package]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}


def _run_id(path: Path) -> str:
    """Return the id kept in a file, made the first time: names of runs repeat, ids must not."""
    if not path.exists():
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def main() -> None:
    """Feed the package named by the first argument until the input ends."""
    name, seconds, parent = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    threading.Thread(target=_outlive_briefly, args=(parent, seconds), daemon=True).start()
    package = PACKAGES[name](json.loads(sys.stdin.buffer.readline()))
    was_killed = True
    for line in sys.stdin.buffer:
        if line == END:
            was_killed = False
            break
        row = {key: value for key, value in json.loads(line).items() if value is not None}
        package.write(int(row.pop("step", 0)), row)
    package.close()
    if was_killed:
        _end_all()


def _outlive_briefly(parent: int, seconds: float) -> None:
    """Leave `seconds` after the parent died."""
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(seconds)
    _end_all()


def _end_all() -> None:
    """End this process and its group: nobody else is left to do it."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
