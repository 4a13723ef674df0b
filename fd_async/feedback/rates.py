"""What a provider's headers say about its limits. Pure text, no I/O.

Claude sends `anthropic-ratelimit-KIND-{limit,remaining,reset}` with RFC 3339 times, OpenAI and most others
`x-ratelimit-{limit,remaining,reset}-KIND` with durations such as `6m0s` or `12ms`. A value that makes no sense
(negative, no number, a time that has passed) counts as absent: headers may slow us down and can never stop us.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal

from msgspec import Struct

Kind = Literal["requests", "input", "output", "tokens"]
"""`tokens` counts input and output together."""

_FORMS: Final = ("anthropic-ratelimit-{name}-{field}", "x-ratelimit-{field}-{name}")
_NAMES: Final[dict[Kind, str]] = {
    "requests": "requests",
    "input": "input-tokens",
    "output": "output-tokens",
    "tokens": "tokens",
}
_COUNT = re.compile(r"[0-9]{1,15}")
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s|d))")
_UNIT_S: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_EPOCH_S = 1e9
"""Plain numbers above this are Unix times, and milliseconds from 1,000 times this."""


class Rate(Struct, frozen=True, kw_only=True):
    """What is left of one limit."""

    remaining: int
    reset_s: float
    """Seconds until all of it is there again; above 0."""
    limit: int = 0
    """0 when not told."""


def read_rates(headers: Mapping[str, str]) -> dict[Kind, Rate]:
    """Read every limit whose remainder and reset make sense; names in lower case."""
    now = _server_time(headers)
    rates: dict[Kind, Rate] = {}
    for kind, name in _NAMES.items():
        for form in _FORMS:
            limit, remaining, reset = (
                headers.get(form.format(name=name, field=field)) for field in ("limit", "remaining", "reset")
            )
            left, reset_s = _count(remaining), seconds_until(reset, now)
            if left is not None and reset_s is not None:
                rates[kind] = Rate(remaining=left, reset_s=reset_s, limit=_count(limit) or 0)
    if "input" in rates or "output" in rates:
        rates.pop("tokens", None)  # Claude repeats the tightest of the two under this name
    return rates


def seconds_until(reset: str | None, now: datetime) -> float | None:
    """Read a time or a duration as seconds from `now`; None when unreadable, passed or not finite."""
    text = (reset or "").strip()
    seconds = _duration(text)
    if seconds is None:
        try:
            at = datetime.fromisoformat(text)
            seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds()
        except (ValueError, OverflowError):
            return None
    elif seconds > _EPOCH_S:
        seconds = seconds / (1000 if seconds > 1000 * _EPOCH_S else 1) - now.timestamp()
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _duration(text: str) -> float | None:
    """Read `1m30s`, `12ms` or plain seconds."""
    if not text.isascii() or len(text) > 40:
        return None
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    return float(text) if re.fullmatch(r"\d+(?:\.\d+)?", text) else None


def _server_time(headers: Mapping[str, str]) -> datetime:
    """Take the server's own clock where it tells; ours may be wrong."""
    try:
        at = parsedate_to_datetime(headers["date"])
        return at if at.tzinfo else at.replace(tzinfo=UTC)
    except (KeyError, ValueError, OverflowError):
        return datetime.now(UTC)


def _count(text: str | None) -> int | None:
    text = (text or "").strip()  # which takes away more than int() does
    return int(text) if _COUNT.fullmatch(text) else None
