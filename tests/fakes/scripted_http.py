"""An HTTP server that answers POSTs from a script, records what it was asked, and can misbehave on purpose."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any, Self

import anyio
from aiohttp import web
from msgspec import Struct, field

FEEDBACK_TEXT = (
    "1. Call lean_check_file after every edit and read the first error before changing anything else in the proof.\n"
    "2. Try `omega` for goals in linear arithmetic over Nat or Int instead of rewriting them step by step.\n"
    "3. Search Mathlib with rg_in_mathlib for a lemma about the head symbol of the goal before proving it by hand."
)
"""Passes the answer check of every tutor prompt."""


class Reply(Struct, frozen=True, kw_only=True):
    """One scripted answer. `body` is JSON unless it is a str, which is sent as it is."""

    body: dict[str, Any] | str = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    hang: bool = False
    """Never answer."""
    cut: bool = False
    """Send half of the body, then close the connection."""


class Seen(Struct, frozen=True, kw_only=True):
    """One request as it arrived."""

    body: dict[str, Any]
    headers: dict[str, str]
    at: float
    """Event-loop seconds."""


class ScriptedServer:
    """Answers from `replies` while there are any, then from `default`. Use as `async with`."""

    def __init__(self, path: str, default: Callable[[dict[str, Any]], Reply], *, port: int = 0) -> None:
        self.replies: deque[Reply] = deque()
        self.default = default
        self.seen: list[Seen] = []
        self.arrived = anyio.Event()
        """Set by the first request."""
        self.in_flight = 0
        self.max_in_flight = 0
        self._port = port
        self._app = web.Application(client_max_size=2**26)
        self._app.router.add_post(path, self._handle)
        self._runner = web.AppRunner(self._app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def address(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self._port}"

    def then(self, *replies: Reply) -> None:
        """Append to the script."""
        self.replies.extend(replies)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(Seen(body=body, headers=dict(request.headers), at=anyio.current_time()))
        self.arrived.set()
        reply = self.replies.popleft() if self.replies else self.default(body)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            if reply.hang:
                await anyio.sleep_forever()
            await anyio.sleep(reply.delay_s)
            return await _send(request, reply)
        finally:
            self.in_flight -= 1


async def _send(request: web.Request, reply: Reply) -> web.StreamResponse:
    payload = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
    headers = {"content-type": "application/json", **reply.headers}
    if not reply.cut:
        return web.Response(body=payload, status=reply.status, headers=headers)
    response = web.StreamResponse(status=reply.status, headers={**headers, "content-length": str(len(payload))})
    await response.prepare(request)
    await response.write(payload[: len(payload) // 2])
    if request.transport:
        request.transport.close()
    return response
