"""Two providers: the one of `[feedback]`, and during its outages the one of `[fallback]`.

Invariants:
- Each has its own limits, prices, budget and breaker; a `Feedback` says who wrote it.
- The first is asked first, always; the next caller after its question was answered goes to it again.
- Where the second cannot help (down, spent, refused), callers wait for the first as under `outage = "pause"`: a
  fallback never ends a run.
"""

from __future__ import annotations

import re

import msgspec
from structlog.typing import FilteringBoundLogger

from fd_async.config.schema import FeedbackTable
from fd_async.errors import (
    FeedbackAccountError,
    FeedbackBudgetExceeded,
    FeedbackError,
    FeedbackOutage,
    FeedbackUnavailable,
)
from fd_async.feedback.local import Local
from fd_async.feedback.meter import Statistics
from fd_async.feedback.outage import OnEvent
from fd_async.feedback.tutor import Tutor
from fd_async.types import Feedback, Rollout

_SUMMED = (
    "requests", "answered", "rejected", "retries", "usd", "usd_unconfirmed", "input_tokens", "output_tokens",
    "in_flight", "waiting",
)  # fmt: skip


_NO_HELP = (FeedbackOutage, FeedbackUnavailable, FeedbackBudgetExceeded, FeedbackAccountError)
"""What says of the second provider that it cannot help now, and nothing of the attempt."""


_KEY = re.compile(rf"\bfeedback\.(?=(?:{'|'.join(field.name for field in msgspec.structs.fields(FeedbackTable))})\b)")
"""A key of `[feedback]`; the provider's own words, which a line may quote, are not touched."""


def _of_fallback(message: str) -> str:
    """Name the keys of the table that the second provider was opened with."""
    return _KEY.sub("fallback.", message).replace("[feedback]", "[fallback]")


class WithFallback:
    """Same protocol as `Tutor`."""

    def __init__(
        self,
        main: Tutor,
        fallback: Tutor | Local,
        *,
        on_event: OnEvent | None = None,
        log: FilteringBoundLogger | None = None,
    ) -> None:
        self._main = main
        self._fallback = fallback
        self._on_event = on_event
        self._log = log
        self._last_trouble = ""
        self._num_waiting = 0
        """Callers whom the second provider could not help."""

    def key(self, rollout: Rollout) -> str:
        """Return the hash of the question to the first provider; the second one's feedback has its own."""
        return self._main.key(rollout)

    def statistics(self) -> Statistics:
        """Return the first provider's counters, with what the second did added."""
        main, other = self._main.statistics(), self._fallback.statistics()
        main.update({name: main[name] + other[name] for name in _SUMMED})  # type: ignore[typeddict-item]
        main["fallback_calls"], main["fallback_usd"] = other["calls"], other["usd"]
        if main["outage_s"] and not self._num_waiting:
            main["backlog_s"], main["awaited_s"] = other["backlog_s"], 0.0
        return main

    async def feedback(self, rollout: Rollout) -> Feedback:
        """Ask the first provider, or the second one while the first is down.

        Raises:
            FeedbackOutage: neither helps, and the first has been down for `feedback.max_outage_s`.
            FeedbackError: as `Tutor.feedback` of the provider that was asked.
        """
        main_usd = fallback_usd = 0.0
        try:
            while True:
                try:
                    feedback = await self._main.feedback(rollout)
                except FeedbackOutage as error:
                    main_usd += error.usd
                else:
                    main_usd += feedback.usd
                    break
                try:
                    feedback = await self._fallback.feedback(rollout)
                except FeedbackError as error:
                    fallback_usd += error.usd
                    error.usd, error.args = 0.0, (_of_fallback(str(error)),)
                    if not isinstance(error, _NO_HELP):
                        raise
                    self._say(str(error))
                else:
                    fallback_usd += feedback.usd
                    break
                main_usd += await self._wait_for_main()
        except FeedbackError as error:
            error.usd += main_usd + fallback_usd
            error.fallback_usd = fallback_usd
            raise
        return msgspec.structs.replace(feedback, usd=main_usd + fallback_usd, fallback_usd=fallback_usd)

    async def _wait_for_main(self) -> float:
        self._num_waiting += 1
        try:
            return await self._main.wait_until_there()
        finally:
            self._num_waiting -= 1

    def _say(self, trouble: str) -> None:
        if self._log:
            self._log.warning("fallback_failed", reason=trouble)
        if self._on_event and trouble != self._last_trouble:
            self._on_event("fallback down", f"the fallback cannot help, attempts wait for the provider: {trouble}")
        self._last_trouble = trouble
