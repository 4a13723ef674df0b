"""The provider that asks a language model: prompt, answer, check, one second question."""

from __future__ import annotations

import time

import msgspec
from structlog.typing import FilteringBoundLogger

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackAccountError, FeedbackError, FeedbackOutage
from fd_async.feedback.answers import ask_again, clean, violations
from fd_async.feedback.failures import BadRequest, rejected
from fd_async.feedback.hashing import prompt_hash
from fd_async.feedback.limits import Limits
from fd_async.feedback.meter import Meter, Statistics
from fd_async.feedback.outage import OnEvent, Outage
from fd_async.feedback.prompts import TUTOR_PROMPTS, user_message
from fd_async.feedback.remote import Backoff, GenerateText, Purchase, Remote, TextAnswer
from fd_async.types import Feedback, Rollout

_HOPELESS = {"refusal": "feedback_refused", "model_context_window_exceeded": "feedback_context_window"}
"""Asking the same again cannot help."""


class Tutor:
    """Feedback written by a model: `anthropic`, `openai` or `self`. Made by `open_provider`."""

    def __init__(
        self,
        generate_text: GenerateText,
        config: FeedbackTable,
        *,
        spent_usd: float = 0.0,
        backoff: Backoff | None = None,
        on_event: OnEvent | None = None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self._config = config
        self._system = TUTOR_PROMPTS[config.prompt]
        self._limits = Limits(config, spent_usd=spent_usd)
        self._meter = Meter()
        self._outage = Outage(config, on_event=on_event, log=log)
        self._remote = Remote(
            generate_text, config, self._limits, self._meter, self._outage, backoff=backoff or Backoff(), log=log
        )
        self._log = log

    def key(self, rollout: Rollout) -> str:
        """Return the hash under which this feedback is, or will be, in the ledger."""
        return self._key(self._user(rollout))

    def statistics(self) -> Statistics:
        """Return the counters as they stand."""
        return self._meter.snapshot(
            usd=float(self._limits.budget.spent_usd),
            waiting=self._limits.waiting,
            backlog_s=self._backlog_s(),
            places=self._limits.places,
            rates={kind: msgspec.structs.asdict(rate) for kind, rate in self._limits.rates.items()},
            outages=self._outage.count,
            outage_s=self._outage.seconds,
            awaited_s=self._outage.seconds,
            outages_s=self._outage.total_s,
        )

    def _backlog_s(self) -> float:
        meter = self._meter
        answers = max(meter.answered + meter.rejected, 1)
        at_once = self._limits.seconds_for(meter.pending, meter.input_tokens / answers, meter.output_tokens / answers)
        return self._outage.seconds + max(at_once, meter.pending * meter.latency_s / self._limits.places)

    async def wait_until_there(self) -> float:
        """Wait for the end of an outage; return what asking cost, US dollars.

        Raises:
            FeedbackOutage: it has lasted `feedback.max_outage_s`; `usd` is what asking cost.
        """
        purchase = Purchase()
        try:
            await self._remote.wait_until_there(purchase, patient=True)
        except FeedbackError as error:
            error.usd = float(purchase.usd)
            raise
        return float(purchase.usd)

    async def feedback(self, rollout: Rollout) -> Feedback:
        """Ask for feedback on one attempt.

        Raises:
            FeedbackRejected: answered, but unusable twice or refused; `cause` says why.
            FeedbackUnavailable: no answer inside `feedback.deadline_s`, while others were answered.
            FeedbackOutage: nobody is answered, for longer than the table allows.
            FeedbackBudgetExceeded: `feedback.max_usd` or the provider's own limit is spent.
            FeedbackAccountError: key, model or account refused.
        """
        user = self._user(rollout)
        purchase = Purchase()
        self._meter.calls += 1
        try:
            await self._remote.wait_until_there(purchase)  # an outage is waited for outside, or nobody could leave it
            async with self._limits.slot():
                text, model = await self._usable_answer(user, purchase)
        except FeedbackError as error:
            if not isinstance(error, FeedbackOutage):  # the attempt waits, for a resume or for the fallback
                self._meter.drops[error.cause] += 1
            error.usd = float(purchase.usd)
            raise
        finally:
            self._meter.ended += 1
        self._meter.answer(purchase.seconds)
        return Feedback(
            rollout_id=rollout.id,
            text=text,
            provider=self._config.type,
            model=model or self._config.model,
            prompt_hash=self._key(user),
            input_tokens=purchase.input_tokens,
            output_tokens=purchase.output_tokens,
            usd=float(purchase.usd),
            request_ids=purchase.request_ids,
            asked=purchase.asked,
            seconds=purchase.seconds,
            asked_unix_s=purchase.asked_unix_s,
            answered_unix_s=time.time(),
        )

    async def _usable_answer(self, user: str, purchase: Purchase) -> tuple[str, str]:
        """Return (text, model) of the first or second answer that passes the check."""
        answer = await self._ask(user, purchase)
        text = clean(answer.text)
        cause, problems = self._problems(answer, text)
        if problems and answer.stop_reason not in _HOPELESS:
            self._reject(cause, problems)
            answer = await self._ask(ask_again(user, text, problems), purchase)
            text = clean(answer.text)
            cause, problems = self._problems(answer, text)
        if problems:
            self._reject(cause, problems)
            raise rejected(f"Unusable answer of {answer.model or self._config.type}: {' '.join(problems)}", cause)
        return text, answer.model

    async def _ask(self, user: str, purchase: Purchase) -> TextAnswer:
        try:
            return await self._remote.ask(self._system, user, purchase)
        except BadRequest as error:
            if self._meter.output_tokens or self._meter.answered:
                raise
            # Nothing has ever been answered: the configuration is wrong, not this attempt.
            raise FeedbackAccountError(f"{error} Check the [feedback] table: model, max_output_tokens.") from error

    def _problems(self, answer: TextAnswer, text: str) -> tuple[str, list[str]]:
        """Return (drop cause, what is wrong); nothing wrong when the list is empty."""
        if answer.stop_reason in _HOPELESS:
            return _HOPELESS[answer.stop_reason], [f"The model stopped with `{answer.stop_reason}`."]
        if answer.stop_reason == "max_tokens":
            limit = self._config.max_output_tokens
            return "feedback_truncated", [f"The answer was cut off at {limit} tokens; be much shorter."]
        if not text:
            return "feedback_empty", ["The answer was empty."]
        if answer.stop_reason != "end_turn":
            return "feedback_truncated", ["The answer was not finished."]
        return "feedback_format", violations(text, self._config.prompt) if self._config.check_answers else []

    def _reject(self, cause: str, problems: list[str]) -> None:
        self._meter.rejected += 1
        if self._log:
            self._log.info("feedback_answer_refused", cause=cause, problems=problems)

    def _user(self, rollout: Rollout) -> str:
        return user_message(rollout, self._config.max_attempt_chars)

    def _key(self, user: str) -> str:
        return prompt_hash(self._config.type, self._config.model, self._system, user)
