"""The one retry layer: a request, its deadline, its rests, its price.

Invariants:
- The SDKs run with `max_retries=0`; every retry happens here.
- `feedback.deadline_s` counts requests and rests between them, not the time that our own limits hold a call back, and
  nothing of what an outage took.
- A Retry-After is obeyed up to `feedback.max_retry_after_s`; the other callers rest too.
- A call gives up only where others were answered meanwhile, or the provider says that it is there.
- A request that broke off after it was sent, or was cancelled, is counted as if its input had been billed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Final, Literal

import anyio
from msgspec import Struct, field
from structlog.typing import FilteringBoundLogger

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackRejected, FeedbackUnavailable
from fd_async.feedback.failures import TransientFailure
from fd_async.feedback.limits import Charge, Limits
from fd_async.feedback.meter import Meter
from fd_async.feedback.money import ZERO, Usage
from fd_async.feedback.outage import Outage
from fd_async.feedback.rates import Kind, Rate

_BYTES_PER_TOKEN = 3
"""Of UTF-8. English has about 4; Lean and its symbols take more tokens."""

_QUESTION: Final = ("Answer with one word.", "Are you there?", 64)
"""System prompt, message and longest answer of the question whether a provider that went silent is there."""

StopReason = Literal["end_turn", "max_tokens", "refusal", "model_context_window_exceeded", "other"]
"""Claude's names; other providers' are translated."""


class TextAnswer(Struct, frozen=True, kw_only=True):
    """What a model answered, in terms that all providers share."""

    text: str
    stop_reason: StopReason = "end_turn"
    """Only `end_turn` is a whole answer."""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    """Part of the input, at its own price."""
    cache_write_tokens: int = 0
    """Part of the input, at its own price."""
    model: str = ""
    request_id: str = ""
    rates: Mapping[Kind, Rate] = {}
    """What the headers said is left."""

    @property
    def usage(self) -> Usage:
        return Usage(
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cache_read_tokens=self.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens,
        )


GenerateText = Callable[[str, str, int], Awaitable[TextAnswer]]
"""(system prompt, user message, longest answer in tokens) -> answer. Raises `TransientFailure` or a `FeedbackError`."""


class Backoff(Struct, frozen=True, kw_only=True):
    """Rest before try n+1: min(first_s * 2**(n-1), max_s), times a random factor of 0.5 to 1."""

    first_s: float = 0.5
    max_s: float = 30.0

    def rest_s(self, tries: int) -> float:
        return min(self.first_s * 2 ** min(tries - 1, 32), self.max_s) * random.uniform(0.5, 1.0)


class Purchase(Struct, kw_only=True):
    """What one feedback has cost so far, refused answers included."""

    asked: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    usd: Decimal = ZERO
    request_ids: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """Requests and rests."""
    deadline_used_s: float = 0.0
    """The part of `seconds` that counts against `feedback.deadline_s`: what came before an outage is forgiven."""
    first_sent_at: float | None = None
    """Event-loop seconds."""
    asked_unix_s: float = 0.0
    """Wall clock when the first request was sent."""

    def took(self, seconds: float) -> None:
        """Add the time of a request or a rest."""
        self.seconds += seconds
        self.deadline_used_s += seconds


def estimate_tokens(text: str) -> int:
    """Guess the tokens of a text before anyone has counted them; rather too many than too few."""
    return len(text.encode(errors="replace")) // _BYTES_PER_TOKEN + 16


class Remote:
    """Asks one model until it answers, gives a final refusal, or the deadline has passed."""

    def __init__(
        self,
        generate_text: GenerateText,
        config: FeedbackTable,
        limits: Limits,
        meter: Meter,
        outage: Outage,
        *,
        backoff: Backoff,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self._generate_text = generate_text
        self._config = config
        self._limits = limits
        self._meter = meter
        self._outage = outage
        self._backoff = backoff
        self._log = log

    async def ask(self, system: str, user: str, purchase: Purchase) -> TextAnswer:
        """Return the model's answer and add its cost to `purchase`.

        Raises:
            FeedbackUnavailable: no answer inside `feedback.deadline_s`, although the provider is there.
            FeedbackOutage: from `Outage.wait`.
            FeedbackError: a refusal that no retry can cure, see `failures.failure_of`.
        """
        input_tokens = estimate_tokens(system) + estimate_tokens(user)
        tries = 0
        while True:
            await self.wait_until_there(purchase)
            if self._left_s(purchase) <= 0:
                raise FeedbackUnavailable(self._out_of_time("it passed before the second question"))
            async with self._limits.request(input_tokens, self._config.max_output_tokens) as charge:
                if self._outage.is_down:  # it began while our own limits held us back
                    continue
                tries += 1
                timeout_s = min(self._config.request_timeout_s, self._left_s(purchase))
                try:
                    answer = await self._request(system, user, self._config.max_output_tokens, timeout_s, purchase)
                except TransientFailure as error:
                    failure = error
                    self._note_failure(charge, failure, purchase)
                    if failure.speaks_for_outage:
                        self._outage.failed(failure)
                except FeedbackRejected:
                    self._outage.answered()
                    raise
                except anyio.get_cancelled_exc_class():
                    self._book_unconfirmed(charge, purchase)
                    raise
                else:
                    self._settle(charge, answer, purchase)
                    return answer
            await self._rest(tries, failure, purchase)

    async def wait_until_there(self, purchase: Purchase, *, patient: bool | None = None) -> bool:
        """Wait while the provider is, or may be, down; return whether it was.

        Args:
            purchase: pays for the question, and has its deadline put back by an outage.
            patient: as for `Outage.wait`; by default as `feedback.outage` says.
        """
        patient = self._config.outage == "pause" if patient is None else patient
        was_down = await self._outage.wait(lambda: self._ask_whether_there(purchase), patient=patient)
        if was_down:
            purchase.deadline_used_s = 0.0
            purchase.first_sent_at = None
        return was_down

    async def _ask_whether_there(self, purchase: Purchase) -> None:
        """Put a tiny question and tell the breaker what came of it."""
        system, user, longest = _QUESTION
        input_tokens = estimate_tokens(system) + estimate_tokens(user)
        aside = Purchase()
        try:
            async with self._limits.request(input_tokens, longest) as charge:
                try:
                    answer = await self._request(system, user, longest, self._config.request_timeout_s, aside)
                except TransientFailure as failure:
                    self._note_failure(charge, failure, aside)
                    self._outage.unanswered(failure)
                except FeedbackRejected:
                    self._outage.answered()
                except anyio.get_cancelled_exc_class():
                    self._book_unconfirmed(charge, aside)
                    raise
                else:
                    self._settle(charge, answer, aside)
        finally:
            purchase.usd += aside.usd

    async def _request(
        self, system: str, user: str, max_tokens: int, timeout_s: float, purchase: Purchase
    ) -> TextAnswer:
        """Send one request under its own timeout."""
        started = anyio.current_time()
        if purchase.first_sent_at is None:
            purchase.first_sent_at = started
        purchase.asked_unix_s = purchase.asked_unix_s or time.time()
        self._meter.requests += 1
        self._meter.in_flight += 1
        try:
            with anyio.fail_after(timeout_s):
                return await self._generate_text(system, user, max_tokens)
        except TimeoutError as error:
            raise TransientFailure(f"no answer within {timeout_s:.3g} s", maybe_billed=True) from error
        finally:
            self._meter.in_flight -= 1
            purchase.took(anyio.current_time() - started)

    def _note_failure(self, charge: Charge, failure: TransientFailure, purchase: Purchase) -> None:
        """Book what a request without an answer may have cost, and take the provider's hints."""
        if failure.maybe_billed:
            self._book_unconfirmed(charge, purchase)
        self._limits.hear(charge, failure.rates)
        if failure.is_refusal and not failure.rates:
            self._limits.refused(charge)
        if failure.retry_after_s is not None:
            self._limits.pause(min(failure.retry_after_s, self._config.max_retry_after_s))

    def _book_unconfirmed(self, charge: Charge, purchase: Purchase) -> None:
        self._meter.usd_unconfirmed += charge.settle(Usage(input_tokens=charge.amounts["input"]))
        purchase.usd += charge.usd

    async def _rest(self, tries: int, failure: TransientFailure, purchase: Purchase) -> None:
        """Sleep before the next try; where it would come too late, give up unless the provider is down."""
        asked_s = failure.retry_after_s
        rest_s = self._backoff.rest_s(tries)
        if asked_s is not None:
            rest_s = min(asked_s + rest_s, self._config.max_retry_after_s)  # the jitter keeps callers apart
        if max(rest_s, asked_s or 0.0) >= self._left_s(purchase):
            await self._give_up(tries, failure, purchase)
            return
        self._meter.retries += 1
        if self._log:
            self._log.info("feedback_retry", tries=tries, rest_s=round(rest_s, 3), failure=str(failure))
        await anyio.sleep(rest_s)
        purchase.took(rest_s)

    async def _give_up(self, tries: int, failure: TransientFailure, purchase: Purchase) -> None:
        """End this call, unless nobody was answered since it began and the provider turns out to be down."""
        if purchase.first_sent_at is not None and not self._outage.has_answered_since(purchase.first_sent_at):
            self._outage.suspect(failure)
            if await self.wait_until_there(purchase):
                return
        raise FeedbackUnavailable(self._out_of_time(f"try {tries} failed: {failure}")) from failure

    def _out_of_time(self, why: str) -> str:
        return f"No feedback within feedback.deadline_s = {self._config.deadline_s:g} s; {why}."

    def _left_s(self, purchase: Purchase) -> float:
        return self._config.deadline_s - purchase.deadline_used_s

    def _settle(self, charge: Charge, answer: TextAnswer, purchase: Purchase) -> None:
        self._outage.answered()
        self._limits.answered()
        self._limits.hear(charge, answer.rates)
        charge.settle(answer.usage)
        self._meter.input_tokens += answer.input_tokens
        self._meter.output_tokens += answer.output_tokens
        purchase.asked += 1
        purchase.input_tokens += answer.input_tokens
        purchase.output_tokens += answer.output_tokens
        purchase.usd += charge.usd
        if answer.request_id:
            purchase.request_ids.append(answer.request_id)
        if self._log:
            self._log.debug(
                "feedback_answer",
                model=answer.model,
                stop_reason=answer.stop_reason,
                input_tokens=answer.input_tokens,
                output_tokens=answer.output_tokens,
                usd=float(charge.usd),
                request_id=answer.request_id,
            )
