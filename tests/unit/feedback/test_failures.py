"""What a refused request means."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackAccountError, FeedbackBudgetExceeded, FeedbackRejected
from fd_async.feedback.failures import BadRequest, Reply, TransientFailure, failure_of, rejected, retry_after_s

TABLE = FeedbackTable(type="openai", model="m")


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(status=401), FeedbackAccountError),
        (Reply(status=403), FeedbackAccountError),
        (Reply(status=404), FeedbackAccountError),
        (Reply(status=402), FeedbackBudgetExceeded),
        (Reply(status=429, code="enforced_spend_limit_reached"), FeedbackBudgetExceeded),
        (Reply(status=429, code="insufficient_quota"), FeedbackBudgetExceeded),
        (Reply(status=400, message="You have reached your specified API usage limits."), FeedbackBudgetExceeded),
        (Reply(status=400, message="Your credit balance is too low"), FeedbackBudgetExceeded),
        (Reply(status=429, code="rate_limit_exceeded"), TransientFailure),
        (Reply(status=408), TransientFailure),
        (Reply(status=409), TransientFailure),
        (Reply(status=500), TransientFailure),
        (Reply(status=503), TransientFailure),
        (Reply(status=529), TransientFailure),
        (Reply(status=400, message="unknown field"), BadRequest),
        (Reply(status=422, message="max_tokens too large"), BadRequest),
        (Reply(status=400, message="prompt is too long: 300000 tokens"), FeedbackRejected),
        (Reply(status=413), FeedbackRejected),
    ],
)
def test_every_reply_has_one_meaning(reply: Reply, kind: type[Exception]) -> None:
    """Money, account, another try, or this attempt's own fault."""
    assert type(failure_of(reply, TABLE, key_env="KEY", address="http://a")) is kind


def test_account_errors_name_what_to_check() -> None:
    """One line with the variable, or with the keys of the table."""
    key = str(failure_of(Reply(status=401, message="bad\nkey"), TABLE, key_env="MY_KEY", address="http://a"))
    model = str(failure_of(Reply(status=404), TABLE, key_env="MY_KEY", address="http://a"))
    assert "MY_KEY" in key
    assert "\n" not in key
    assert "feedback.model = 'm'" in model


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    """Unreadable values count as absent."""
    assert retry_after_s(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    """An HTTP date in the future is the seconds until then."""
    at = datetime.now(UTC) + timedelta(seconds=100)
    seconds = retry_after_s({"retry-after": format_datetime(at, usegmt=True)})
    assert seconds is not None
    assert 90 < seconds <= 100


def test_cause_and_cost_survive_pickling() -> None:
    """A rejection may cross a process boundary."""
    error = rejected("no", "feedback_empty")
    error.usd = 0.25
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.cause, copy.usd) == (FeedbackRejected, "no", "feedback_empty", 0.25)
