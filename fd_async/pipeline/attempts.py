"""From ticket to the queue: admission, rollout, ledger, audit, ledger, feedback, ledger, buffer.

    consumes      slots of the buffer
    produces      finished (attempt, feedback) pairs in the buffer
    waits for     admission (the learner's version), vLLM, the verifier, its audit, the feedback provider
    unblocked by  publish, a finished generate, a verdict, an audit, an answer; each under its own deadline

An accepted proof is judged once more before anyone learns from it: a revoked one is corrected in the ledger, and only
then is feedback asked for. No slot is held meanwhile. A resume audits again what was recorded and neither audited nor
given feedback.

Every ticket ends in exactly one terminal record: trained, or dropped with a named cause. An attempt that is cut off
before goes on in the next process, or in this one after a restart of the learner, from its recorded tokens. A paid
call is never cut off by what ends the rest: it has half of `run.shutdown_s` to be answered and recorded.
"""

from __future__ import annotations

from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import msgspec
import structlog
from anyio.abc import TaskGroup

from fd_async.data.ledger import QueuedRollout
from fd_async.errors import (
    FdError,
    FeedbackAccountError,
    FeedbackBudgetExceeded,
    FeedbackError,
    FeedbackOutage,
    PreflightError,
    VerifierError,
)
from fd_async.pipeline.admission import Admission
from fd_async.pipeline.recorder import Recorder
from fd_async.pipeline.state import Finished, Parts, RunState, drop_attempt
from fd_async.types import Feedback, PartialRollout, Rollout, Ticket

log = structlog.get_logger(__name__)

HOPELESS_DROPS = 256
"""Attempts dropped one after another, with none kept between them, that end the run with the last one's cause."""

_LEAST_USD = 1e-6
"""Below it a difference is that of sums of floats."""


class AttemptLoops:
    """Starts attempts as slots become free and carries each to the buffer or to a named drop."""

    def __init__(self, parts: Parts, state: RunState) -> None:
        self._parts = parts
        self._state = state
        self._fd = parts.config.algorithm.type == "fd"
        self._is_paid = parts.config.feedback.type in ("anthropic", "openai", "self")
        self._group_size = parts.config.rollout.samples_per_prompt
        self._admission = state.admission = Admission(
            parts.config, slots=state.buffer, engine=parts.engine, verifier=parts.verifier, provider=parts.provider
        )
        self._recorder = Recorder(parts.ledger, parts.runner, parts.config.rollout.record_every_s)
        self._skip: set[int] = set()
        """Ordinals that the ledger already knows."""
        self._asking: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        self._calls: set[anyio.CancelScope] = set()
        """Paid feedback calls under way; nothing but `_finish_calls` cancels them."""
        self._last_calls = anyio.CancelScope()
        self._drops_in_a_row = 0

    async def run(self) -> None:
        """Admit tickets in order until cancelled."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._admission.run)
                tasks.start_soon(self._recorder.run)
                tasks.start_soon(self._finish_calls)
                await self._continue_queued(tasks)
                await self._admit(tasks)
        except BaseExceptionGroup as group:
            first: dict[type[BaseException], BaseException] = {}
            for error in group.exceptions:
                first.setdefault(type(error), error)
            # Hundreds of attempts meet the same end in the same moment; one line of each kind says it.
            raise BaseExceptionGroup("attempts", list(first.values())) from None
        finally:
            await self._recorder.flush()  # once for all: a shield in each of 10,000 cancelled tasks takes minutes
            await self._book_cut_off()

    async def _admit(self, tasks: TaskGroup) -> None:
        ordinal = 0
        while True:
            if ordinal not in self._skip:
                await self._admission.room()
                version = await self._state.buffer.admit(ordinal)
                for sample in range(self._group_size):
                    tasks.start_soon(self._attempt, self._ticket(ordinal, sample), version)
            ordinal += 1

    async def _finish_calls(self) -> None:
        """When all else is cancelled, let paid calls end and be recorded, unless the run is to leave at once."""
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.move_on_after(self._parts.config.run.shutdown_s / 2, shield=True) as self._last_calls:
                if self._calls:
                    await self._state.leaving.wait()
            for call in self._calls:
                call.cancel()

    async def _book_cut_off(self) -> None:
        """Record what calls that were cut off may have cost: the provider counts it, and no answer will tell it."""
        ledger, said, fallback_usd = self._parts.ledger, self._parts.provider.statistics(), 0.0
        with anyio.CancelScope(shield=True):
            usd = said.get("usd", 0.0) - await anyio.to_thread.run_sync(ledger.spent_usd)
            if usd < _LEAST_USD:
                return
            if self._parts.config.feedback.outage == "fallback":
                recorded = await anyio.to_thread.run_sync(ledger.fallback_spent_usd)
                fallback_usd = min(usd, max(0.0, said.get("fallback_usd", 0.0) - recorded))
            await ledger.put_spend("cut_off", usd, fallback_usd=fallback_usd)

    def _ticket(self, ordinal: int, sample: int) -> Ticket:
        return Ticket(ordinal=ordinal, sample=sample, purpose="train", statement=self._parts.order[ordinal])

    async def _continue_queued(self, tasks: TaskGroup) -> None:
        """Put the ledger's open groups back and start what they lack; nothing recorded is generated or bought again."""
        state = self._state
        seen, queued, begun = await anyio.to_thread.run_sync(self._read_ledger)
        self._skip = set(seen) | {partial.ordinal for partial in begun.values()}
        for partial in begun.values():
            if partial.sample >= self._group_size:  # rollout.samples_per_prompt was larger
                await self._discard(partial)
        for ordinal in sorted(self._skip):
            outcomes = seen.get(ordinal, {})
            if "trained" in outcomes.values():
                continue
            records = queued.get(ordinal, [])
            missing = [self._ticket(ordinal, n) for n in range(self._group_size) if n not in outcomes]
            waiting = [record for record in records if self._is_unfinished(record)]
            ready = [Finished(r.rollout, r.feedback) for r in records if r not in waiting]
            if not missing and not waiting and len(ready) < state.buffer.min_items:
                for item in ready:
                    await drop_attempt(self._parts, state, item.rollout, "group_too_small")
                continue
            versions = [record.admitted_version for record in records]
            versions += [begun[ticket.id].admitted_version for ticket in missing if ticket.id in begun]
            version = await state.buffer.restore(
                ordinal,
                min(versions, default=state.step),
                len(missing) + len(waiting),
                ready,
                generating=len(missing),
            )
            for ticket in missing:
                tasks.start_soon(self._attempt_restored, ticket, version, begun.get(ticket.id))
            for record in waiting:
                tasks.start_soon(self._audit_and_deliver, record.rollout)

    def _is_unfinished(self, record: QueuedRollout) -> bool:
        """Say whether a queued attempt still needs feedback or its audit, which comes before the feedback."""
        verdict = record.rollout.verdict
        return record.feedback is None and (self._fd or (verdict.is_proved and not verdict.audit))

    def _read_ledger(
        self,
    ) -> tuple[dict[int, dict[int, str]], dict[int, list[QueuedRollout]], dict[str, PartialRollout]]:
        """Take over the counts and return (ordinal -> sample -> outcome, ordinal -> queued attempts, id -> begun)."""
        ledger, state = self._parts.ledger, self._state
        state.tokens.update(ledger.tokens_by_outcome())
        state.tokens_generated = sum(state.tokens.values())
        state.discovery.add(ledger.trained_verdicts())
        seen = ledger.seen()
        for outcomes in seen.values():
            dropped = [outcome.partition(":") for outcome in outcomes.values()]
            state.num_dropped.update(cause for kind, _, cause in dropped if kind == "dropped")
        queued: dict[int, list[QueuedRollout]] = {}
        for record in ledger.queued():
            queued.setdefault(record.rollout.ordinal, []).append(record)
        return seen, queued, {partial.id: partial for partial in ledger.partials()}

    async def _attempt_restored(self, ticket: Ticket, version: int, partial: PartialRollout | None) -> None:
        """Run a ticket of an earlier process, from where that process left it if it can go on."""
        parts, state = self._parts, self._state
        await state.buffer.begin(version)
        if partial is not None and not await parts.runner.can_continue(ticket, partial):
            await self._discard(partial)
            log.info("attempt_begun_anew", rollout=ticket.id, reason="its prompt or its token budget has changed")
            partial = None
        await self._attempt(ticket, version, partial)

    async def _discard(self, partial: PartialRollout) -> None:
        """Give up what an earlier process sampled, by name."""
        await self._parts.ledger.discard_partial(partial.id, "config_changed")
        self._state.tokens["dropped:config_changed"] += partial.num_sampled_tokens
        self._state.tokens_generated += partial.num_sampled_tokens

    async def _run(self, ticket: Ticket, version: int, partial: PartialRollout | None) -> Rollout:
        """Generate and judge; what cuts an attempt off leaves in the ledger how far it came."""
        state, parts = self._state, self._parts
        try:
            return await parts.runner.run(
                ticket,
                temperature=parts.config.rollout.temperature,
                on_stage=lambda stage: state.board.move(ticket.id, stage),
                admitted_version=version,
                partial=partial,
                keep=self._recorder.keep,
            )
        finally:
            state.board.move(ticket.id, "")

    async def _attempt(self, ticket: Ticket, version: int, partial: PartialRollout | None = None) -> None:
        """Run one ticket to its terminal record or into the buffer."""
        state, parts = self._state, self._parts
        async with self._admission.attempt(ticket.ordinal, ticket.sample, continued=partial is not None):
            rollout = await self._run(ticket, version, partial)
        failed = rollout.end_reason == "failed"
        outcome = f"dropped:{rollout.failure}" if failed else "queued"
        await parts.ledger.put_rollout(rollout, outcome, admitted_version=version, step=None)
        state.tokens[outcome] += rollout.num_sampled_tokens
        state.tokens_generated += rollout.num_sampled_tokens
        if failed:
            self._note_failure(rollout)
            await self._drop_from_group(rollout)
        await state.buffer.generated()  # after the drop: in `sync` mode all wait for the attempt that replaces this one
        if failed:
            return
        state.recent_failures.append(False)
        await self._audit_and_deliver(rollout)

    async def _audit_and_deliver(self, rollout: Rollout) -> None:
        """Correct the reward of a recorded attempt where it does not stand, then hand the attempt on."""
        if rollout.verdict.is_proved and not rollout.verdict.audit:
            self._state.board.move(rollout.id, "audit")
            try:
                audited = await self._parts.runner.audit(rollout)
            finally:
                self._state.board.move(rollout.id, "")
            if audited is not rollout:
                await self._parts.ledger.put_audit(audited, before=rollout.verdict)
                rollout = audited
        self._state.recent_solved.append(rollout.reward)
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
                if feedback is None:
                    return
            except FeedbackError as error:
                await self._refused(rollout, error)
                return
            finally:
                self._state.board.move(rollout.id, "")
        self._drops_in_a_row = 0
        await self._state.buffer.ready(rollout.ordinal, Finished(rollout, feedback))

    async def _feedback(self, rollout: Rollout) -> Feedback | None:
        """Get feedback and record it; None when the end of the run left the call no time."""
        if not self._is_paid:
            feedback = await self._parts.provider.feedback(rollout)
            await self._parts.ledger.put_feedback(feedback)
            return feedback
        key = self._parts.provider.key(rollout)
        async with self._asking.setdefault(key, anyio.Lock()):
            with anyio.CancelScope(shield=True) as call:
                self._calls.add(call)
                try:
                    return await self._buy(rollout, key)
                finally:
                    self._calls.discard(call)
                    if not self._calls:
                        self._last_calls.cancel()
        return None

    async def _buy(self, rollout: Rollout, key: str) -> Feedback:
        """Buy feedback once: exactly this question may stand in the ledger already."""
        provider, ledger = self._parts.provider, self._parts.ledger
        bought = await ledger.feedback_by_hash(key)
        if bought is None:
            feedback = await provider.feedback(rollout)
        elif bought.rollout_id == rollout.id:
            return bought
        else:
            feedback = msgspec.structs.replace(bought, rollout_id=rollout.id, usd=0.0, asked=0)
        await ledger.put_feedback(feedback)
        return feedback

    async def _refused(self, rollout: Rollout, error: FeedbackError) -> None:
        """Record what an attempt without feedback cost, and drop it unless no other can fare better."""
        if error.usd:
            await self._parts.ledger.put_spend(error.cause, error.usd, fallback_usd=error.fallback_usd)
        if isinstance(error, FeedbackBudgetExceeded | FeedbackAccountError | FeedbackOutage):
            raise error
        await drop_attempt(self._parts, self._state, rollout, error.cause)
        log.info("feedback_dropped", rollout=rollout.id, cause=error.cause, reason=str(error))
        text = f"none of the last {HOPELESS_DROPS} attempts got feedback; the last one: {error}"
        self._count_in_a_row(type(error)(text))
        await self._drop_from_group(rollout)

    async def _drop_from_group(self, rollout: Rollout) -> None:
        """Free the attempt's place; a group that became too small goes with it."""
        for rest in await self._state.buffer.drop(rollout.ordinal):
            await drop_attempt(self._parts, self._state, rest.rollout, "group_too_small")

    def _count_in_a_row(self, error: FdError) -> None:
        """Raise `error` when nothing but drops has happened for long: going on would never fill a batch."""
        self._drops_in_a_row += 1
        if self._drops_in_a_row >= HOPELESS_DROPS:
            raise error

    def _note_failure(self, rollout: Rollout) -> None:
        """Count a failed attempt.

        Raises:
            VerifierError: failing has become the rule.
            PreflightError: no statement fits `rollout.max_prompt_tokens`.
        """
        state, config = self._state, self._parts.config.rollout
        state.num_dropped[rollout.failure] += 1
        log.warning("rollout_failed", rollout=rollout.id, cause=rollout.failure, reason=rollout.verdict.reason)
        if rollout.failure == "prompt_too_long":
            text = f"the last {HOPELESS_DROPS} prompts are all longer than rollout.max_prompt_tokens"
            self._count_in_a_row(
                PreflightError(f"{text} = {config.max_prompt_tokens}; raise it, or look at data.train")
            )
            return
        if rollout.failure == "bad_statement":
            text = f"the last {HOPELESS_DROPS} statements tried do not compile by themselves; the last one: "
            advice = "; look at data.train with bin/fd-data --check, and at verifier.header"
            self._count_in_a_row(PreflightError(f"{text}{rollout.verdict.reason}{advice}"))
            return
        state.recent_failures.append(True)
        last = f"last cause {rollout.failure}: {rollout.verdict.reason}"
        self._count_in_a_row(VerifierError(f"the last {HOPELESS_DROPS} attempts all failed; {last}"))
        num, share = len(state.recent_failures), sum(state.recent_failures) / len(state.recent_failures)
        if num >= 16 and share > config.max_failed_fraction:
            limit = f"rollout.max_failed_fraction = {config.max_failed_fraction:g}"
            raise VerifierError(f"{share:.0%} of the last {num} attempts failed by infrastructure ({limit}); {last}")
