"""From ticket to the queue: admission, rollout, ledger, feedback, ledger, buffer.

    consumes      slots of the buffer
    produces      finished (attempt, feedback) pairs in the buffer
    waits for     admission (the learner's version), vLLM, the verifier, the feedback provider
    unblocked by  publish, a finished generate, a verdict, an answer; each under its own deadline

Every ticket ends in exactly one terminal record: trained, or dropped with a named cause.
"""

from __future__ import annotations

import anyio
import msgspec
import structlog
from anyio.abc import TaskGroup

from fd_async.data.ledger import QueuedRollout
from fd_async.errors import FeedbackAccountError, FeedbackBudgetExceeded, FeedbackError, VerifierError
from fd_async.pipeline.state import Finished, Parts, RunState
from fd_async.types import Feedback, Rollout, Ticket

log = structlog.get_logger(__name__)


class AttemptLoops:
    """Starts attempts as slots become free and carries each to the buffer or to a named drop."""

    def __init__(self, parts: Parts, state: RunState) -> None:
        self._parts = parts
        self._state = state
        self._fd = parts.config.algorithm.type == "fd"
        self._is_paid = parts.config.feedback.type in ("anthropic", "openai", "self")
        self._group_size = parts.config.rollout.samples_per_prompt
        self._limiter = anyio.CapacityLimiter(parts.config.rollout.concurrency)
        self._skip: set[int] = set()
        """Ordinals that the ledger already knows."""

    async def run(self) -> None:
        """Admit tickets in order until cancelled."""
        async with anyio.create_task_group() as tasks:
            await self._continue_queued(tasks)
            ordinal = 0
            while True:
                if ordinal not in self._skip:
                    version = await self._state.buffer.admit(ordinal)
                    for sample in range(self._group_size):
                        tasks.start_soon(self._attempt, self._ticket(ordinal, sample), version)
                ordinal += 1

    def _ticket(self, ordinal: int, sample: int) -> Ticket:
        return Ticket(ordinal=ordinal, sample=sample, purpose="train", statement=self._parts.order[ordinal])

    async def _continue_queued(self, tasks: TaskGroup) -> None:
        """Put the ledger's open groups back and start what they lack; nothing recorded is generated or bought again."""
        ledger, state = self._parts.ledger, self._state
        state.tokens.update(ledger.tokens_by_outcome())
        seen = ledger.seen()
        self._skip = set(seen)
        queued: dict[int, list[QueuedRollout]] = {}
        for record in ledger.queued():
            queued.setdefault(record.rollout.ordinal, []).append(record)
        for ordinal, outcomes in sorted(seen.items()):
            if "trained" in outcomes.values():
                continue
            records = queued.get(ordinal, [])
            missing = [sample for sample in range(self._group_size) if sample not in outcomes]
            waiting = [record for record in records if self._fd and record.feedback is None]
            ready = [Finished(r.rollout, r.feedback) for r in records if r not in waiting]
            if not missing and not waiting and len(ready) < state.buffer.min_items:
                for item in ready:
                    await self._drop(item.rollout, "group_too_small")
                continue
            version = min((record.admitted_version for record in records), default=state.step)
            await state.buffer.restore(ordinal, version, len(missing) + len(waiting), ready, generating=len(missing))
            for sample in missing:
                tasks.start_soon(self._attempt, self._ticket(ordinal, sample), version)
            for record in waiting:
                tasks.start_soon(self._deliver, record.rollout)

    async def _attempt(self, ticket: Ticket, version: int) -> None:
        """Run one ticket to its terminal record or into the buffer."""
        state, parts = self._state, self._parts
        async with self._limiter:
            try:
                rollout = await parts.runner.run(
                    ticket,
                    temperature=parts.config.rollout.temperature,
                    on_stage=lambda stage: state.board.move(ticket.id, stage),
                )
            finally:
                state.board.move(ticket.id, "")
        await state.buffer.generated()
        failed = rollout.end_reason == "failed"
        outcome = f"dropped:{rollout.failure}" if failed else "queued"
        await parts.ledger.put_rollout(rollout, outcome, admitted_version=version, step=None)
        state.tokens[outcome] += rollout.num_sampled_tokens
        if failed:
            self._note_failure(rollout)
            await self._drop_from_group(rollout)
            return
        state.recent_failures.append(False)
        state.recent_solved.append(rollout.reward)
        await self._deliver(rollout)

    async def _deliver(self, rollout: Rollout) -> None:
        """Get feedback for a recorded attempt and hand the pair to the learner."""
        feedback: Feedback | None = None
        if self._fd:
            if self._parts.config.run.mode == "sync":
                await self._state.buffer.wait_all_generated()
            self._state.board.move(rollout.id, "feedback")
            try:
                feedback = await self._feedback(rollout)
            except (FeedbackBudgetExceeded, FeedbackAccountError):
                raise
            except FeedbackError as error:
                await self._drop(rollout, error.cause)
                log.info("feedback_dropped", rollout=rollout.id, cause=error.cause, reason=str(error))
                await self._drop_from_group(rollout)
                return
            finally:
                self._state.board.move(rollout.id, "")
        await self._state.buffer.ready(rollout.ordinal, Finished(rollout, feedback))

    async def _feedback(self, rollout: Rollout) -> Feedback:
        """Buy feedback once: exactly this question may stand in the ledger already."""
        provider, ledger = self._parts.provider, self._parts.ledger
        if self._is_paid:
            bought = await ledger.feedback_by_hash(provider.key(rollout))
            if bought is not None:
                feedback = msgspec.structs.replace(bought, rollout_id=rollout.id, usd=0.0, asked=0)
                await ledger.put_feedback(feedback)
                return feedback
        feedback = await provider.feedback(rollout)
        await ledger.put_feedback(feedback)
        return feedback

    async def _drop(self, rollout: Rollout, cause: str) -> None:
        await self._parts.ledger.drop(rollout.id, cause)
        self._state.move_tokens(rollout, f"dropped:{cause}")
        self._state.num_dropped[cause] += 1

    async def _drop_from_group(self, rollout: Rollout) -> None:
        """Free the attempt's place; a group that became too small goes with it."""
        for rest in await self._state.buffer.drop(rollout.ordinal):
            await self._drop(rest.rollout, "group_too_small")

    def _note_failure(self, rollout: Rollout) -> None:
        state = self._state
        state.num_dropped[rollout.failure] += 1
        log.warning("rollout_failed", rollout=rollout.id, cause=rollout.failure, reason=rollout.verdict.reason)
        if rollout.failure == "prompt_too_long":
            return
        state.recent_failures.append(True)
        share = sum(state.recent_failures) / len(state.recent_failures)
        limit = self._parts.config.rollout.max_failed_fraction
        if len(state.recent_failures) >= 16 and share > limit:
            raise VerifierError(
                f"{share:.0%} of the last {len(state.recent_failures)} attempts failed by infrastructure "
                f"(rollout.max_failed_fraction = {limit:g}); last cause {rollout.failure}: {rollout.verdict.reason}"
            )
