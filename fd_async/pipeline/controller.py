"""The one task group of a run.

    ┌ attempts ─────────────── ticket ▸ admission ▸ rollout ▸ ledger ▸ feedback ▸ ledger ▸ buffer ┐
    │                                                                                           │ finished groups
    │ versions (publish frees slots)                                                            ▼
    └───────────────────────── push ◂ stage ◂ gradient step ◂ batch, oldest first ◂ training ───┘
      watchdog   no progress for stall_warn_s: wait table; for stall_abort_s: stacks, exit 6
      checkpoint what was taken between two steps is written beside the next ones
      status     status.json and the live view, from the same snapshot
      signals    first SIGINT/SIGTERM: finish the step, write a checkpoint, leave with 130; second: leave now

A loop that fails ends the run with its own exception; nothing runs outside this group.
"""

from __future__ import annotations

import faulthandler
import signal
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog
from anyio.abc import TaskStatus

from fd_async.errors import StallDetected, first_cause
from fd_async.pipeline.attempts import AttemptLoops
from fd_async.pipeline.board import wait_table
from fd_async.pipeline.state import Parts, RunState
from fd_async.pipeline.stopping import run_until_stopped
from fd_async.pipeline.training import TrainingLoop
from fd_async.telemetry.lag import LoopLag
from fd_async.telemetry.sinks import MetricsFile
from fd_async.telemetry.status import StatusFile

log = structlog.get_logger(__name__)

EXIT_DONE = 0
EXIT_ALARM = 7
"""Not 0: what a script runs next must not build on weights that fell apart."""
EXIT_INTERRUPTED = 130


class Controller:
    """Runs one experiment from `state.step` to `run.max_steps`."""

    def __init__(
        self, parts: Parts, state: RunState, *, metrics: MetricsFile, config_hash: str, probe_ids: list[int]
    ) -> None:
        self._parts = parts
        self._state = state
        self._lag = LoopLag(warn_ms=1000.0)
        self._status = StatusFile(parts.run_dir / "status.json")
        self._training = TrainingLoop(
            parts, state, metrics=metrics, lag=self._lag, config_hash=config_hash, probe_ids=probe_ids
        )
        self._rate = _Rate()

    async def run(self) -> int:
        """Run to the end and return the exit code.

        Raises:
            FdError: whatever ended the run.
        """
        state = self._state
        try:
            async with self._training.checkpoints.running(), anyio.create_task_group() as services:
                services.start_soon(self._lag.run)
                services.start_soon(self._watch)
                services.start_soon(self._show)
                await services.start(self._listen)
                await self._training.start()
                await self._train()
                if state.stopping.is_set():
                    state.phase = "writing the last checkpoint"
                    await self._checkpoint_in_time()
                    self._parts.progress.message(f"stopped after step {state.step}; continue with --resume")
                else:
                    await self._training.finish()
                services.cancel_scope.cancel()
            state.error = state.ended_by_alarm
            state.phase = "interrupted" if state.stopping.is_set() else "ended by an alarm" if state.error else "done"
        except BaseException as error:
            state.phase = "failed"
            state.error = str(first_cause(error))
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await self._status.write(self._snapshot())
        if state.stopping.is_set():
            return EXIT_INTERRUPTED
        return EXIT_ALARM if state.ended_by_alarm else EXIT_DONE

    async def _train(self) -> None:
        """Run attempts and learner side by side until the learner is through."""
        async with anyio.create_task_group() as loops:
            loops.start_soon(self._attempt)
            await self._training.run()
            loops.cancel_scope.cancel()

    async def _attempt(self) -> None:
        """Run attempts; a request to stop cancels all but paid calls (their tickets are attempted again on resume)."""
        attempts, within_s = AttemptLoops(self._parts, self._state), self._parts.config.run.shutdown_s / 2
        await run_until_stopped(self._state.stopping, attempts.run, on_stop=lambda: attempts.finish_calls(within_s))

    async def _checkpoint_in_time(self) -> None:
        """Write the checkpoint of a run that was asked to stop, in what time it has."""
        shutdown_s, step = self._parts.config.run.shutdown_s, self._state.step
        try:
            with anyio.fail_after(shutdown_s):
                await self._training.checkpoint()
        except TimeoutError as error:
            self._training.checkpoints.give_up()
            raise StallDetected(
                f"the checkpoint of step {step} took longer than run.shutdown_s = {shutdown_s:g} s and was given up; "
                "--resume continues from the one before"
            ) from error

    async def _listen(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for received in signals:
                if self._state.stopping.is_set():
                    self._training.checkpoints.give_up()
                    raise KeyboardInterrupt
                self._state.stopping.set()
                self._parts.progress.message(
                    f"{signal.Signals(received).name}: finishing the step, then a checkpoint; again leaves now"
                )

    async def _watch(self) -> None:
        """Print who waits for whom when nothing moves, and end the run when it stays so."""
        config, board = self._parts.config.run, self._state.board
        tokens, warned = 0.0, False
        while True:
            await anyio.sleep(1.0)
            generated = self._parts.engine.statistics()["tokens_generated"]
            if generated != tokens:
                tokens = generated
                board.progress()
            idle_s = anyio.current_time() - board.last_progress
            if idle_s < config.stall_warn_s:
                warned = False
                continue
            table = wait_table(board.waits())
            if not warned:
                warned = True
                self._parts.progress.message(f"no progress for {idle_s:.0f} s; who waits for whom:\n{table}")
                log.warning("no_progress", seconds=round(idle_s), waits=table)
            if idle_s > config.stall_abort_s:
                stacks = self._parts.run_dir / "logs" / "stacks.txt"
                with stacks.open("w") as file:
                    faulthandler.dump_traceback(file)
                raise StallDetected(
                    f"no progress for {idle_s:.0f} s (run.stall_abort_s); stacks in {stacks}; waits:\n{table}"
                )

    async def _show(self) -> None:
        """Feed the live view four times a second and status.json now and then."""
        every, written = self._parts.config.telemetry.status_every_s, 0.0
        while True:
            snapshot = self._snapshot()
            self._parts.progress.update(snapshot)
            self._parts.observers.snapshot(snapshot)
            if anyio.current_time() - written >= every:
                written = anyio.current_time()
                await self._status.write(snapshot)
            await anyio.sleep(0.25)

    def _stages(self) -> dict[str, int]:
        """Return counts in the order of the flow; `ready` groups are those that the learner may take."""
        counts = self._state.board.counts()
        attempts = {name: counts.pop(name) for name in ("generating", "tools", "audit", "feedback")}
        return attempts | {"ready": self._state.buffer.num_finished} | counts

    def _snapshot(self) -> dict[str, Any]:
        state, config, row = self._state, self._parts.config, self._state.last_row
        tokens_per_s, eta_s = self._rate.update(
            self._parts.engine.statistics()["tokens_generated"], state.step, config.run.max_steps
        )
        solved = state.recent_solved
        return {
            "run": self._parts.run_dir.name,
            "phase": state.phase,
            "error": state.error,
            "step": state.step,
            "max_steps": config.run.max_steps,
            "weight_version": state.buffer.version,
            "stages": self._stages(),
            "ready": state.buffer.num_finished,
            "batch": config.learner.prompts_per_step,
            "outstanding": state.buffer.num_outstanding,
            "capacity": max(0, state.buffer.capacity),
            "pass_rate": sum(solved) / len(solved) if solved else None,
            "staleness": row.get("staleness/mean"),
            "loss": row.get("loss"),
            "tokens_per_s": tokens_per_s,
            "usd": self._parts.provider.statistics()["usd"],
            "eta_s": eta_s,
            "alarms": dict(state.alarms),
            "dropped": dict(state.num_dropped),
            "tokens": dict(state.tokens),
            "waits": [msgspec.structs.asdict(wait) for wait in state.board.waits()],
            "elapsed_s": round(anyio.current_time() - state.started, 1),
        }


class _Rate:
    """Tokens per second over the last seconds, and the time left from the last steps."""

    def __init__(self) -> None:
        self._tokens: list[tuple[float, float]] = []
        self._steps: list[tuple[float, int]] = []

    def update(self, tokens: float, step: int, max_steps: int) -> tuple[float, float | None]:
        now = anyio.current_time()
        self._tokens = [pair for pair in self._tokens if now - pair[0] < 10.0] + [(now, tokens)]
        if not self._steps or self._steps[-1][1] != step:
            self._steps = [*self._steps[-20:], (now, step)]
        since, before = self._tokens[0]
        per_s = (tokens - before) / (now - since) if now > since else 0.0
        started, first = self._steps[0]
        done = self._steps[-1][1] - first
        eta_s = (self._steps[-1][0] - started) / done * (max_steps - step) if done else None
        return per_s, eta_s
