"""The learner's loop: cut, step, push, publish; evaluation and checkpoints between steps.

    consumes      batches of finished groups, oldest first
    produces      weight versions (v = gradient steps taken), one metrics row each
    waits for     a full batch, the learner's step, the push, evaluation rollouts
    unblocked by  attempts that finish; each remote wait has its own deadline

While it steps, attempts go on under the old version; that is the overlap of `async` mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import structlog

from fd_async.errors import PushRefused
from fd_async.evaluation import evaluate_suite
from fd_async.pipeline.accounts import Accounts
from fd_async.pipeline.buffer import Group
from fd_async.pipeline.checkpoints import Checkpoints
from fd_async.pipeline.guard import Guard
from fd_async.pipeline.replay_marks import digest, fingerprint
from fd_async.pipeline.samples import build_samples, decode_scores
from fd_async.pipeline.state import Finished, Parts, RunState, drop_attempt
from fd_async.pipeline.steps import StepClock, attempts_row, step_row
from fd_async.pipeline.stopping import run_until_stopped
from fd_async.telemetry.lag import LoopLag
from fd_async.telemetry.sinks import MetricsFile, read_rows
from fd_async.types import PushReport, Rollout, StagedWeights

log = structlog.get_logger(__name__)


class TrainingLoop:
    """Owns the gradient steps of a run."""

    def __init__(
        self,
        parts: Parts,
        state: RunState,
        *,
        metrics: MetricsFile,
        lag: LoopLag,
        config_hash: str,
        probe_ids: list[int],
    ) -> None:
        self._parts = parts
        self._state = state
        self._metrics = metrics
        self._lag = lag
        self._probe_ids = probe_ids
        self._started = anyio.current_time()
        self._evaluated: int | None = None
        """Step of the last full evaluation."""
        self.accounts = Accounts(parts, state, lag)
        self.is_between_steps = True
        """Whether the learner's state is that of `state.step`, with its batch in the ledger."""
        self._unwritten: dict[str, float | int | None] = {}
        """Row of a step that is taken, until all of it is known and written."""
        self.checkpoints = Checkpoints(
            parts.run_dir / "checkpoints",
            parts.learner,
            parts.config,
            config_hash,
            is_good=lambda step: self._guard.is_good(step),
        )
        self._guard = Guard(parts, state, self.checkpoints)

    async def start(self) -> None:
        """Serve exactly the learner's weights, then evaluate them."""
        state, config = self._state, self._parts.config
        state.buffer.listen(self._parts.ledger.note)
        self._parts.ledger.note("started", fingerprint(config), state.step)
        state.phase = "first push"
        with self._at("push", "pushing"):
            staged = await self._parts.learner.stage(state.step, self._probe_ids)
        report = await self._push(staged)
        if report is None:
            return
        log.info(
            "weights_published", version=report.version, probe_max_abs=report.probe_max_abs, seconds=report.stall_s
        )
        await self._recall()
        if config.eval.at_start and state.step == 0:
            await self._evaluate_alone()

    async def run(self) -> None:
        """Take gradient steps until `run.max_steps`, until the run is asked to stop or an alarm ends it."""
        state, config = self._state, self._parts.config
        while state.step < config.run.max_steps and not state.stopping.is_set() and not state.ended_by_alarm:
            state.phase = "training"
            if not await self._step():
                break
            if config.checkpoint.every_steps and state.step % config.checkpoint.every_steps == 0:
                keep = partial(self.checkpoint, wait=not config.checkpoint.background)
                await run_until_stopped(state.stopping, keep)  # a stop brings its own time for the last checkpoint

    async def finish(self) -> None:
        """Evaluate the last weights and keep them."""
        await self.checkpoint()
        if self._parts.config.eval.at_end:
            await self._evaluate_alone()

    async def checkpoint(self, *, wait: bool = True) -> None:
        """Keep the current step unless that is done; `wait` until it is on the disk.

        Its row goes first, with what is known of the step, where a push or an evaluation was cut off.
        """
        if self._unwritten:
            await self._write_row(self._unwritten)
        with self._at("checkpoint", "checkpoint"):
            await self.checkpoints.take(self._state.step)
            if wait:
                await self.checkpoints.settle()

    async def _step(self) -> bool:
        """Take one gradient step; False when the run was asked to stop while waiting for a batch."""
        state, parts = self._state, self._parts
        clock = StepClock()
        with self._at("learner", "waiting"):
            groups = await run_until_stopped(state.stopping, self._cut)
        if groups is None:
            return False
        clock.mark("wait_for_batch")
        step = state.step + 1
        items = [item for group in groups for item in group.items]
        with self._at(f"step-{step}", "learning"):
            samples, facts = await anyio.to_thread.run_sync(
                build_samples, groups, parts.renderer, parts.config, state.step
            )
            self.is_between_steps = False
            report = await parts.learner.step(samples, step=step)
            row = {"step": step} | report.metrics | attempts_row([item.rollout for item in items])
            row |= await self._guard.heed(row)
            clock.mark("learn")
            staged = await parts.learner.stage(step, self._probe_ids)
            clock.mark("stage")
        scores = await anyio.to_thread.run_sync(decode_scores, items, report, parts.renderer)
        await parts.ledger.put_batch(step, [item.rollout.id for item in items], scores)
        for item in items:
            state.move_tokens(item.rollout, "trained")
        state.step = step
        self.is_between_steps, self._unwritten = True, row
        push = await self._push(staged)
        clock.mark("push")
        row |= await self.accounts.row(push)
        row = step_row(parts, state, items, row, push, facts, clock, self._lag)
        every = parts.config.eval.every_steps
        last = step == parts.config.run.max_steps
        if push is not None and parts.suites and ((last and parts.config.eval.at_end) or (every and step % every == 0)):
            row |= await self._evaluate(full=last) or {}
        await self._write_row(row)
        return True

    async def _cut(self) -> list[Group[Finished]]:
        """Take a batch in which no attempt is older than `algorithm.max_age`; each that is makes room for a new one."""
        parts, state = self._parts, self._state
        while True:
            groups = await state.buffer.cut()
            old = [i.rollout for group in groups for i in group.items if self._is_too_old(i.rollout)]
            if not old:
                return groups
            for group in groups:
                group.items = [item for item in group.items if not self._is_too_old(item.rollout)]
            orphans = [item.rollout for item in await state.buffer.give_back(groups)]
            for rollout, cause in [(r, "too_old") for r in old] + [(r, "group_too_small") for r in orphans]:
                await drop_attempt(parts, state, rollout, cause)

    def _is_too_old(self, rollout: Rollout) -> bool:
        max_age = self._parts.config.algorithm.max_age
        return 0 <= max_age < self._state.step - rollout.oldest_version

    async def _push(self, staged: StagedWeights) -> PushReport | None:
        """Publish a version; None when the run is stopping, since nothing will be generated from it.

        A stop ends the push too: it may be waiting for an engine that starts anew, and the checkpoint need not.
        """
        state = self._state
        if state.stopping.is_set():
            return None
        with self._at(f"push-{staged.version}", "pushing"):
            report = await run_until_stopped(state.stopping, partial(self._offer, staged))
        if report is None:
            return None
        self._parts.ledger.note("weights", digest(staged), staged.version)
        await state.buffer.publish(staged.version)
        return report

    async def _offer(self, staged: StagedWeights) -> PushReport:
        """Push; what the engine refuses is staged afresh and offered once more, since the old weights still serve."""
        engine, learner = self._parts.engine, self._parts.learner
        try:
            return await engine.push(staged, learner.send)
        except PushRefused as refusal:
            log.warning("push_refused", version=staged.version, reason=str(refusal))
        return await engine.push(await learner.stage(staged.version, staged.probe_ids), learner.send)

    async def _recall(self) -> None:
        """Take from an earlier process's rows its alarms, and whether it evaluated this step on every statement."""
        rows = await anyio.to_thread.run_sync(read_rows, self._metrics.path)
        await self._guard.recall(rows)
        for row in rows:
            if row.get("step") == self._state.step and all(self._is_whole(row, suite) for suite in self._parts.suites):
                self._evaluated = self._state.step

    def _is_whole(self, row: Mapping[str, Any], suite: str) -> bool:
        """Tell whether a row is of every statement; those that do not compile have failed attempts and no verdict."""
        samples = self._parts.config.eval.samples
        counted = (row.get(f"eval/{suite}/statements") or 0) * samples + (row.get(f"eval/{suite}/failed") or 0)
        return bool(counted >= len(self._parts.suites[suite]) * samples)

    async def _evaluate_alone(self) -> None:
        """Evaluate the served weights over every statement, unless that is done, and write a row of its own."""
        state = self._state
        if self._parts.suites and self._evaluated != state.step:
            row = await self._evaluate(full=True)
            if row is not None:
                await self._write_row({"step": state.step, "weight_version": self._parts.engine.weight_version} | row)

    async def _evaluate(self, *, full: bool) -> dict[str, float | int | None] | None:
        """Evaluate the served weights on every suite; no push happens meanwhile. None when asked to stop."""
        state = self._state
        before, state.phase = state.phase, "evaluating"
        started = anyio.current_time()
        with self._at("evaluation", "evaluating"):
            row = await run_until_stopped(state.stopping, partial(self._evaluate_suites, full))
        state.phase = before
        if row is None:
            return None
        self._evaluated = state.step if full else self._evaluated
        return row | {"time/eval_s": anyio.current_time() - started}

    async def _evaluate_suites(self, full: bool) -> dict[str, float | int | None]:
        parts, state = self._parts, self._state

        async def record(rollout: Rollout) -> None:
            await parts.ledger.put_rollout(rollout, "evaluated", admitted_version=state.step, step=state.step)

        row: dict[str, float | int | None] = {}
        await parts.verifier.canaries()
        for suite, statements in parts.suites.items():
            limit = 0 if full else parts.config.eval.limit
            result = await evaluate_suite(
                suite,
                statements[:limit] if limit else statements,
                runner=parts.runner,
                k=parts.config.eval.k,
                samples=parts.config.eval.samples,
                temperature=parts.config.eval.temperature,
                concurrency=parts.config.rollout.concurrency,
                record=record,
                on_stage=state.board.move,
            )
            row |= result.metrics()
        return row

    async def _write_row(self, row: dict[str, float | int | None]) -> None:
        row["time/elapsed_s"] = anyio.current_time() - self._started
        await self._metrics.append(row)
        self._unwritten = {}
        self._parts.observers.row(row)
        self._state.last_row = row
        self._state.board.progress()
        self._parts.progress.step(row)

    @contextmanager
    def _at(self, item: str, stage: str) -> Iterator[None]:
        self._state.board.move(item, stage)
        try:
            yield
        finally:
            self._state.board.move(item, "")
