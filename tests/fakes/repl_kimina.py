"""A Kimina Lean Server without Lean: the routes, answers and failures of the real one, for the client's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from tests.fakes import repl_fake


class FakeKimina:
    """Answers `/verify`, and `/api/check` unless `old`. `failures` are HTTP states to send before the next answers."""

    def __init__(self, old: bool = False) -> None:
        self.old = old
        self.failures: list[int] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        """Answer one batch."""
        body = await request.json()
        self.requests.append((request.path, body))
        if request.path == "/api/check" and self.old:
            return web.Response(status=404)
        if self.failures:
            return web.Response(status=self.failures.pop(0), text="No available REPLs")
        items = body.get("snippets") or body.get("codes")
        return web.json_response({"results": [self.judge(item["code"]) for item in items]})

    def judge(self, code: str) -> dict[str, Any]:
        """Answer one snippet the way the REPL fake would."""
        if "fake_hang" in code:
            return {"error": "Lean REPL command timed out in 1 seconds", "response": None, "time": 1.0}
        if "Lean.versionString" in code:
            return {"response": {"env": 0, "messages": [repl_fake.message("info", '"4.33.0 fd_version"')]}, "time": 0.1}
        body, separator, probe = code.rpartition("\n\ntheorem fd_probe")
        repl_fake.ENVIRONMENTS.clear()
        whole = repl_fake.answer(code if not separator else body, None)
        messages = whole.get("messages", [])
        if separator:
            after = repl_fake.answer("theorem fd_probe" + probe, 0)
            lines = body.count("\n") + 2
            for message in after.get("messages", []):
                message["pos"]["line"] += lines
                messages.append(message)
        return {"response": {"env": 0, "messages": messages, "sorries": whole.get("sorries", [])}, "time": 0.01}


@asynccontextmanager
async def serve_kimina(old: bool = False) -> AsyncIterator[FakeKimina]:
    """Run the fake on a free local port."""
    fake = FakeKimina(old)
    app = web.Application()
    app.router.add_post("/api/check", fake.handle)
    app.router.add_post("/verify", fake.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield fake
    finally:
        await runner.cleanup()
