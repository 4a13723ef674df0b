"""What a provider, or whatever stands before it, may send back: through the real SDKs, from a real socket."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import traceback
from collections.abc import Callable
from typing import Any

import anyio

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackError
from fd_async.feedback.provider import Backoff, Provider, open_provider
from fd_async.types import Rollout, Statement, Turn, Verdict
from tests.fakes import claude_server, openai_server
from tests.fakes.raw_http import serve_raw
from tests.fuzz.report import Report

WORKERS = 6
CASES_PER_CLIENT = 100
KEY_ENV = "FD_FUZZ_KEY"

ROLLOUT = Rollout(
    id="r", ordinal=0, sample=0, purpose="train", statement=Statement(name="s",
    formal_statement="theorem s : True :="),
    prompt_ids=[1], completion_ids=[2], sampled_mask=[True], logprobs=[0.0], spans=[],
    turns=[Turn(role="assistant", start=0, end=1, text="trivial")], verdict=Verdict(kind="failed"),
    end_reason="stopped",
)  # fmt: skip


async def fuzz(cases: int, seed: int) -> Report:
    """Ask `cases` times; each time text, or a `FeedbackError`, comes within the deadlines, and the bill is exact."""
    report = Report()
    os.environ[KEY_ENV] = "none"
    numbers = iter(range(cases))

    async def work(worker: int) -> None:
        while batch := [number for _, number in zip(range(CASES_PER_CLIENT), numbers, strict=False)]:
            await _one_client(batch, seed, "anthropic" if (batch[0] // CASES_PER_CLIENT) % 2 else "openai", report)

    async with anyio.create_task_group() as tasks:
        for worker in range(WORKERS):
            tasks.start_soon(work, worker)
    return report


async def _one_client(batch: list[int], seed: int, kind: str, report: Report) -> None:
    dice = random.Random(f"answers/{seed}/{batch[0]}")
    sent: list[bytes | None] = []

    def answer(_: bytes) -> bytes | None:
        sent.append(reply(kind, dice))
        return sent[-1]

    async with serve_raw(answer) as address:
        table = FeedbackTable(
            type=kind,  # type: ignore[arg-type]
            model="m", base_url=address if kind == "anthropic" else f"{address}/v1", api_key_env=KEY_ENV,
            deadline_s=0.6, request_timeout_s=0.5, max_retry_after_s=0.02, outage_probe_s=0.02, max_outage_s=0.5,
            usd_per_million_input_tokens=3.0, usd_per_million_output_tokens=15.0,
        )  # fmt: skip
        backoff = Backoff(first_s=0.001, max_s=0.005)
        async with open_provider(table, backoff=backoff) as provider:
            paid = 0.0
            for _ in batch:
                sent.clear()
                paid = await _one_case(provider, paid, sent, report)


async def _one_case(provider: Provider, paid: float, sent: list[bytes | None], report: Report) -> float:
    """Ask once and judge; return the dollars paid so far."""
    report.cases += 1
    usd = 0.0
    try:
        with anyio.fail_after(20):
            feedback = await provider.feedback(ROLLOUT)
        usd = feedback.usd
        feedback.text.encode()
        report.outcomes["text"] += 1
        if not (
            feedback.text.strip() and feedback.model and feedback.input_tokens >= 0 and feedback.output_tokens >= 0
        ):
            report.found(f"not a feedback: {feedback}", repr(sent)[:3000])
    except FeedbackError as error:
        usd = error.usd
        report.outcomes[type(error).__name__] += 1
        if "\n" in str(error) or len(str(error)) > 1500:
            report.found(f"not one line: {error}", repr(sent)[:3000])
    except BaseException:
        report.found(traceback.format_exc(), repr(sent)[:3000])
    statistics = provider.statistics()
    paid += usd
    if not math.isfinite(usd) or usd < 0 or not math.isclose(statistics["usd"], paid, abs_tol=1e-9):
        report.found(f"paid {usd}, {paid} in all, and the bill says {statistics['usd']}", repr(sent)[:3000])
    if statistics["in_flight"] or statistics["pending"] or statistics["waiting"]:
        report.found(f"left behind: {statistics}", repr(sent)[:3000])
    return statistics["usd"]


def reply(kind: str, dice: random.Random) -> bytes | None:
    """Make one reply: good, bent, or no HTTP at all."""
    chance = dice.random()
    if chance < 0.01:
        return None
    if chance < 0.06:
        return dice.choice(
            (b"", b"\r\n\r\n", dice.randbytes(200), b"HTTP/1.1 200", b"HTTP/9.9 999 \xff\r\n\r\n", b"220 ftp")
        )
    good = claude_server.message() if kind == "anthropic" else openai_server.completion()
    bad = _refusal(kind, dice)
    chosen = bad if dice.random() < 0.4 else good
    status = chosen.status if dice.random() < 0.7 else dice.choice(STATUSES)
    value: Any = chosen.body
    for _ in range(dice.choice((0, 0, 1, 1, 2, 5))):
        value = bend(value, dice)
    body = dice.choice(BODIES)(json.dumps(value).encode(errors="replace"), dice)
    headers = {
        b"content-type": b"application/json",
        b"content-length": str(len(body)).encode(),
        b"connection": b"close",
    }
    for _ in range(dice.choice((0, 0, 0, 1, 3))):
        name = dice.choice(HEADERS)
        headers[name.encode()] = dice.choice(HEADER_VALUES).encode("latin-1", "replace")
    if dice.random() < 0.03:
        headers[b"content-encoding"] = dice.choice((b"gzip", b"br", b"deflate", b"zstd", b"x"))
    if dice.random() < 0.03:
        headers[b"transfer-encoding"] = b"chunked"
    if dice.random() < 0.02:
        headers[b"content-length"] = dice.choice((b"-1", b"0", b"99999999999", b"x", b"1"))
    head = b"".join(name + b": " + text + b"\r\n" for name, text in headers.items())
    data = f"HTTP/1.1 {status} x\r\n".encode() + head + b"\r\n" + body
    return data[: dice.randrange(len(data))] if dice.random() < 0.04 else data


def _refusal(kind: str, dice: random.Random) -> Any:
    status, code = (
        dice.choice(STATUSES),
        dice.choice(("rate_limit_error", "overloaded_error", "x", "", "content_filter")),
    )
    text = dice.choice(("no", "", "prompt is too long", "línea\nzwei", "x" * 5000, "quota exceeded for this minute"))
    return claude_server.error(status, code, text) if kind == "anthropic" else openai_server.error(status, code, text)


def bend(value: Any, dice: random.Random) -> Any:
    """Replace, remove or add something somewhere inside a JSON value."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        changed = dict(value)
        if dice.random() < 0.15:
            del changed[key]
        else:
            changed[key] = bend(value[key], dice) if dice.random() < 0.7 else dice.choice(JSON_VALUES)
        return changed
    if isinstance(value, list) and value and dice.random() < 0.8:
        place = dice.randrange(len(value))
        return [*value[:place], bend(value[place], dice), *value[place + dice.choice((0, 1)) :]]
    return dice.choice(JSON_VALUES)


STATUSES = (
    200,
    200,
    201,
    204,
    299,
    302,
    304,
    400,
    402,
    404,
    408,
    409,
    413,
    418,
    422,
    425,
    429,
    429,
    451,
    500,
    502,
    503,
    529,
    599,
)
JSON_VALUES: tuple[Any, ...] = (
    None, 0, -1, 1, -5000, 1.5, 10**18, 10**400, float("nan"), float("inf"), True, "", "x", "1. Do it.", "\ud800",
    "\x00", [],
    {}, [[]], [None], {"type": "text"}, {"type": "text", "text": None}, {"type": "text", "text": 3}, {"text": "x"},
    "end_turn",
    "refusal", "length", "tool_use", "é" * 20, {"error": {"message": "no", "code": 429}}, {"error": "no"},
    [{"a": [{}]}],
)  # fmt: skip
HEADERS = (
    "retry-after", "retry-after-ms", "date", "x-should-retry", "request-id", "x-request-id", "content-type",
    "location",
    *(f"anthropic-ratelimit-{kind}-{field}" for kind in ("requests", "input-tokens", "tokens")
      for field in ("limit", "remaining", "reset")),
    *(f"x-ratelimit-{field}-{kind}" for kind in ("requests", "tokens") for field in ("limit", "remaining", "reset")),
)  # fmt: skip
HEADER_VALUES = (
    "0", "1", "-1", "nan", "inf", "1e999", "9" * 400, "", "soon", "12ms", "6m0s", "1s", "-5s", "2026-13-45T99:00:00Z",
    "2099-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "Thu, 99 Foo 9999 99:99:99 GMT", "Thu, 01 Jan 1970 00:00:00 GMT",
    "Fri, 31 Dec 9999 23:59:59 GMT", "é", "text/html; charset=utf-99", "application/json; charset=utf-16", "true",
    "0x10",
    "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "http://127.0.0.1:1/", "1,2", "\t7 ",
)  # fmt: skip
BODIES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *((lambda body, dice: body),) * 14,
    lambda body, dice: body[: dice.randrange(len(body) + 1)],
    lambda body, dice: dice.randbytes(100),
    lambda body, dice: b"",
    lambda body, dice: b"<html><body>502</body></html>",
    lambda body, dice: b"[" * dice.choice((10, 30000)),
    lambda body, dice: b'{"a":' * 20000 + b"1" + b"}" * 20000,
    lambda body, dice: gzip.compress(body),
    lambda body, dice: b"\xef\xbb\xbf" + body,
    lambda body, dice: body.decode().encode("utf-16"),
    lambda body, dice: b"data: " + body + b"\n\n",
    lambda body, dice: body + body,
    lambda body, dice: b"9" * 5000,
)  # fmt: skip
