"""What a refused or broken request means: worth another try, this attempt's own fault, or the end of the run.

Both SDKs raise by HTTP status, and compatible servers answer with the same statuses, so one table serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from msgspec import Struct

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackAccountError, FeedbackBudgetExceeded, FeedbackError, FeedbackRejected
from fd_async.feedback.rates import Kind, Rate, read_rates

_TRANSIENT_STATUSES = frozenset({408, 409, 425, 429})
_REFUSALS = frozenset({429, 503, 529})
_SPENT_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_error"})
_SPENT_SUFFIX = "spend_limit_reached"  # Claude: enforced_, contract_ and linked_organization_spend_limit_reached
_SPENT_WORDS = (
    "credit balance",
    "spend limit",
    "spending limit",
    "spending cap",
    "monthly limit",
    "insufficient credits",
)
"""Claude's 400 without prepaid credit, and what gateways write; `quota` alone may be a limit per minute."""
_CAPPED_WORDS = ("usage limits",)
"""Claude's 400 for a limit that the customer set; in a 429 it may be a limit per minute."""
_TOO_LONG_WORDS = ("prompt is too long", "maximum context length", "context_length_exceeded", "context window")


MOST_TOKENS = 10**8
"""A usage above this is an error of the server."""


class TransientFailure(Exception):
    """One request failed in a way that another try may cure. Never leaves this room."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        retry_after_s: float | None = None,
        rates: Mapping[Kind, Rate] | None = None,
        maybe_billed: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        """0 where no answer came."""
        self.rates = rates or {}
        self.retry_after_s = retry_after_s
        """What the server asked for, seconds."""
        self.maybe_billed = maybe_billed
        """The request reached the model, so its input may be on the bill."""

    @property
    def is_refusal(self) -> bool:
        """The provider is there and has enough for now."""
        return self.status in _REFUSALS

    @property
    def speaks_for_outage(self) -> bool:
        """A limit that we ran into says that somebody is there."""
        return self.status != 429


class BadRequest(FeedbackRejected):
    """The provider calls the request itself wrong; ends the run when no answer has ever been usable."""

    cause = "feedback_bad_request"


class Reply(Struct, frozen=True, kw_only=True):
    """An error reply, in the terms that both SDKs share."""

    status: int
    code: str = ""
    """The most specific machine-readable code: `enforced_spend_limit_reached`, `insufficient_quota`..."""
    kind: str = ""
    """The code above it: `rate_limit_error`, `insufficient_quota`..."""
    message: str = ""
    headers: Mapping[str, str] = {}
    """Lower-case names."""


_UNSENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"})
"""What httpx, which both SDKs use, raises before a request has left."""

UNREADABLE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""What the SDKs, and reading their loosely checked objects, raise on a body that is no answer: half of one, HTML."""


def unreadable(error: Exception, address: str) -> TransientFailure:
    """Say that an answer came and could not be read."""
    return TransientFailure(
        f"{address} sent something that is no answer ({type(error).__name__}: {_one_line(str(error), 100)})",
        maybe_billed=True,
    )


def broken_off(error: Exception, address: str) -> TransientFailure:
    """Say that no answer came; unless nobody was reached, the request was sent and its input may be on the bill."""
    cause = error.__cause__ or error
    return TransientFailure(
        f"{address} could not be reached or broke off: {type(cause).__name__}: {_one_line(str(cause), 200)}",
        maybe_billed=type(cause).__name__ not in _UNSENT,
    )


def count(value: object) -> int:
    """Take a number of tokens from a usage.

    Raises:
        ValueError: it is none; the SDKs check nothing.
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS:
        return value
    raise ValueError(f"{_one_line(repr(value), 40)} is not a number of tokens")


def plain(text: object) -> str:
    """Take a text that can be written as UTF-8; half a surrogate pair, which JSON allows, becomes `?`.

    Raises:
        TypeError: it is no text.
    """
    if not isinstance(text, str):
        raise TypeError(f"{type(text).__name__} where a text belongs")
    return text.encode(errors="replace").decode()


def rejected(message: str, cause: str) -> FeedbackRejected:
    """Build a rejection whose `cause` is what the ledger records."""
    error = FeedbackRejected(message)
    error.cause = cause
    return error


def failure_of(reply: Reply, config: FeedbackTable, *, key_env: str, address: str) -> Exception:
    """Say what an error reply means.

    Args:
        reply: status and body of the refusal.
        config: for the keys to name in the message.
        key_env: environment variable that held the API key.
        address: base URL that was called.

    Returns:
        `TransientFailure`, or a `FeedbackError` that no retry can cure.
    """
    said = f"{address} answered {reply.status}: {_one_line(reply.message) or 'no message'}"
    if _is_spent(reply):
        return FeedbackBudgetExceeded(
            f"The provider's own spending limit is reached ({said}). Raise it there, then continue with --resume."
        )
    if reply.status in (401, 403):
        return FeedbackAccountError(
            f"The API key is refused ({said}). Check the environment variable {key_env}; feedback.api_key_env can name"
            " another one."
        )
    if reply.status == 404:
        return FeedbackAccountError(
            f"The model is not there ({said}). Check feedback.model = {config.model!r} and"
            f" feedback.base_url = {config.base_url!r}."
        )
    return _transient(reply, said) or _rejection(reply, said)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Read `retry-after-ms` or `retry-after` (seconds or an HTTP date); None when absent or unreadable."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    if seconds is not None or value is None:
        return seconds
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _transient(reply: Reply, said: str) -> TransientFailure | None:
    if reply.status in _TRANSIENT_STATUSES or reply.status >= 500:
        rest_s, rates = retry_after_s(reply.headers), read_rates(reply.headers)
        return TransientFailure(said, status=reply.status, retry_after_s=rest_s, rates=rates)
    return None


def _rejection(reply: Reply, said: str) -> FeedbackError:
    text = f"{reply.code} {reply.kind} {reply.message}".lower()
    if reply.status == 413 or any(words in text for words in _TOO_LONG_WORDS):
        return rejected(
            f"The attempt is too long for the feedback model ({said}). Lower feedback.max_attempt_chars.",
            "feedback_context_window",
        )
    if "content_filter" in text or "content_policy" in text:
        return rejected(f"The provider's content filter refused the attempt ({said}).", "feedback_refused")
    return BadRequest(f"The provider calls the request wrong ({said}).")


def _is_spent(reply: Reply) -> bool:
    message = reply.message.lower()
    words = _SPENT_WORDS if reply.status == 429 else _SPENT_WORDS + _CAPPED_WORDS
    return (
        reply.status == 402
        or not _SPENT_CODES.isdisjoint((reply.code, reply.kind))
        or reply.code.endswith(_SPENT_SUFFIX)
        or (reply.status in (400, 403, 429) and any(said in message for said in words))
    )


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) and number >= 0 else None


def _one_line(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]}..."
