"""The part of Anthropic's Messages API that a run uses: `POST /v1/messages`, its answers and its refusals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from examples.tiny.tutor.directives import answer

MAX_BODY_BYTES = 2**24
CHARS_PER_TOKEN = 4
"""A rough guess, for the usage that is reported."""


def make_app(*, named_share: float = 0.8, seed: int = 0) -> web.Application:
    """Make the server; see `directives.answer` for the arguments."""

    async def messages(request: web.Request) -> web.Response:
        try:
            model, system, user = _read(await request.json())
        except (ValueError, LookupError, TypeError) as error:
            return _refusal(400, "invalid_request_error", f"{type(error).__name__}: {error}")
        text = answer(user, named_share=named_share, seed=seed)
        number = hashlib.sha256(user.encode()).hexdigest()[:24]
        body = {
            "id": f"msg_{number}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": (len(system) + len(user)) // CHARS_PER_TOKEN,
                "output_tokens": len(text) // CHARS_PER_TOKEN,
            },
        }
        return web.json_response(body, headers={"request-id": f"req_{number}"})

    async def unknown(request: web.Request) -> web.Response:
        return _refusal(404, "not_found_error", f"{request.method} {request.path}: only POST /v1/messages is known")

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.router.add_post("/v1/messages", messages)
    app.router.add_route("*", "/{rest:.*}", unknown)
    return app


@asynccontextmanager
async def serve_tutor(port: int = 0, *, named_share: float = 0.8, seed: int = 0) -> AsyncIterator[str]:
    """Serve on the loopback interface inside a running event loop; yield the address. Port 0 takes a free one."""
    app = make_app(named_share=named_share, seed=seed)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _read(body: Any) -> tuple[str, str, str]:
    """Return model, system prompt and the last user message of a request."""
    if not isinstance(body, dict):
        raise ValueError("the body must be an object")
    if not isinstance(body["max_tokens"], int) or body["max_tokens"] < 1:
        raise ValueError("max_tokens must be a positive integer")
    last = body["messages"][-1]
    if last["role"] != "user":
        raise ValueError("the last message must be the user's")
    return str(body["model"]), _text(body.get("system", "")), _text(last["content"])


def _text(content: Any) -> str:
    """Join the text blocks of a content, which may also be a plain string."""
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def _refusal(status: int, kind: str, message: str) -> web.Response:
    error = {"type": "error", "error": {"type": kind, "message": message}}
    return web.Response(status=status, text=json.dumps(error), content_type="application/json")
