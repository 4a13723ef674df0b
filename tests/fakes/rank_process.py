"""A learner rank without torch, for tests of starting, failing and ending: run as a script in the place of `entry`.

What a step does is written into the rollout ids of its samples: `die`, `raise`, `stop` (the process stops itself),
`wait` (as in a collective whose other end is gone). Anything else returns a report.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])

from fd_async.learner import entry
from fd_async.learner.link import Done, RankSocket, Start, Step, Stepped, failure
from fd_async.types import StepReport


def step(request: Step, rank: int) -> Stepped:
    """Do what the samples say."""
    for sample in request.samples:
        match sample.rollout_id.partition("-")[0]:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise MemoryError("no memory left in this rank")
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "wait":
                all_reduce_that_waits()
    return Stepped(id=request.id, report=StepReport(step=request.step, metrics={"rank": float(rank)}))


def all_reduce_that_waits() -> None:
    """Wait for ever."""
    threading.Event().wait()


def serve(link: RankSocket, rank: int, world_size: int) -> None:
    """Answer as `rank.serve` does."""
    print(f"rank {rank} of {world_size} local {os.environ['LOCAL_RANK']} session {os.getsid(0)}", flush=True)
    while True:
        request = link.receive()
        try:
            if isinstance(request, Start) and os.environ.get("FD_TEST_DIES_AT_START") == str(rank):
                raise SystemExit(3)
            link.send(step(request, rank) if isinstance(request, Step) else Done(id=request.id))
        except Exception as error:
            link.send(failure(error, request.id))


if __name__ == "__main__":
    module = ModuleType("fd_async.learner.rank")
    module.__dict__["serve"] = serve
    sys.modules["fd_async.learner.rank"] = module
    entry.main()
