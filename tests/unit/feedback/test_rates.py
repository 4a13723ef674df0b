"""What headers say about limits, and how it paces us."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fd_async.config.schema import FeedbackTable
from fd_async.feedback.pace import Bucket, Congestion
from fd_async.feedback.provider import Backoff, open_provider
from fd_async.feedback.rates import Rate, read_rates, seconds_until
from tests.fakes.claude_server import ClaudeServer, message
from tests.fakes.openai_server import OpenAIServer, completion, error
from tests.fakes.scripted_http import Reply
from tests.unit.feedback.conftest import make_rollout

NOW = datetime(2026, 1, 1, tzinfo=UTC)
Table = Callable[..., FeedbackTable]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("12ms", 0.012),
        ("1h2m3.5s", 3723.5),
        ("7.66s", 7.66),
        ("30", 30.0),
        ("1767225610", 10.0),
        ("1767225610000", 10.0),
        ("2026-01-01T00:00:05Z", 5.0),
        ("2026-01-01T01:00:05+01:00", 5.0),
        ("2025-12-31T23:59:59Z", None),
        ("0s", None),
        ("-5s", None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("soon", None),
        ("9" * 400, None),
        ("٣s", None),
        ("", None),
        (None, None),
    ],
)
def test_a_reset_is_read_in_all_its_forms(text: str | None, seconds: float | None) -> None:
    """What has passed or makes no sense counts as absent."""
    assert seconds_until(text, NOW) == (pytest.approx(seconds) if seconds else None)


def test_claudes_headers_are_read_by_the_servers_clock() -> None:
    """A clock of ours that is wrong by an hour changes nothing; the repeated `tokens` limit is left out."""
    headers = {"date": "Thu, 01 Jan 2026 00:00:00 GMT"}
    for name, left in (("requests", 3), ("input-tokens", 500), ("output-tokens", 0), ("tokens", 0)):
        headers[f"anthropic-ratelimit-{name}-limit"] = "1000"
        headers[f"anthropic-ratelimit-{name}-remaining"] = str(left)
        headers[f"anthropic-ratelimit-{name}-reset"] = "2026-01-01T00:00:30Z"
    assert read_rates(headers) == {
        "requests": Rate(remaining=3, limit=1000, reset_s=30.0),
        "input": Rate(remaining=500, limit=1000, reset_s=30.0),
        "output": Rate(remaining=0, limit=1000, reset_s=30.0),
    }


def test_openais_headers_are_read() -> None:
    """Tokens are those of input and output together."""
    headers = {"x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s"}
    headers |= {"x-ratelimit-remaining-tokens": "149984", "x-ratelimit-reset-tokens": "6m0s"}
    assert read_rates(headers) == {
        "requests": Rate(remaining=59, reset_s=1.0),
        "tokens": Rate(remaining=149984, reset_s=360.0),
    }


@given(st.dictionaries(st.sampled_from([
    f"{start}{middle}{end}"
    for middle in ("requests", "tokens", "input-tokens")
    for start, end in [("anthropic-ratelimit-", "-remaining"), ("anthropic-ratelimit-", "-reset"),
                       ("x-ratelimit-remaining-", ""), ("x-ratelimit-reset-", ""), ("x-ratelimit-limit-", "")]
] + ["date"]), st.text(max_size=30) | st.integers().map(str) | st.floats().map(str)))  # fmt: skip
@example({"x-ratelimit-remaining-requests": "0\x1f"})
def test_any_headers_are_some_limits(headers: dict[str, str]) -> None:
    """Nothing raises, nothing is negative, and nobody waits longer than the cap."""
    for rate in read_rates(headers).values():
        assert rate.remaining >= 0
        assert rate.reset_s > 0
        bucket = Bucket()
        bucket.hear(100.0, rate, number=1, later=0, cap_s=60.0)
        assert 0 <= bucket.wait_s(100.0, 10) <= 60.0
        assert bucket.seconds_for(10) >= 0


def test_what_is_left_is_spread_until_the_reset() -> None:
    """10 requests for 30 s go out 3 s apart; the eleventh waits for the reset."""
    bucket, now, sent = Bucket(), 0.0, []
    bucket.hear(now, Rate(remaining=10, reset_s=30.0), number=1, later=0, cap_s=60.0)
    while len(sent) < 11:
        now += bucket.wait_s(now, 1)
        bucket.charge(now, 1)
        sent.append(now)
    assert sent == pytest.approx([3.0 * i for i in range(11)])


def test_nothing_left_waits_for_the_reset_at_most_the_cap() -> None:
    """A reset a year ahead is not believed."""
    for reset_s, wait_s in ((7.0, 7.0), (365 * 86400.0, 60.0)):
        bucket = Bucket()
        bucket.hear(0.0, Rate(remaining=0, reset_s=reset_s), number=1, later=0, cap_s=60.0)
        assert bucket.wait_s(0.0, 1) == wait_s
        assert bucket.wait_s(wait_s, 1) == 0.0


def test_late_news_of_an_earlier_request_is_no_news() -> None:
    """A slow answer knows less than the quick one that was asked later."""
    bucket = Bucket()
    bucket.hear(0.0, Rate(remaining=0, reset_s=9.0), number=5, later=0, cap_s=60.0)
    bucket.hear(0.0, Rate(remaining=99, reset_s=9.0), number=4, later=0, cap_s=60.0)
    assert bucket.wait_s(0.0, 1) == 9.0


def test_a_refilling_bucket_is_used_at_its_full_rate() -> None:
    """Paced by its headers alone, 10 requests a second are served and none is refused."""
    ours, left, now, served = Bucket(), 100.0, 0.0, 0
    while now < 120.0:
        step = max(ours.wait_s(now, 1), 1e-3)
        now, left = now + step, min(100.0, left + 10.0 * step)
        if ours.wait_s(now, 1):
            continue
        ours.charge(now, 1)
        assert left >= 1
        left, served = left - 1, served + 1
        rate = Rate(remaining=int(left), limit=100, reset_s=max((100 - left) / 10.0, 1e-3))
        ours.hear(now, rate, number=served, later=0, cap_s=60.0)
    assert served >= 0.9 * 10 * 120


def test_refusals_halve_once_and_answers_creep_back() -> None:
    """One burst of refusals is one signal; never fewer than one, never more than configured."""
    congestion = Congestion(64)
    for _ in range(40):
        congestion.refused(10.0, sent_at=9.0, in_flight=64)
    assert congestion.places == 32
    for _ in range(20):
        congestion.refused(20.0, sent_at=20.0, in_flight=64)
    assert congestion.places == 1
    for _ in range(3000):
        congestion.answered()
    assert congestion.places == 64


@pytest.mark.anyio
async def test_the_provider_waits_where_claude_says_that_nothing_is_left(
    claude: ClaudeServer, claude_table: Table
) -> None:
    """The answer that used up the limit holds the next request until the reset, and no longer."""
    reset_s = 0.6

    def last_one(_: dict[str, object]) -> Reply:
        at = (datetime.now(UTC) + timedelta(seconds=reset_s)).isoformat()
        headers = {"anthropic-ratelimit-requests-remaining": "0", "anthropic-ratelimit-requests-reset": at}
        return message(headers=headers | {"date": "unknown"})  # the server's clock is ours, to the microsecond

    claude.default = last_one
    async with open_provider(claude_table()) as provider:
        await provider.feedback(make_rollout())
        assert provider.statistics()["rates"]["requests"]["remaining"] == 0
        with anyio.fail_after(10):
            await provider.feedback(make_rollout(id="later"))
    first, second = [seen.at for seen in claude.seen]
    assert second - first >= reset_s - 0.3


@pytest.mark.anyio
@pytest.mark.parametrize("adapt", [True, False])
async def test_openais_refusal_with_headers_paces_everyone(
    adapt: bool, openai_server: OpenAIServer, openai_table: Table, backoff: Backoff
) -> None:
    """`adapt_to_headers = false` only backs off."""
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "400ms"}
    openai_server.then(error(429, "rate_limit_exceeded", headers=headers))
    async with open_provider(openai_table(adapt_to_headers=adapt), backoff=backoff) as provider:
        await provider.feedback(make_rollout())
    first, second = [seen.at for seen in openai_server.seen]
    assert (second - first >= 0.39) == adapt


@pytest.mark.anyio
async def test_refusals_without_headers_lower_the_requests_at_once(
    openai_server: OpenAIServer, openai_table: Table, backoff: Backoff
) -> None:
    """A server that takes 2 at a time and says nothing is found out; everybody is answered."""

    lowest = 16

    def overloaded(_: dict[str, object]) -> Reply:
        nonlocal lowest
        lowest = min(lowest, provider.statistics()["places"])
        return error(429, "rate_limit_exceeded") if openai_server.in_flight >= 2 else completion(delay_s=0.01)

    openai_server.default = overloaded
    async with open_provider(openai_table(concurrency=16), backoff=backoff) as provider:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for index in range(40):
                    tasks.start_soon(provider.feedback, make_rollout(id=f"r{index}"))
        assert provider.statistics()["answered"] == 40
    assert lowest < 16
