"""The one task group of a run.

    ┌ attempts ─────────────── ticket ▸ admission ▸ rollout ▸ ledger ▸ feedback ▸ ledger ▸ buffer ┐
    │                                                                                           │ finished groups
    │ versions (publish frees slots)                                                            ▼
    └───────────────────────── push ◂ stage ◂ gradient step ◂ batch, oldest first ◂ training ───┘
      watch      no progress for stall_warn_s: wait table; for stall_abort_s: stacks, a checkpoint if there can be
                 one, exit 6
      checkpoint what was taken between two steps is written beside the next ones
      status     status.json and the live view, from the same snapshot
      stop       asked to stop: finish the step, write a checkpoint, exit 130, all within run.shutdown_s

A loop that fails ends the run with its own exception; nothing runs outside this group.
"""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog

from fd_async.errors import CheckpointError, FdError, FeedbackError, StallDetected, first_cause
from fd_async.learner.checkpoints import find_checkpoint
from fd_async.pipeline.attempts import AttemptLoops
from fd_async.pipeline.board import Wait, wait_table
from fd_async.pipeline.signals import EXIT_INTERRUPTED, Limit, NoLimit
from fd_async.pipeline.state import Parts, RunState
from fd_async.pipeline.stopping import run_until_stopped
from fd_async.pipeline.training import TrainingLoop
from fd_async.pipeline.watchdog import dump_stacks
from fd_async.telemetry.garbage import collect_now_and_then
from fd_async.telemetry.lag import LoopLag
from fd_async.telemetry.sinks import MetricsFile
from fd_async.telemetry.status import StatusFile

log = structlog.get_logger(__name__)

EXIT_DONE = 0
EXIT_ALARM = 7
"""Not 0: what a script runs next must not build on weights that fell apart."""
_CLOSING_S = 10.0
"""At most a quarter of `run.shutdown_s`, kept for closing the parts after the last checkpoint."""


class Controller:
    """Runs one experiment from `state.step` to `run.max_steps`."""

    def __init__(
        self,
        parts: Parts,
        state: RunState,
        *,
        metrics: MetricsFile,
        config_hash: str,
        probe_ids: list[int],
        limit: Limit | None = None,
    ) -> None:
        self._limit = limit or NoLimit()
        self._parts = parts
        self._state = state
        self._lag = LoopLag(warn_ms=1000.0)
        self._status = StatusFile(parts.run_dir / "status.json")
        self._training = TrainingLoop(
            parts, state, metrics=metrics, lag=self._lag, config_hash=config_hash, probe_ids=probe_ids
        )
        self._rate = _Rate()
        self._work = anyio.CancelScope()
        self._stalled = ""
        """Why the work was cut off."""

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
                services.start_soon(self._bound_stop)
                services.start_soon(collect_now_and_then)
                with self._work:
                    await self._do_work()
                if self._stalled:
                    raise StallDetected(f"{self._stalled}; {await self._save_the_rest()}")
                services.cancel_scope.cancel()
            state.error = state.ended_by_alarm
            state.phase = "interrupted" if state.stopping.is_set() else "ended by an alarm" if state.error else "done"
        except anyio.get_cancelled_exc_class():
            state.phase = "interrupted"
            raise
        except BaseException as error:
            state.phase = "failed"
            state.error = str(first_cause(error))
            raise
        finally:
            with anyio.CancelScope(shield=True):
                await self._status.write(self.snapshot())
        if state.stopping.is_set():
            return EXIT_INTERRUPTED
        return EXIT_ALARM if state.ended_by_alarm else EXIT_DONE

    async def _do_work(self) -> None:
        """Train to the end, or until the run is asked to stop or its provider fails for good, and keep the result."""
        state = self._state
        await self._training.start()
        try:
            await self._train()
        except Exception as error:
            if isinstance(first_cause(error), FeedbackError):  # nothing speaks against what was learned: keep it
                self._parts.progress.message(await self._save_the_rest())
            raise
        if state.stopping.is_set():
            state.phase = "writing the last checkpoint"
            await self._training.checkpoint()
            self._parts.progress.message(f"stopped after step {state.step}; continue with --resume")
        else:
            await self._training.finish()

    async def _train(self) -> None:
        """Run attempts and learner side by side until the learner is through."""
        async with anyio.create_task_group() as loops:
            loops.start_soon(self._attempt)
            await self._training.run()
            loops.cancel_scope.cancel()

    async def _attempt(self) -> None:
        """Run attempts; a request to stop cancels them."""
        await run_until_stopped(self._state.stopping, AttemptLoops(self._parts, self._state).run)

    async def _bound_stop(self) -> None:
        """Cut off what a run that was asked to stop still does when its time is over."""
        state, shutdown_s = self._state, self._parts.config.run.shutdown_s
        await state.stopping.wait()
        await anyio.sleep(shutdown_s - min(_CLOSING_S, shutdown_s / 4))
        self._cut_off(f"asked to stop, and {state.phase} (step {state.step}) took longer than run.shutdown_s allows")

    def _cut_off(self, why: str) -> None:
        """End the work; what is left of the run is a checkpoint, if there can be one."""
        self._stalled = why
        self._state.leaving.set()
        self._limit.leave_by(self._parts.config.run.shutdown_s, StallDetected.exit_code)
        if self._state.stopping.is_set():
            self._training.checkpoints.give_up()
        self._work.cancel()

    async def _save_the_rest(self) -> str:
        """Write a checkpoint where nothing is half done and the learner answers; say what `--resume` takes."""
        if self._training.is_between_steps and not self._state.stopping.is_set():
            with anyio.move_on_after(self._parts.config.run.shutdown_s / 2):
                try:
                    await self._training.checkpoint()
                except FdError as error:
                    log.warning("no_last_checkpoint", error=str(error))
        self._training.checkpoints.give_up()
        try:
            newest = await anyio.to_thread.run_sync(find_checkpoint, self._parts.run_dir / "checkpoints")
        except CheckpointError:
            return "there is no checkpoint: --resume begins at step 0 with the attempts in the ledger"
        return f"--resume continues from {newest}"

    async def _watch(self) -> None:
        """Print who waits for whom when nothing moves, and end the run when it stays so."""
        config, board = self._parts.config.run, self._state.board
        tokens, warned = 0.0, False
        while True:
            await anyio.sleep(min(1.0, config.stall_warn_s / 2))
            generated = self._parts.engine.statistics()["tokens_generated"]
            if generated != tokens or self._is_provider_awaited():
                tokens = generated
                board.progress()
            idle_s = anyio.current_time() - board.last_progress
            if idle_s < config.stall_warn_s:
                warned = False
                continue
            table = wait_table(self._waits())
            if not warned:
                warned = True
                self._parts.progress.message(f"no progress for {idle_s:.0f} s; who waits for whom:\n{table}")
                log.warning("no_progress", seconds=round(idle_s), waits=table)
            if idle_s > config.stall_abort_s:
                stacks = await anyio.to_thread.run_sync(dump_stacks, self._parts.run_dir)
                self._cut_off(f"{table}\nno progress for {idle_s:.0f} s (run.stall_abort_s); {stacks}")
                return

    def _is_provider_awaited(self) -> bool:
        """Say whether attempts wait for a provider that is down, for which `feedback.max_outage_s` is the limit."""
        outage_s = self._parts.provider.statistics().get("awaited_s", 0.0)
        return 0.0 < outage_s <= self._parts.config.feedback.max_outage_s

    def _deadline_s(self, key: str) -> float | None:
        """Return the value of a deadline's config key, seconds; None where nothing bounds the wait."""
        table, _, name = key.partition(".")
        return getattr(getattr(self._parts.config, table, None), name, None) or None

    def _waits(self) -> list[Wait]:
        state = self._state
        return [*(state.admission.waits() if state.admission else []), *state.board.waits()]

    async def _show(self) -> None:
        """Feed the live view four times a second and status.json now and then."""
        every, written = self._parts.config.telemetry.status_every_s, 0.0
        while True:
            snapshot = self.snapshot()
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

    def snapshot(self) -> dict[str, Any]:
        """Return what status.json says now."""
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
            **self._training.accounts.snapshot(),
            "admission": state.admission.statistics() if state.admission else {},
            "waits": [
                {**msgspec.structs.asdict(wait), "deadline_s": self._deadline_s(wait.deadline)}
                for wait in self._waits()
            ],
            "restarts": state.restarts,
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
