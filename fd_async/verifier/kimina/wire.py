"""The wire of a Kimina Lean Server: routes, payloads, states, and one answer that provably belongs to one request.

What the server says about itself (overload, a broken worker, a broken answer) is raised as `Busy` and worth another
try; what it refuses is a `VerifierError`; only a timeout of the proof itself is the proof's.
"""

from __future__ import annotations

import secrets
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import aiohttp
import msgspec
from anyio import fail_after, to_thread
from msgspec import Struct

from fd_async.errors import VerifierError
from fd_async.verifier.backend import CheckTimeout
from fd_async.verifier.messages import Message

ROUTES = ("/api/check", "/verify", "/one_pass_verify_batch")
"""The first is version 2's, the others version 1's, which version 2 still answers."""
_MAX_ANSWER_BYTES = 1 << 24
_DECODE_IN_THREAD_BYTES = 1 << 18
_SERVER_WAIT_S = 60.0
"""How long the server itself waits for a worker before it answers 429 (its MAX_WAIT)."""
_TRANSFER_S = 15.0
_INFOTREE = "full"
_HEADER_TIMEOUT = "header command timed out"
_BROKEN_WORKER = "error decoding json response in leanrepl"
"""Version 1 reports a dead worker as if Lean had said it."""


class Response(Struct):
    """What Lean said, as the server hands it on."""

    messages: list[Message] | None = None
    sorries: list[msgspec.Raw] | None = None
    message: str | None = None
    infotree: msgspec.Raw = msgspec.Raw()
    time: float | None = None


class Result(Struct):
    """One entry of `results`; version 1 says `custom_id` and puts `time` inside the response."""

    id: str | int | None = None
    custom_id: str | int | None = None
    error: str | None = None
    response: Response | None = None
    time: float | None = None

    @property
    def seconds(self) -> float | None:
        return self.time if self.time is not None else self.response.time if self.response else None


class _Results(Struct):
    results: list[Result]


_DECODER = msgspec.json.Decoder(_Results)


class Busy(Exception):
    """The server cannot answer now; `retry_after_s` is its own wish, `is_internal` an HTTP 500."""

    def __init__(self, cause: str, retry_after_s: float = 0.0, *, is_internal: bool = False) -> None:
        super().__init__(cause)
        self.retry_after_s = retry_after_s
        self.is_internal = is_internal


class Desync(Busy):
    """An answer to something else than what was asked."""


class Check(Struct, frozen=True):
    """One file to compile."""

    code: str
    limit_s: float
    """For the file; the server applies it to the header apart."""
    header_s: float = 0.0
    """What loading the header may take on top, before the HTTP request is given up."""
    fresh: bool = False
    """In a process that has compiled nothing else."""
    infotree: bool = False


class Wire:
    """Posts checks and finds out by itself which routes there are."""

    def __init__(self, session: aiohttp.ClientSession, key_env: str) -> None:
        self._session = session
        self._key_env = key_env
        self._route = 0
        self._is_route_known = False

    @property
    def is_old(self) -> bool:
        """Whether the server is of version 1."""
        return self._route > 0

    async def post(self, check: Check) -> Result:
        """Ask once; raises Busy, CheckTimeout, VerifierError, aiohttp.ClientError or TimeoutError."""
        name, route = secrets.token_hex(8), self._route
        with fail_after(_SERVER_WAIT_S + check.header_s + check.limit_s + _TRANSFER_S):
            async with self._session.post(
                ROUTES[route], json=_payload(name, check, route), allow_redirects=False
            ) as response:
                if response.status != 200:
                    await self._refuse(response, route)
                data = await _read(response.content, _MAX_ANSWER_BYTES)
            if len(data) > _MAX_ANSWER_BYTES:
                raise VerifierError(f"the Kimina server's answer is longer than {_MAX_ANSWER_BYTES} bytes")
            is_long = len(data) > _DECODE_IN_THREAD_BYTES
            result = await to_thread.run_sync(_decode, data, name) if is_long else _decode(data, name)
        self._is_route_known = True
        return _believe(result, check.limit_s)

    async def _refuse(self, response: aiohttp.ClientResponse, route: int) -> None:
        status = response.status
        text = (await _read(response.content, 2000)).decode("utf-8", "replace")[:200].strip()
        detail = f"HTTP {status}{': ' + text if text else ''}"
        if status in (404, 405) and not self._is_route_known:
            if self._route == route:  # another request may have found the next route already
                self._route = (route + 1) % len(ROUTES)
                if self._route == 0:
                    raise VerifierError(f"no Kimina server here: none of {', '.join(ROUTES)} is there ({detail})")
            raise Busy(f"no route {ROUTES[route]}")
        if 300 <= status < 400:
            where = response.headers.get("Location", "nowhere")[:200]
            raise VerifierError(f"the Kimina server redirects to {where} (HTTP {status}): set verifier.url to it")
        if status in (401, 403):
            raise VerifierError(f"the Kimina server refused the key in {self._key_env} ({detail})")
        if status in (404, 405, 408, 425, 429, 499) or status >= 500:
            raise Busy(detail, _retry_after(response.headers), is_internal=status == 500)
        raise VerifierError(f"the Kimina server refused the request ({detail})")


async def _read(content: aiohttp.StreamReader, max_bytes: int) -> bytes:
    """Read a body, at most one chunk more than max_bytes."""
    data = bytearray()
    async for chunk in content.iter_any():
        data += chunk
        if len(data) > max_bytes:
            break
    return bytes(data)


def _payload(name: str, check: Check, route: int) -> dict[str, Any]:
    if route == 0:
        body = {
            "snippets": [{"id": name, "code": check.code}],
            "timeout": max(1, round(check.limit_s)),
            "reuse": not check.fresh,
        }
        return {**body, "infotree": _INFOTREE} if check.infotree else body
    # In version 1 a fresh process compiles header and file as one command.
    limit = check.limit_s + (check.header_s if check.fresh else 0.0)
    body = {
        "codes": [{"custom_id": name, "code": check.code}],
        "timeout": max(1, round(limit)),
        "disable_cache": check.fresh,
    }
    return {**body, "infotree_type": _INFOTREE} if check.infotree else body


def _retry_after(headers: Any) -> float:
    """Read `Retry-After`, seconds or a date; 0 when it is absent or unreadable."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value[:6])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (TypeError, ValueError):
        return 0.0


def _decode(data: bytes, name: str) -> Result:
    """Decode an answer and make sure that it is the answer to `name`, and to nothing else."""
    try:
        results = _DECODER.decode(data).results
    except (msgspec.DecodeError, ValueError) as error:
        raise Busy(f"unreadable answer: {error}") from error
    if len(results) != 1:
        raise Desync(f"{len(results)} results for one check")
    (result,) = results
    echoed = result.id if result.id is not None else result.custom_id
    if str(echoed) != name:
        raise Desync(f"an answer to another check ({str(echoed)[:40]!r} instead of {name!r})")
    return result


def _believe(result: Result, limit_s: float) -> Result:
    """Tell what Lean said from what the server says of itself."""
    if result.error:
        if "timed out" in result.error and _HEADER_TIMEOUT not in result.error:
            raise CheckTimeout(f"not finished within verifier.check_timeout_s = {limit_s:g}")
        raise Busy(result.error[:300])
    response = result.response
    if response is None:
        raise Busy("neither an answer nor an error")
    if response.message:
        raise Busy(f"the server's REPL says: {response.message[:300]}")
    if any(m.pos.line == 0 and m.is_error and m.data.strip() == _BROKEN_WORKER for m in response.messages or ()):
        raise Busy("the server's REPL died")
    return result
