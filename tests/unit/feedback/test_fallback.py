"""Two providers and two bills: whatever becomes of a call, all that it cost is told, and who was paid."""

from __future__ import annotations

import anyio
import pytest

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackOutage, FeedbackRejected
from fd_async.feedback.failures import TransientFailure
from fd_async.feedback.fallback import WithFallback, _of_fallback
from fd_async.feedback.provider import Backoff, TextAnswer, open_provider
from fd_async.feedback.tutor import Tutor
from tests.fakes.scripted_http import FEEDBACK_TEXT
from tests.unit.feedback.conftest import make_rollout

pytestmark = pytest.mark.anyio

PRICES = {"usd_per_million_input_tokens": 1.0, "usd_per_million_output_tokens": 2.0}
ANSWER_USD = (1000 * 1.0 + 100 * 2.0) / 1e6
DOWN = TransientFailure("connection refused")


class Model:
    """Answers with `text`, or fails; its answers cost `ANSWER_USD`."""

    def __init__(self, text: str = FEEDBACK_TEXT, failure: Exception | None = None) -> None:
        self.text, self.failure = text, failure
        self.num_answers = 0

    async def __call__(self, system: str, user: str, max_tokens: int) -> TextAnswer:
        await anyio.sleep(0.001)
        if self.failure is not None:
            raise self.failure
        self.num_answers += 1
        return TextAnswer(text=self.text, input_tokens=1000, output_tokens=100)


def pair(first: Model, second: Model, backoff: Backoff, **changes: float) -> tuple[WithFallback, list[str]]:
    """Return both providers as one, and the list that its events go to."""
    fields = {"type": "openai", "model": "m", "deadline_s": 0.2, "outage_probe_s": 0.02, "outage_after": 1, **PRICES}
    main = FeedbackTable(outage="fallback", **(fields | changes))  # type: ignore[arg-type]
    other = FeedbackTable(outage="end", **fields)  # type: ignore[arg-type]
    events: list[str] = []
    both = WithFallback(
        Tutor(first, main, backoff=backoff),
        Tutor(second, other, backoff=backoff),
        on_event=lambda kind, line: events.append(line),
    )
    return both, events


async def test_what_asking_for_the_end_of_an_outage_cost_is_on_the_bill(backoff: Backoff) -> None:
    """The answer to the question is paid for like any; a resume must know of it."""
    first, second = Model(failure=DOWN), Model(failure=DOWN)
    both, events = pair(first, second, backoff)

    async def repair() -> None:
        while not events:  # noqa: ASYNC110
            await anyio.sleep(0.005)
        first.failure = None

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(repair)
            feedback = await both.feedback(make_rollout())
    assert first.num_answers == 2
    assert feedback.usd == pytest.approx(2 * ANSWER_USD) == both.statistics()["usd"]
    assert feedback.fallback_usd == 0


async def test_a_refused_answer_of_the_fallback_is_on_its_bill(backoff: Backoff) -> None:
    """The attempt is dropped, what both of its answers cost is told, and the keys named are those of `[fallback]`."""
    both, _ = pair(Model(failure=DOWN), Model(text=""), backoff)
    with pytest.raises(FeedbackRejected) as caught:
        await both.feedback(make_rollout())
    assert caught.value.cause == "feedback_empty"
    assert caught.value.usd == caught.value.fallback_usd == pytest.approx(2 * ANSWER_USD)


async def test_a_key_of_the_fallback_is_named_as_such(backoff: Backoff) -> None:
    """Whoever lowers a key of `[feedback]` for what `[fallback]` refused changes nothing."""
    too_long = FeedbackRejected("The attempt is too long. Lower feedback.max_attempt_chars. See the [feedback] table.")
    both, _ = pair(Model(failure=DOWN), Model(failure=too_long), backoff)
    with pytest.raises(FeedbackRejected, match=r"Lower fallback\.max_attempt_chars\. See the \[fallback\] table"):
        await both.feedback(make_rollout())


async def test_an_outage_of_both_that_lasts_too_long_tells_the_money_of_both(backoff: Backoff) -> None:
    """Requests that broke off count as if their input had been billed, by whom they were sent to."""
    lost = TransientFailure("broke off", maybe_billed=True)
    both, events = pair(Model(failure=lost), Model(failure=lost), backoff, max_outage_s=0.1)
    with anyio.fail_after(10), pytest.raises(FeedbackOutage, match=r"feedback\.max_outage_s = 0\.1") as caught:
        await both.feedback(make_rollout())
    statistics = both.statistics()
    assert 0 < caught.value.fallback_usd < caught.value.usd
    assert caught.value.usd == pytest.approx(statistics["usd"])
    assert caught.value.fallback_usd == pytest.approx(statistics["fallback_usd"])
    assert "fallback" in events[0]


async def test_a_provider_that_is_never_down_needs_no_fallback() -> None:
    """Texts from the dataset, with a second provider that nobody could ask."""
    table = FeedbackTable(type="constant", outage="fallback")
    async with open_provider(table, fallback=FeedbackTable(type="self")) as provider:
        assert (await provider.feedback(make_rollout())).usd == 0


def test_only_keys_are_renamed_in_what_the_second_provider_says() -> None:
    """A line may quote the provider, whose words stay."""
    said = 'Unusable answer: "Thanks for your feedback. feedback.text". Check the [feedback] table: feedback.max_usd.'
    told = 'Unusable answer: "Thanks for your feedback. fallback.text". Check the [fallback] table: fallback.max_usd.'
    assert _of_fallback(said) == told
    assert _of_fallback("feedback.maximum and my_feedback.text") == "feedback.maximum and my_feedback.text"
