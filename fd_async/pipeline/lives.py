"""One learner after another: a run survives ranks that die or hang, from its newest checkpoint.

    learner starts ▸ ledger, metrics and checkpoints go back to its step ▸ controller ─┬─▶ the end of the run
      ▲                                                                                ▼
      └── newest checkpoint, at most `learner.max_restarts` times without a newer one ◂ LearnerError

A life begins exactly as `--resume` does, the first as well as every later one. Engine, verifier, provider and ledger
stay open: the first push of a life gives the engine its weights, attempts under way go on from what the ledger has.
What would only happen again (a loss that is no number, a refused configuration) ends the run at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio.to_thread
import structlog

from fd_async.config.schema import RunConfig
from fd_async.errors import LearnerError, LearnerRankDied, NonFiniteLoss, first_cause
from fd_async.learner.checkpoints import list_checkpoints
from fd_async.learner.client import Learner
from fd_async.pipeline.checkpoints import forget_after
from fd_async.pipeline.controller import Controller
from fd_async.pipeline.signals import Stop
from fd_async.pipeline.state import Parts, RunState
from fd_async.telemetry.observers import Observers
from fd_async.telemetry.progress import Progress
from fd_async.telemetry.sinks import MetricsFile
from fd_async.telemetry.status import StatusFile

log = structlog.get_logger(__name__)

StartLearner = Callable[[Path | None], AbstractAsyncContextManager[Learner]]
"""Starts a learner from a checkpoint, or from the starting model."""


class Lives:
    """Runs one experiment to its end."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        *,
        start_learner: StartLearner,
        assemble: Callable[[Learner], Awaitable[Parts]],
        probe_ids: list[int],
        config_hash: str,
        stop: Stop,
        progress: Progress,
        observers: Observers,
        resumes: bool,
    ) -> None:
        """Take what all lives share.

        Args:
            config: of the run.
            run_dir: of the run.
            start_learner: opens a learner.
            assemble: makes the parts of a life, the same ones but for the learner.
            probe_ids: prompt on which engine and learner are compared after a push.
            config_hash: goes into checkpoints.
            stop: the request to end the run.
            progress: hears of restarts.
            observers: hear of restarts.
            resumes: the run folder may hold rows already.
        """
        self._config, self._run_dir = config, run_dir
        self._start_learner, self._assemble = start_learner, assemble
        self._probe_ids, self._config_hash = probe_ids, config_hash
        self._stop, self._progress, self._observers = stop, progress, observers
        self._resumes = resumes
        self._lived, self._restarts, self._in_a_row = False, 0, 0
        self._status: dict[str, object] = {}

    async def run(self, checkpoint: Path | None, step: int) -> int:
        """Return the exit code of the run.

        Args:
            checkpoint: to begin with; None for the starting model.
            step: of the checkpoint, 0 without one.

        Raises:
            FdError: whatever ended the run; may come inside an ExceptionGroup.
        """
        while True:
            try:
                return await self._live(checkpoint, step)
            except Exception as error:
                cause = curable(error)
                if cause is None or not self._lived or self._stop.asked.is_set():
                    await self._write_status("failed", str(first_cause(error)))
                    raise
                began_at = step
                step, checkpoint = await anyio.to_thread.run_sync(_newest, self._run_dir)
                self._in_a_row = self._in_a_row + 1 if step <= began_at else 1
                if self._in_a_row > self._config.learner.max_restarts:
                    last = self._given_up(cause, step)
                    await self._write_status("failed", str(last))
                    raise last from error
                await self._tell(cause, step)

    async def _live(self, checkpoint: Path | None, step: int) -> int:
        """Run from a checkpoint until the run or its learner ends."""
        state = RunState(
            self._config,
            step,
            self._observers,
            stopping=self._stop.asked,
            leaving=self._stop.leaving,
            restarts=self._restarts,
        )
        if self._restarts:
            state.board.move("learner", "restarting")
        async with self._start_learner(checkpoint) as learner:
            parts = await self._assemble(learner)
            state.board.move("learner", "")
            # In this order: a kill in between leaves a checkpoint whose batches the ledger still has.
            await anyio.to_thread.run_sync(forget_after, self._run_dir / "checkpoints", step)
            await anyio.to_thread.run_sync(parts.ledger.rewind, step)
            metrics = MetricsFile(self._run_dir / "metrics.jsonl")
            await metrics.open(resume_step=step if self._resumes or self._lived else None)
            self._lived = True
            controller = Controller(
                parts,
                state,
                metrics=metrics,
                config_hash=self._config_hash,
                probe_ids=self._probe_ids,
                limit=self._stop.limit,
            )
            self._progress.message(f"running {self._run_dir.name}: step {step} of {self._config.run.max_steps}")
            self._stop.can_finish = True
            try:
                return await controller.run()
            finally:
                self._stop.can_finish = False
                self._status = controller.snapshot()
                await metrics.aclose()

    async def _tell(self, cause: LearnerError, step: int) -> None:
        """Say everywhere that the learner starts anew."""
        self._restarts += 1
        where = f"from the checkpoint of step {step}" if step else "from step 0, there is no checkpoint yet"
        count = f"{self._in_a_row} of learner.max_restarts = {self._config.learner.max_restarts}"
        headline = _headline(cause)
        self._progress.message(f"{headline}; starting the learner anew {where} ({count})")
        log.warning("learner_restarted", step=step, restart=self._restarts, reason=headline)
        self._observers.event("learner_restarted", f"step {step}", restart=self._restarts, reason=headline)
        await self._write_status("restarting the learner", "")

    async def _write_status(self, phase: str, error: str) -> None:
        """Say in status.json what no controller says, since none is there now."""
        if self._status:
            status = self._status | {"phase": phase, "error": error, "restarts": self._restarts}
            await StatusFile(self._run_dir / "status.json").write(status)

    def _given_up(self, cause: LearnerError, step: int) -> LearnerError:
        """Say last what happened: the lines before it are the end of the rank's log."""
        tail = str(cause).partition("\n")[2]
        count, most = self._in_a_row - 1, self._config.learner.max_restarts
        last = (
            f"{_headline(cause)}; given up after {count} restarts from step {step} without a newer checkpoint "
            f"(learner.max_restarts = {most}); --resume tries again"
        )
        return type(cause)(f"{tail}\n{last}" if tail else last)


def curable(error: BaseException) -> LearnerError | None:
    """Return the failure of the learner that a fresh one may not have; None if anything else failed, or it would.

    A push by NCCL whose sender failed is the learner's failure; one that the engine failed is not, and ends the run.
    """
    found: list[LearnerError] = []
    for leaf in _leaves(error):
        cause = _in_learner(leaf)
        if cause is None or isinstance(cause, NonFiniteLoss):
            return None
        found.append(cause)
    return max(found, key=lambda cause: isinstance(cause, LearnerRankDied), default=None)


def _in_learner(error: BaseException | None) -> LearnerError | None:
    """Find the learner's failure behind an error, such as a push whose sender died."""
    while error is not None and not isinstance(error, LearnerError):
        error = error.__cause__
    return error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _headline(error: LearnerError) -> str:
    return str(error).partition("\n")[0].removesuffix("; its last lines:").rstrip(":")


def _newest(run_dir: Path) -> tuple[int, Path | None]:
    found = list_checkpoints(run_dir / "checkpoints")
    return (max(found), found[max(found)]) if found else (0, None)
