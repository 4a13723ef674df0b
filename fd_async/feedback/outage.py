"""Is the provider there at all? One breaker for all callers.

    fine ──failures in a row, or a deadline without anybody's answer──▶ suspected ──the question fails──▶ down
      ▲                                                                    │                               │
      └──────────────── any answer, to the question or to an attempt ──────┴───────────────────────────────┘

Invariants:
- Whether the provider is there is found out with a tiny question of its own, never with an attempt: an attempt that no
  provider can answer opens no outage, and in an outage no attempt is lost.
- One question at a time, asked by the caller whose turn it is. The others wait in the order in which they came.
- Time spent here counts against nobody's `deadline_s`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from structlog.typing import FilteringBoundLogger

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackOutage

OnEvent = Callable[[str, str], None]
"""(kind, one line for people); kinds: `provider down`, `provider silent` after each further question, or
`provider back`."""

_FIRST_REST_S = 1.0
"""Before the second question; doubles up to `feedback.outage_probe_s`."""


class Outage:
    """What is known of the provider's health, and the place where callers wait for it."""

    def __init__(
        self, config: FeedbackTable, *, on_event: OnEvent | None = None, log: FilteringBoundLogger | None = None
    ) -> None:
        self._config = config
        self._on_event = on_event
        self._log = log
        self._turn = anyio.Lock()
        self._answered = anyio.Event()
        self._failures = 0
        self._last_failure = ""
        self._last_answer_at = float("-inf")
        self._suspected_at: float | None = None
        self._down_at: float | None = None
        self._next_question_at = 0.0
        self._rest_s = 0.0
        self._over_s = 0.0
        self.count = 0
        """Outages so far."""

    @property
    def is_down(self) -> bool:
        return self._down_at is not None

    @property
    def seconds(self) -> float:
        """How long the provider has been down; 0 while it is there."""
        return anyio.current_time() - self._down_at if self._down_at is not None else 0.0

    @property
    def total_s(self) -> float:
        """How long it was down in all, this time included."""
        return self._over_s + self.seconds

    def has_answered_since(self, at: float) -> bool:
        """Say whether anybody was answered after `at`, event-loop seconds."""
        return self._last_answer_at > at

    def answered(self) -> None:
        """Somebody was answered: whatever was feared is over."""
        seconds = self.seconds
        self._failures, self._last_answer_at = 0, anyio.current_time()
        if self._suspected_at is None:
            return
        was_down = self.is_down
        self._over_s += seconds
        self._suspected_at = self._down_at = None
        self._answered.set()
        self._answered = anyio.Event()
        if was_down:
            self._tell("provider back", f"the feedback provider answers again, after {seconds:.0f} s")

    def failed(self, failure: Exception) -> None:
        """Count one request without an answer."""
        self._failures += 1
        if self._failures >= self._config.outage_after:
            self.suspect(failure)

    def suspect(self, failure: Exception) -> None:
        """Have the next caller ask whether anybody is there."""
        self._last_failure = str(failure)
        if self._suspected_at is None:
            self._suspected_at = self._next_question_at = anyio.current_time()
            self._rest_s = min(_FIRST_REST_S, self._config.outage_probe_s)

    def unanswered(self, failure: Exception) -> None:
        """Note that the question itself got no answer."""
        self._last_failure = str(failure)
        now = anyio.current_time()
        if self._suspected_at is None:  # an attempt was answered meanwhile
            return
        self._next_question_at = now + self._rest_s
        self._rest_s = min(2 * self._rest_s, self._config.outage_probe_s)
        if self._down_at is None:
            self._down_at = self._suspected_at
            self.count += 1
            meanwhile = {"pause": "attempts wait for it", "fallback": "[fallback] is asked", "end": "the run ends"}
            self._tell(
                "provider down",
                f"the feedback provider does not answer ({self._last_failure}); {meanwhile[self._config.outage]}",
            )
        else:
            self._tell("provider silent", f"the feedback provider has not answered for {self.seconds:.0f} s")

    async def wait(self, ask: Callable[[], Awaitable[None]], *, patient: bool) -> bool:
        """Return once the provider is there; at once while nothing speaks against it.

        Args:
            ask: puts the question and reports to `answered` or `unanswered`; called only while it is this caller's
                turn.
            patient: wait for the end of an outage; otherwise raise as soon as there is one.

        Returns:
            Whether there was an outage meanwhile.

        Raises:
            FeedbackOutage: there is one and the caller is not patient, or it has lasted `feedback.max_outage_s`.
        """
        count_before = self.count - self.is_down
        while self._suspected_at is not None:
            if not patient and self.is_down and (self._turn.locked() or not self._is_question_due()):
                raise self._outage()
            async with self._turn:
                if self.is_down and patient:
                    await self._rest()
                if self._suspected_at is not None and self._is_question_due():
                    await ask()
                if self.is_down and (not patient or self.seconds >= self._config.max_outage_s):
                    raise self._outage()
        return self.count > count_before

    def _is_question_due(self) -> bool:
        return anyio.current_time() >= self._next_question_at

    async def _rest(self) -> None:
        """Sleep until the next question, the end of the outage, or of our patience."""
        now = anyio.current_time()
        end = (self._down_at or now) + self._config.max_outage_s
        with anyio.move_on_after(max(0.0, min(self._next_question_at, end) - now)):
            await self._answered.wait()

    def _outage(self) -> FeedbackOutage:
        lasted = f"has answered nobody for {self.seconds:.0f} s"
        if self._config.outage == "end":
            return FeedbackOutage(
                f'The feedback provider {lasted} and feedback.outage = "end" ({self._last_failure}). Continue with'
                " --resume: nothing is paid twice."
            )
        return FeedbackOutage(
            f"The feedback provider {lasted}; feedback.max_outage_s = {self._config.max_outage_s:g}"
            f" ({self._last_failure}). Continue with --resume when it is back: nothing is paid twice."
        )

    def _tell(self, kind: str, line: str) -> None:
        if self._log:
            self._log.warning("feedback_outage", what=kind, reason=line)
        if self._on_event:
            self._on_event(kind, line)
