"""What `bin/fd-serve` puts before vLLM's routes: the key is asked for on every one of them.

vLLM's own `--api-key` guards /v1 and /inference alone; /collective_rpc, /pause and the routes that change weights stay
open to whoever reaches the port.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

KEY_VARIABLE = "VLLM_API_KEY"
_OPEN_PATHS = ("/health",)
_Send = Callable[[dict[str, Any]], Awaitable[None]]


class Guard:
    """ASGI middleware that demands `Authorization: Bearer KEY`; vLLM makes it, the key is in the environment."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ[KEY_VARIABLE]}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: _Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})
