"""A provider that is down: nobody is dropped for it, and nobody's fault is taken for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from fd_async.config.schema import FeedbackTable
from fd_async.errors import (
    FeedbackAccountError,
    FeedbackBudgetExceeded,
    FeedbackError,
    FeedbackOutage,
    FeedbackRejected,
    FeedbackUnavailable,
)
from fd_async.feedback.failures import TransientFailure, rejected
from fd_async.feedback.provider import Backoff, Provider, TextAnswer, open_provider
from fd_async.feedback.remote import Purchase
from fd_async.types import Statement
from tests.fakes.openai_server import OpenAIServer, completion, error
from tests.fakes.scripted_http import FEEDBACK_TEXT
from tests.unit.feedback.conftest import make_rollout

pytestmark = pytest.mark.anyio
Table = Callable[..., FeedbackTable]

DOWN = TransientFailure("connection refused")


class Model:
    """Answers unless `trouble` says otherwise; remembers who asked."""

    def __init__(self) -> None:
        self.trouble: Callable[[str], Exception | None] = lambda user: None
        self.asked: list[str] = []
        self.events: list[str] = []

    async def __call__(self, system: str, user: str, max_tokens: int) -> TextAnswer:
        self.asked.append(user)
        await anyio.sleep(0.001)
        trouble = self.trouble(user)
        if trouble is not None:
            raise trouble
        return TextAnswer(text=FEEDBACK_TEXT, input_tokens=10, output_tokens=5)

    @property
    def questions(self) -> int:
        """How often it was asked whether it is there."""
        return sum(_is_question(user) for user in self.asked)

    def note(self, kind: str, line: str) -> None:
        self.events.append(kind)
        assert "\n" not in line


def _is_question(user: str) -> bool:
    return user == "Are you there?"


def _table(**changes: Any) -> FeedbackTable:
    fields = {"type": "self", "deadline_s": 0.2, "request_timeout_s": 0.1, "outage_probe_s": 0.02, "outage_after": 4}
    return FeedbackTable(**(fields | changes))


async def _ask(provider: Provider, number: int, start: int = 0) -> tuple[list[str], list[FeedbackError]]:
    """Ask for `number` attempts at once; return who answered, and the errors."""
    providers: list[str] = []
    errors: list[FeedbackError] = []

    async def ask(index: int) -> None:
        try:
            feedback = await provider.feedback(make_rollout(id=f"r{index}"))
            assert feedback.rollout_id == f"r{index}"
            providers.append(feedback.provider)
        except FeedbackError as error:
            errors.append(error)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for index in range(start, start + number):
                tasks.start_soon(ask, index)
    return providers, errors


async def test_nobody_is_dropped_for_an_outage_longer_than_the_deadline(backoff: Backoff) -> None:
    """Everyone waits while one question at a time goes out; the first answer lets all go on, and all is told once."""
    model = Model()
    began = anyio.current_time()
    model.trouble = lambda _: DOWN if anyio.current_time() < began + 0.6 else None
    async with open_provider(_table(), generate_text=model, backoff=backoff, on_event=model.note) as provider:
        answers, errors = await _ask(provider, 24)
        statistics = provider.statistics()
    assert (len(answers), errors) == (24, [])
    assert (statistics["outages"], statistics["outage_s"], statistics["drops"]) == (1, 0.0, {})
    assert statistics["outages_s"] > 0
    assert [event for event in model.events if event != "provider silent"] == ["provider down", "provider back"]
    assert 3 < model.questions < 60
    assert statistics["pending"] == 0


async def test_an_outage_over_its_limit_ends_with_one_line(backoff: Backoff) -> None:
    """Exit code 4, the key, the last failure, the way on; and no attempt was called unavailable."""
    model = Model()
    model.trouble = lambda _: DOWN
    async with open_provider(_table(max_outage_s=0.3), generate_text=model, backoff=backoff) as provider:
        _, errors = await _ask(provider, 6)
    assert {type(error) for error in errors} == {FeedbackOutage}
    assert len(errors) == 6
    text = str(errors[0])
    assert "feedback.max_outage_s = 0.3" in text
    assert "connection refused" in text
    assert "--resume" in text
    assert "\n" not in text
    assert errors[0].exit_code == 4


async def test_an_outage_ends_the_run_at_once_where_the_table_says_so(backoff: Backoff) -> None:
    """After one question, not after the first hiccup."""
    model = Model()
    model.trouble = lambda _: DOWN
    async with open_provider(_table(outage="end"), generate_text=model, backoff=backoff) as provider:
        _, errors = await _ask(provider, 6)
    assert {type(error) for error in errors} == {FeedbackOutage}
    assert 'feedback.outage = "end"' in str(errors[0])
    assert model.questions >= 1


@pytest.mark.parametrize("others", [0, 12])
async def test_an_attempt_that_never_gets_an_answer_is_dropped_alone(others: int, backoff: Backoff) -> None:
    """With others or by itself: the provider says that it is there, so the attempt is the reason."""
    model = Model()
    model.trouble = lambda user: TransientFailure("time-out", maybe_billed=True) if "poison" in user else None
    poison = make_rollout(statement=Statement(name="p", formal_statement="theorem poison : True :="))
    async with open_provider(_table(outage_after=3), generate_text=model, backoff=backoff) as provider:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_ask, provider, others)
            with pytest.raises(FeedbackUnavailable, match=r"deadline_s = 0\.2"):
                await provider.feedback(poison)
        statistics = provider.statistics()
    assert (statistics["outages"], statistics["drops"]) == (0, {"feedback_unavailable": 1})
    assert statistics["answered"] == others


async def test_a_refusal_is_an_answer(backoff: Backoff) -> None:
    """A provider that declines every attempt is there."""
    model = Model()
    model.trouble = lambda _: rejected("no", "feedback_refused")
    async with open_provider(_table(), generate_text=model, backoff=backoff) as provider:
        _, errors = await _ask(provider, 10)
        assert provider.statistics()["outages"] == 0
    assert {type(error) for error in errors} == {FeedbackRejected}


async def test_a_cancelled_question_is_asked_by_the_next(backoff: Backoff) -> None:
    """The caller whose turn it was is gone; the others do not wait for it."""
    model = Model()
    model.trouble = lambda _: DOWN
    async with open_provider(_table(outage_after=1), generate_text=model, backoff=backoff) as provider:
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                with anyio.CancelScope() as first:

                    async def leave() -> None:
                        while not provider.statistics()["outages"]:  # noqa: ASYNC110
                            await anyio.sleep(0.002)
                        first.cancel()

                    tasks.start_soon(leave)
                    await provider.feedback(make_rollout())
                model.trouble = lambda _: None
                assert (await provider.feedback(make_rollout())).text == FEEDBACK_TEXT
        assert provider.statistics()["pending"] == 0


async def test_meanwhile_the_fallback_answers_and_then_the_first_again(
    openai_server: OpenAIServer, openai_table: Table, backoff: Backoff
) -> None:
    """Each feedback says who wrote it, each provider has its own bill, and the key stays the first one's."""
    model = Model()
    model.trouble = lambda _: DOWN
    openai_server.default = lambda _: completion()
    main = _table(outage="fallback", outage_probe_s=0.05)
    opened = open_provider(main, fallback=openai_table(), generate_text=model, backoff=backoff, on_event=model.note)
    async with opened as provider:
        answers, errors = await _ask(provider, 8)
        assert (set(answers), errors) == ({"openai"}, [])
        key = provider.key(make_rollout())
        feedback = await provider.feedback(make_rollout())
        assert feedback.prompt_hash != key
        assert feedback.model == "tutor-test"
        assert feedback.fallback_usd == feedback.usd == pytest.approx(0.0012)
        statistics = provider.statistics()
        assert statistics["fallback_usd"] == pytest.approx(9 * 0.0012) == statistics["usd"]
        assert statistics["fallback_calls"] == 9
        assert statistics["outage_s"] > 0
        assert statistics["awaited_s"] == 0  # whoever hangs now hangs for another reason
        assert statistics["drops"] == {}
        model.trouble = lambda _: None
        await anyio.sleep(0.06)
        answers, errors = await _ask(provider, 1)  # whoever asks first also asks whether it is there
        assert (await provider.feedback(make_rollout())).fallback_usd == 0
        more, others = await _ask(provider, 8)
        assert (answers + more, errors + others) == (["self"] * 9, [])
        assert provider.statistics()["outage_s"] == 0
    assert [event for event in model.events if event != "provider silent"] == ["provider down", "provider back"]


@pytest.mark.parametrize(
    "trouble",
    [
        error(503, "unavailable"),
        error(401, "invalid_api_key"),
        error(429, "insufficient_quota"),
    ],
    ids=["down-too", "key", "spent"],
)
async def test_a_fallback_that_cannot_help_ends_nothing(
    trouble: Any, openai_server: OpenAIServer, openai_table: Table, backoff: Backoff
) -> None:
    """Everyone waits for the first provider, as without a fallback."""
    model = Model()
    model.trouble = lambda _: DOWN
    openai_server.default = lambda _: trouble
    main = _table(outage="fallback")
    second = openai_table(deadline_s=0.2, outage_after=2)
    opened = open_provider(main, fallback=second, generate_text=model, backoff=backoff, on_event=model.note)
    async with opened as provider:
        async with anyio.create_task_group() as tasks:

            async def repair() -> None:
                while "fallback down" not in model.events:  # noqa: ASYNC110
                    await anyio.sleep(0.005)
                assert provider.statistics()["awaited_s"] > 0
                model.trouble = lambda _: None

            tasks.start_soon(repair)
            answers, errors = await _ask(provider, 6)
    assert (answers, errors) == (["self"] * 6, [])
    assert model.events.count("fallback down") < 6


async def test_without_a_table_of_its_own_the_fallback_is_patience(backoff: Backoff) -> None:
    """`open_provider` without `fallback` waits."""
    model = Model()
    model.trouble = lambda _: DOWN if len(model.asked) < 12 else None
    async with open_provider(_table(outage="fallback"), generate_text=model, backoff=backoff) as provider:
        answers, errors = await _ask(provider, 5)
    assert (len(answers), errors) == (5, [])


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (error(429, "insufficient_quota"), FeedbackBudgetExceeded),
        (error(400, "", "Your credit balance is too low to access the API."), FeedbackBudgetExceeded),
        (error(401, "invalid_api_key"), FeedbackAccountError),
    ],
    ids=["quota", "credit", "key"],
)
async def test_money_and_keys_end_an_outage_with_their_own_line(
    reply: Any, kind: type[FeedbackError], openai_server: OpenAIServer, openai_table: Table, backoff: Backoff
) -> None:
    """What the question brings to light is said as it is."""
    openai_server.default = lambda body: reply if _is_question(body["messages"][1]["content"]) else error(500, "x")
    async with open_provider(openai_table(outage_after=2), backoff=backoff) as provider:
        _, errors = await _ask(provider, 4)
    assert kind in {type(error) for error in errors}


async def test_backlog_grows_with_what_waits(backoff: Backoff) -> None:
    """It is what admission looks at: pending calls at the pace of the last answers."""
    model = Model()
    async with open_provider(_table(concurrency=2), generate_text=model, backoff=backoff) as provider:
        await _ask(provider, 4)
        assert provider.statistics()["backlog_s"] == 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_ask, provider, 50)
            while provider.statistics()["pending"] < 50:
                await anyio.lowlevel.checkpoint()
            statistics = provider.statistics()
            assert statistics["pending"] == 50
            assert statistics["backlog_s"] == pytest.approx(50 * statistics["latency_p50_s"] / 2)


async def test_a_caller_that_our_own_limits_held_back_does_not_ask_into_an_outage(backoff: Backoff) -> None:
    """It looks once more when its turn has come: its request would only be one more failure."""
    model = Model()
    model.trouble = lambda _: None if model.questions > 2 else DOWN
    async with open_provider(_table(outage_after=1), generate_text=model, backoff=backoff) as provider:
        provider._limits.pause(0.1)  # type: ignore[attr-defined]
        async with anyio.create_task_group() as tasks:
            for index in range(4):
                tasks.start_soon(provider.feedback, make_rollout(id=f"r{index}"))
            while provider.statistics()["waiting"] < 4:  # noqa: ASYNC110
                await anyio.sleep(0.001)
            provider._outage.suspect(DOWN)  # type: ignore[attr-defined]
            provider._outage.unanswered(DOWN)  # type: ignore[attr-defined]
        assert provider.statistics()["answered"] == 4
    assert [_is_question(user) for user in model.asked] == 3 * [True] + 4 * [False]


async def test_a_deadline_that_the_first_of_two_answers_took_drops_the_attempt(backoff: Backoff) -> None:
    """The second question is not put."""
    model = Model()
    async with open_provider(_table(), generate_text=model, backoff=backoff) as provider:
        with pytest.raises(FeedbackUnavailable, match=r"deadline_s = 0\.2 s; it passed before the second question"):
            await provider._remote.ask("system", "again", Purchase(deadline_used_s=0.2))  # type: ignore[attr-defined]
    assert model.asked == []


async def test_a_call_that_gives_up_into_an_outage_waits_and_is_answered(backoff: Backoff) -> None:
    """Nobody was answered since it began and the question fails: the attempt was not the reason."""
    model = Model()
    model.trouble = lambda _: None if model.events else DOWN
    table = _table(outage_after=1000)
    async with open_provider(table, generate_text=model, backoff=backoff, on_event=model.note) as provider:
        with anyio.fail_after(10):
            feedback = await provider.feedback(make_rollout())
        statistics = provider.statistics()
    assert feedback.text == FEEDBACK_TEXT
    assert (statistics["outages"], statistics["drops"]) == (1, {})


async def test_a_question_that_is_refused_is_an_answer(backoff: Backoff) -> None:
    """Whoever declines to say whether he is there is there."""
    model = Model()
    model.trouble = lambda user: rejected("no", "feedback_refused") if _is_question(user) else None
    async with open_provider(_table(), generate_text=model, backoff=backoff) as provider:
        provider._outage.suspect(DOWN)  # type: ignore[attr-defined]
        assert (await provider.feedback(make_rollout())).text == FEEDBACK_TEXT
        assert provider.statistics()["outages"] == 0
    assert model.questions == 1
