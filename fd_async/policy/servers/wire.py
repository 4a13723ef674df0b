"""What is said to one `vllm serve` process, and what its answers may look like. Written against vLLM 0.32.

    POST /inference/v1/generate       token ids in, token ids and log-probs out, as a stream (--enable-scale-out)
    POST /pause /resume               hold the engine, let it go          (these and the next three: development mode)
    POST /collective_rpc              a method of the workers' extension
    POST /update_weight_version, GET /weight_info                         the label of the weights
    GET  /metrics                     how full it is

Every failure is one of three: `Down` (nothing, garbage or a server error came: the server is not to be trusted until it
was looked at), `Unsuited` (it answers, but was not started for this), `Rejected` (it found fault with the request).
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from fd_async.errors import AlignmentError, EngineError

_CONNECT_S = 5.0
_KEEP_ALIVE_S = 2.0
"""Below the 5 s after which vLLM closes an idle connection, lest one is used as it closes."""
_MAX_EVENT_BYTES = 1 << 26
_REPLY_CHARS = 300
_STREAM_TOKENS = 16
"""Tokens per event of a stream: what a server loses when it dies, against the cost of an event here and there."""
_NO_NUMBER = -9000.0
"""vLLM writes -9999.0 where a log-prob is not a number or minus infinity; a sampled token has neither."""
_GAUGE = re.compile(r"^vllm:(kv_cache_usage_perc|num_requests_waiting)\{[^}]*\} (\S+)$", re.MULTILINE)
_REJECTED = (400, 413, 422)
_UNSUITED = (401, 403, 404, 405, 501)


class Down(Exception):
    """The server gave no answer that can be used; the text says what came instead."""


class Unsuited(Exception):
    """The server lacks a route, the extension or the key."""


class Rejected(EngineError):
    """The server finds fault with the request itself; another one would as well."""


class Token(Struct, frozen=True):
    """One sampled token."""

    token_id: int
    logprob: float


class LabelSpan(Struct, frozen=True):
    """Tokens [start, end) of a stream were sampled by the weights of this label."""

    version: str
    start: int
    end: int


class _Logprobs(Struct, frozen=True):
    content: list[Token] | None = None


class _Choice(Struct, frozen=True):
    token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    weight_versions: list[LabelSpan] | None = None


class _Problem(Struct, frozen=True):
    message: str = ""


class _Score(Struct, frozen=True):
    logprob: float


class _Answer(Struct, frozen=True):
    """An event of a stream, or a whole answer."""

    choices: list[_Choice] = []
    error: _Problem | str | None = None
    prompt_logprobs: list[dict[str, _Score] | None] | None = None


class _Label(Struct, frozen=True):
    weight_version: str


class _Results(Struct, frozen=True):
    results: list[Any] = []


class Delta(Struct, frozen=True):
    """What one event of a stream brings; `labels` and `finish_reason` come with the last one."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str | None
    labels: list[LabelSpan]


class Link:
    """The routes of one server.

    Args:
        url: address without a slash at its end.
        requests: session of streams, which may wait for one of its connections.
        control: session of all else, which never waits behind streams.
    """

    def __init__(self, url: str, requests: aiohttp.ClientSession, control: aiohttp.ClientSession) -> None:
        self.url = url
        self._requests = requests
        self._control = control

    async def label(self) -> str:
        """Return the label of the weights that serve; the engine itself answers, between two of its steps."""
        return (await self._ask("GET", "/weight_info", _Label)).weight_version

    async def set_label(self, label: str) -> None:
        await self._ask("POST", "/update_weight_version", body={"new_version": label})

    async def pause(self, mode: str, clear_cache: bool) -> None:
        await self._ask("POST", "/pause", query={"mode": mode, "clear_cache": str(clear_cache).lower()})

    async def resume(self) -> None:
        await self._ask("POST", "/resume")

    async def call(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every worker; booleans come back as text.

        Raises:
            Down: it raised, or there was no answer; the text holds what it raised.
        """
        body = {"method": method, "args": args}
        return (await self._ask("POST", "/collective_rpc", _Results, body=body)).results

    async def gauges(self) -> dict[str, float]:
        """Return `kv_cache_usage_perc` (0 to 1) and `num_requests_waiting`; empty where statistics are off."""
        async with self._open(self._control, "GET", "/metrics") as response:
            text = (await response.read()).decode(errors="replace")
        try:
            return {match[1]: float(match[2]) for match in _GAUGE.finditer(text)}
        except ValueError as error:
            raise Down(f"/metrics: {error}") from error

    async def stream(self, body: dict[str, Any]) -> AsyncGenerator[Delta]:
        """Run a request; leaving early closes the connection, which ends it in the server.

        Raises:
            AlignmentError: ids and log-probs of an event differ in number or disagree.
        """
        body["stream"] = True
        body["sampling_params"]["stream_interval"] = _STREAM_TOKENS
        async with self._open(self._requests, "POST", "/inference/v1/generate", body=body) as response:
            is_whole = False
            async for event in _events(response.content):
                delta = _delta(event, body["request_id"])
                is_whole = is_whole or delta.finish_reason is not None
                yield delta
        if not is_whole:
            raise Down("the stream ended before the request did")

    async def score(self, token_ids: Sequence[int], request_id: str, salt: str) -> list[float]:
        """Return the log-probs of `token_ids[1:]`; vLLM never takes them from the prefix cache."""
        params = {"max_tokens": 1, "prompt_logprobs": 0, "detokenize": False, "ignore_eos": True}
        body = {"request_id": request_id, "token_ids": token_ids, "sampling_params": params, "cache_salt": salt}
        async with self._open(self._control, "POST", "/inference/v1/generate", body=body) as response:
            answer = _decode(await response.read(), _Answer)
        rows = (answer.prompt_logprobs or [])[1:]
        if len(rows) != len(token_ids) - 1:
            raise AlignmentError(f"{self.url} scored {len(rows)} of {len(token_ids) - 1} tokens")
        scores = []
        for row, token_id in zip(rows, token_ids[1:], strict=True):
            entry = (row or {}).get(str(token_id))
            if entry is None:
                raise AlignmentError(f"{self.url} gave no log-prob for token {token_id} of a scored text")
            scores.append(entry.logprob)
        return scores

    async def _ask(
        self,
        method: str,
        path: str,
        kind: type[Any] = dict,
        *,
        body: dict[str, Any] | None = None,
        query: dict[str, str] | None = None,
    ) -> Any:
        async with self._open(self._control, method, path, body=body, query=query) as response:
            return _decode(await response.read(), kind)

    @asynccontextmanager
    async def _open(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        *,
        body: dict[str, Any] | None = None,
        query: dict[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        data = None if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json"}
        try:
            async with session.request(
                method, self.url + path, data=data, params=query, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise _failure(path, response.status, await response.content.read(1 << 16))
                yield response
        except (aiohttp.ClientError, OSError) as error:
            raise Down(f"{path}: {_in_short(error)}") from error


def make_session(key: str, per_server: int) -> aiohttp.ClientSession:
    """Open a session that keeps at most so many connections to each server; the key goes with every request."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, limit_per_host=per_server, keepalive_timeout=_KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        headers={"authorization": f"Bearer {key}"} if key else {},
    )


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield the data of server-sent events; one may be longer than aiohttp's lines."""
    rest = b""
    async for piece in content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _MAX_EVENT_BYTES:
            raise Down(f"an event of more than {_MAX_EVENT_BYTES} bytes")
        for line in lines:
            if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                yield data


def _delta(event: bytes, request_id: str) -> Delta:
    answer = _decode(event, _Answer)
    if answer.error is not None:
        message = answer.error if isinstance(answer.error, str) else answer.error.message
        raise Down(f"the stream says: {message[:_REPLY_CHARS]}")
    if len(answer.choices) != 1:
        raise Down(f"an event with {len(answer.choices)} answers")
    choice = answer.choices[0]
    ids = choice.token_ids or []
    tokens = (choice.logprobs.content if choice.logprobs else None) or []
    if [token.token_id for token in tokens] != ids:
        raise AlignmentError(f"request {request_id}: vLLM sent {len(ids)} ids with {len(tokens)} other log-probs")
    if any(not token.logprob > _NO_NUMBER for token in tokens):
        raise Down("a log-prob of a sampled token is not a number")
    return Delta(ids, [token.logprob for token in tokens], choice.finish_reason, choice.weight_versions or [])


def _decode(data: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Down(f"an answer that cannot be read ({error}): {data[:80]!r}") from error


def _failure(path: str, status: int, data: bytes) -> Exception:
    """Return what an HTTP status other than 200 means."""
    try:
        answer = msgspec.json.decode(data, type=_Answer)
        message = answer.error if isinstance(answer.error, str) else answer.error.message if answer.error else ""
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = ""
    text = f"{path}: HTTP {status}{': ' if message else ''}{message[:_REPLY_CHARS]}"
    if status == 401:
        return Unsuited(f"{text}: its key is not the one that policy.servers_key_env names")
    if status in _UNSUITED:
        return Unsuited(text)
    return Rejected(text) if status in _REJECTED else Down(text)


def _in_short(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or type(error.os_error).__name__
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection broke in the middle of the answer"
    return str(error) or type(error).__name__
