"""What is done about alarms: say it, end the run, or roll back.

A rollback undoes the gradient step that raised the alarm before it is pushed: the learner takes model, optimizer and
teacher of the last good checkpoint, and those weights are pushed as the version of this step. So steps and weight
versions go on rising, nothing else of the run notices, and the batch stays trained in the ledger. Attempts that are
queued or under way were sampled from the weights that are given up; they are as old as their version says.

A good checkpoint is one whose weights showed no sign of collapse, not even one that was not yet an alarm. They show it
in the rows of their own step and of the next one, which measures the weights that it begins with. The newest good one
is never pruned; where an alarm acts, the one just written is not yet known to be good.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
import structlog

from fd_async.learner.checkpoints import list_checkpoints
from fd_async.pipeline.alarms import Alarms
from fd_async.pipeline.checkpoints import Checkpoints
from fd_async.pipeline.state import Parts, RunState

log = structlog.get_logger(__name__)


class Guard:
    """Feeds the alarms and acts on them."""

    def __init__(self, parts: Parts, state: RunState, checkpoints: Checkpoints) -> None:
        self._parts = parts
        self._state = state
        self._checkpoints = checkpoints
        self._table = parts.config.alarms
        self._alarms = Alarms(
            self._table,
            num_ids=parts.renderer.vocab_size,
            prompts_per_step=parts.config.learner.prompts_per_step,
        )
        self.is_good = self._alarms.is_good

    async def recall(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take over where an earlier process was: metrics.jsonl, cut at the step that is resumed, is the whole state.

        What stands already is not said or acted upon again: whoever resumes knows it.
        """
        await anyio.to_thread.run_sync(self._alarms.replay, rows)
        self._state.alarms = dict(self._alarms.standing)

    async def heed(self, row: Mapping[str, Any]) -> dict[str, float | int | None]:
        """Judge a step that is not yet pushed, act, and return the columns that tell of it.

        Raises:
            CheckpointError: the checkpoint to roll back to cannot be read.
            LearnerError: the learner could not take it.
        """
        state, step = self._state, int(row["step"])
        raised = self._alarms.update(row)
        state.alarms = dict(self._alarms.standing)
        columns: dict[str, float | int | None] = {"alarms/raised": len(state.alarms)}
        for name, text in raised.items():
            log.warning("alarm_raised", alarm=name, step=step, text=text)
            self._parts.progress.message(f"alarm at step {step}: {text}")
        if not raised or self._table.action == "warn":
            return columns
        names, good = ", ".join(raised), await self._last_good(step)
        if self._table.action == "stop":
            self._end(f"alarm: {names} (alarms.action = stop)", good)
        elif self._alarms.num_rollbacks >= self._table.max_rollbacks:
            self._end(f"alarm: {names}, after alarms.max_rollbacks = {self._table.max_rollbacks} rollbacks", good)
        elif good is None:
            self._end(f"alarm: {names}, and no checkpoint from before it to take (checkpoint.every_steps)", good)
        else:
            columns["alarms/rollback_to"] = await self._roll_back(step, *good)
        return columns

    async def _roll_back(self, step: int, to_step: int, folder: Path) -> int:
        state, item = self._state, f"rollback-{step}"
        state.board.move(item, "rollback")
        try:
            await self._parts.learner.restore(folder)
        finally:
            state.board.move(item, "")
        self._alarms.rolled_back(step, to_step)
        state.alarms = {}
        log.warning("rolled_back", step=step, to_step=to_step)
        self._parts.progress.message(
            f"rolled back: model, optimizer and teacher are those of step {to_step} "
            f"({self._alarms.num_rollbacks} of alarms.max_rollbacks = {self._table.max_rollbacks})"
        )
        return to_step

    async def _last_good(self, now: int) -> tuple[int, Path] | None:
        await self._checkpoints.settle()
        root = self._parts.run_dir / "checkpoints"
        found = await anyio.to_thread.run_sync(list_checkpoints, root)
        return max(
            ((step, folder) for step, folder in found.items() if step < now and self.is_good(step)), default=None
        )

    def _end(self, why: str, good: tuple[int, Path] | None) -> None:
        """Ask the training loop to end the run after this step."""
        self._state.ended_by_alarm = why
        advice = f"the last good checkpoint is that of step {good[0]}: --resume {good[0]}" if good else ""
        self._parts.progress.message("; ".join(filter(None, (f"the run ends by an {why}", advice))))
