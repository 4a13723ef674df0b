"""One process of a run: forked, started or resumed, and killed at a given moment unless it ends before."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import anyio
import msgspec
from msgspec import Struct

from bench.crashes.calls import RECORDED_S
from bench.crashes.seller import silence
from bench.crashes.standins import (
    Buyer,
    PlannedEngine,
    PlannedRenderer,
    PlannedVerifier,
    RememberingLearner,
    start_learner,
)
from fd_async.config.schema import RunConfig
from fd_async.data.ledger import open_ledger
from fd_async.data.statements import StatementOrder
from fd_async.learner.checkpoints import find_checkpoint, list_folders, read_manifest
from fd_async.pipeline.lives import Lives
from fd_async.pipeline.signals import Stop
from fd_async.pipeline.state import Parts
from fd_async.rollouts import RolloutRunner
from fd_async.telemetry.logs import setup_logging
from fd_async.telemetry.observers import Observers
from fd_async.telemetry.progress import QuietProgress
from fd_async.types import Statement

_SILENCE_S = RECORDED_S + 0.1
KINDS: dict[str, dict[str, dict[str, Any]]] = {
    "fd": {},
    "fd, two attempts per prompt": {"rollout": {"samples_per_prompt": 2}, "admission": {"max_staleness": 2}},
    "fd, sync": {"run": {"mode": "sync"}},
    "grpo": {"algorithm": {"type": "grpo"}, "rollout": {"samples_per_prompt": 3}},
}
"""Kind of run -> what its configuration differs in."""


class Outcome(Struct, frozen=True):
    """How a life ended."""

    code: int
    """Exit code; -9 when it was killed."""
    seconds: float
    killed_at: float | None = None
    """`time.monotonic()` right before it was killed."""


def make_config(kind: str, steps: int) -> RunConfig:
    tables: dict[str, dict[str, Any]] = {
        "run": {"max_steps": steps, "stall_warn_s": 20.0, "stall_abort_s": 30.0, "shutdown_s": 20.0},
        "model": {"path": "none"},
        "data": {"train": "none"},
        "learner": {"prompts_per_step": 4},
        "rollout": {"record_every_s": 0.1, "concurrency": 64},
        "admission": {"max_staleness": 1},
        "checkpoint": {"every_steps": 2, "min_free_gib": 0.0, "keep_last": 2},
        "eval": {"every_steps": 0},
        "feedback": {"type": "openai", "model": "stand-in"},
        "telemetry": {"status_every_s": 0.2, "console": "quiet"},
    }
    for table, keys in KINDS[kind].items():
        tables.setdefault(table, {}).update(keys)
    return msgspec.convert(tables, RunConfig)


def live(
    config: RunConfig,
    run_dir: Path,
    socket: Path,
    life: int,
    *,
    kill_after_s: float | None,
    in_silence: bool = False,
) -> Outcome:
    """Start or resume a run in a forked process, and wait for its end or bring it about.

    Args:
        config: of the run.
        run_dir: of the run.
        socket: of the seller.
        life: number of this process among those of the run.
        kill_after_s: seconds after which it is killed; None lets it end.
        in_silence: from then on the seller answers nothing, and the kill comes when every answer must be on record.
    """
    started = time.monotonic()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            run_dir.mkdir(exist_ok=True)
            log = os.open(run_dir / "console.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = anyio.run(_run, config, run_dir, socket, life)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
        finally:
            os._exit(code)
    with ExitStack() as stack:
        code = _wait(pid, math.inf if kill_after_s is None else started + kill_after_s)
        if code is None and in_silence:
            stack.enter_context(silence(run_dir.parent, run_dir.name))
            code = _wait(pid, time.monotonic() + _SILENCE_S)
        killed_at = None
        if code is None:
            killed_at = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return Outcome(code, time.monotonic() - started, killed_at if code == -signal.SIGKILL else None)


def _wait(pid: int, until: float) -> int | None:
    """Return the exit code of a process; None when it runs on at `until`."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until:
            return None
        time.sleep(0.001)


async def _run(config: RunConfig, run_dir: Path, socket: Path, life: int) -> int:
    stop = Stop(shutdown_s=config.run.shutdown_s)
    return await stop.run(lambda: run_life(config, run_dir, socket, stop, life))


async def run_life(config: RunConfig, run_dir: Path, socket: Path, stop: Stop, life: int = 0) -> int:
    """Start or resume a run in this process and return its exit code."""
    for folder in ("logs", "checkpoints"):
        (run_dir / folder).mkdir(exist_ok=True)
    setup_logging(run_dir, "info", live=False)
    resumes = (run_dir / "ledger.db").exists()
    folder = find_checkpoint(run_dir / "checkpoints", None) if list_folders(run_dir / "checkpoints") else None
    statements = [Statement(name=f"t{i}", formal_statement=f"theorem t{i} : True :=") for i in range(16)]
    engine = PlannedEngine(run_dir / "sampled.count")
    renderer: Any = PlannedRenderer()
    verifier: Any = PlannedVerifier()
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(open_ledger(run_dir / "ledger.db"))
        runner = RolloutRunner(
            engine=engine,
            renderer=renderer,
            verifier=verifier,
            search=None,  # type: ignore[arg-type]
            config=config.rollout,
        )

        async def assemble(learner: RememberingLearner) -> Parts:
            return Parts(
                config=config,
                run_dir=run_dir,
                engine=engine,
                learner=learner,  # type: ignore[arg-type]
                renderer=renderer,
                verifier=verifier,
                provider=Buyer(socket, run_dir.name, life),  # type: ignore[arg-type]
                ledger=ledger,
                runner=runner,
                order=StatementOrder(statements, 0),
                suites={},
                progress=QuietProgress(),
            )

        lives = Lives(
            config,
            run_dir,
            start_learner=start_learner,  # type: ignore[arg-type]
            assemble=assemble,  # type: ignore[arg-type]
            probe_ids=[1, 2],
            config_hash="crashes",
            stop=stop,
            progress=QuietProgress(),
            observers=Observers(),
            resumes=resumes,
        )
        return await lives.run(folder, read_manifest(folder).step if folder else 0)
