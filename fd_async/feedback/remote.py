"""The one retry layer: a request, its deadline, its rests, its price.

Invariants:
- The SDKs run with `max_retries=0`; every retry happens here.
- `feedback.deadline_s` counts requests and rests between them, not the time that our own limits hold a call back.
- A Retry-After is obeyed up to `feedback.max_retry_after_s`. A longer one that does not fit the deadline ends the
  feedback at once; the other callers rest for the capped time too.
- A request that broke off after it was sent is counted as if its input had been billed.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Literal

import anyio
from msgspec import Struct, field
from structlog.typing import FilteringBoundLogger

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackUnavailable
from fd_async.feedback.failures import TransientFailure
from fd_async.feedback.limits import Charge, Limits
from fd_async.feedback.meter import Meter

_BYTES_PER_TOKEN = 3
"""Of UTF-8. English has about 4; Lean and its symbols take more tokens."""

StopReason = Literal["end_turn", "max_tokens", "refusal", "model_context_window_exceeded", "other"]
"""Claude's names; other providers' are translated."""


class TextAnswer(Struct, frozen=True, kw_only=True):
    """What a model answered, in terms that all providers share."""

    text: str
    stop_reason: StopReason = "end_turn"
    """Only `end_turn` is a whole answer."""
    input_tokens: int = 0
    output_tokens: int = 0
    model: str = ""
    request_id: str = ""


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
    usd: float = 0.0
    request_ids: list[str] = field(default_factory=list)
    seconds: float = 0.0
    """Counts against `feedback.deadline_s`."""


def estimate_tokens(text: str) -> int:
    """Guess the tokens of a text before anyone has counted them; rather too many than too few."""
    return len(text.encode()) // _BYTES_PER_TOKEN + 16


class Remote:
    """Asks one model until it answers, gives a final refusal, or the deadline has passed."""

    def __init__(
        self,
        generate_text: GenerateText,
        config: FeedbackTable,
        limits: Limits,
        meter: Meter,
        *,
        backoff: Backoff,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self._generate_text = generate_text
        self._config = config
        self._limits = limits
        self._meter = meter
        self._backoff = backoff
        self._log = log

    async def ask(self, system: str, user: str, purchase: Purchase) -> TextAnswer:
        """Return the model's answer and add its cost to `purchase`.

        Raises:
            FeedbackUnavailable: no answer inside `feedback.deadline_s`.
            FeedbackError: a refusal that no retry can cure, see `failures.failure_of`.
        """
        input_tokens = estimate_tokens(system) + estimate_tokens(user)
        tries = 0
        while True:
            tries += 1
            async with self._limits.request(input_tokens, self._config.max_output_tokens) as charge:
                try:
                    answer = await self._request(system, user, purchase)
                except TransientFailure as error:
                    failure = error
                    if failure.maybe_billed:
                        self._meter.usd_unconfirmed += charge.settle(input_tokens, 0)
                        purchase.usd += charge.usd
                else:
                    self._settle(charge, answer, purchase)
                    return answer
            await self._rest(tries, failure, purchase)

    async def _request(self, system: str, user: str, purchase: Purchase) -> TextAnswer:
        """Send one request under its own timeout."""
        left_s = self._config.deadline_s - purchase.seconds
        if left_s <= 0:
            raise FeedbackUnavailable(self._out_of_time("the deadline passed before the second question"))
        timeout_s = min(self._config.request_timeout_s, left_s)
        started = anyio.current_time()
        self._meter.requests += 1
        self._meter.in_flight += 1
        try:
            with anyio.fail_after(timeout_s):
                return await self._generate_text(system, user, self._config.max_output_tokens)
        except TimeoutError as error:
            raise TransientFailure(f"no answer within {timeout_s:.3g} s", maybe_billed=True) from error
        finally:
            self._meter.in_flight -= 1
            purchase.seconds += anyio.current_time() - started

    async def _rest(self, tries: int, failure: TransientFailure, purchase: Purchase) -> None:
        """Sleep before the next try, or give up when it would come too late."""
        left_s = self._config.deadline_s - purchase.seconds
        asked_s = failure.retry_after_s
        rest_s = self._backoff.rest_s(tries)
        if asked_s is not None:
            rest_s = min(asked_s + rest_s, self._config.max_retry_after_s)  # the jitter keeps callers apart
            self._limits.pause(min(asked_s, self._config.max_retry_after_s))
        if max(rest_s, asked_s or 0.0) >= left_s:
            raise FeedbackUnavailable(self._out_of_time(f"try {tries} failed: {failure}")) from failure
        self._meter.retries += 1
        if self._log:
            self._log.info("feedback_retry", tries=tries, rest_s=round(rest_s, 3), failure=str(failure))
        await anyio.sleep(rest_s)
        purchase.seconds += rest_s

    def _settle(self, charge: Charge, answer: TextAnswer, purchase: Purchase) -> None:
        charge.settle(answer.input_tokens, answer.output_tokens)
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
                usd=round(charge.usd, 6),
                request_id=answer.request_id,
            )

    def _out_of_time(self, why: str) -> str:
        return f"No feedback within feedback.deadline_s = {self._config.deadline_s:g} s; {why}."
