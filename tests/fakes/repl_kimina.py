"""A Kimina Lean Server without Lean: routes, answers, line numbers and failures of the real one, for tests.

Version 2 (`/api/check`, and version 1's routes on top) gives lines of the whole file; the old one (`/verify` and
`/one_pass_verify_batch` alone) takes imports off the file and gives lines of the rest, unless it was told not to reuse
a process. In a file, `fake_hang` times out and `fake_unclosed` is an open comment. `plans` are misbehaviours for the
next requests, one each.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from aiohttp import web
from msgspec import Struct

from tests.fakes import repl_fake


class Plan(Struct, frozen=True, kw_only=True):
    """How the next request is mistreated; an empty one is answered well."""

    status: int = 0
    headers: dict[str, str] = {}
    text: str = "No available REPLs"
    raw: bytes | None = None
    """A body to send instead of the answer."""
    cut: bool = False
    """Half the answer, then the connection is closed."""
    drop: bool = False
    """The connection is closed at once."""
    drip_s: float = 0.0
    """Pause between small pieces of the answer."""
    hang: bool = False
    edit: Callable[[dict[str, Any]], None] | None = None
    """Changes the answer in place."""


class FakeKimina:
    """`old` serves version 1; `key` is the key it wants; `routes` limits what there is."""

    def __init__(
        self, old: bool = False, key: str = "", answer: Callable[[str], dict[str, Any] | None] | None = None
    ) -> None:
        self.old = old
        self.key = key
        self.answer = answer
        """Answers a file instead of the REPL fake; the result is sent as version 1 sends it."""
        self.routes = {"/verify", "/one_pass_verify_batch"} | (set() if old else {"/api/check"})
        self.missing_status = 404
        self.plans: list[Plan] = []
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.url = ""

    @property
    def failures(self) -> list[int]:
        return [plan.status for plan in self.plans]

    @failures.setter
    def failures(self, states: list[int]) -> None:
        self.plans = [Plan(status=status) for status in states]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one batch, or mistreat it."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._handle(request)
        finally:
            self.in_flight -= 1

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append((request.path, body))
        if request.path not in self.routes:
            return web.Response(status=self.missing_status, text='{"detail":"Not Found"}')
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"detail": "Invalid API key"}, status=401)
        plan = self.plans.pop(0) if self.plans else Plan()
        if plan.hang:
            await anyio.sleep_forever()
        if plan.drop and request.transport:
            request.transport.close()
            return web.Response()
        if plan.status:
            return web.Response(status=plan.status, text=plan.text, headers=plan.headers)
        answer = self.check(request.path, body)
        if plan.edit:
            plan.edit(answer)
        data = json.dumps(answer, ensure_ascii=False).encode() if plan.raw is None else plan.raw
        return await _send(request, data, plan)

    def check(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Answer every snippet of a request that the real server would accept."""
        if path == "/api/check":
            return {"results": [{"id": item["id"], **self.judge(item["code"], False)} for item in body["snippets"]]}
        results = []
        for item in body["codes"]:
            judged = self.answer(item["code"]) if self.answer else None
            if judged is None:
                judged = self.judge(item["code"], self.old and not body["disable_cache"])
                seconds = judged.pop("time")
                if judged.get("response"):
                    judged["response"].pop("env", None)
                    judged["response"]["time"] = seconds
            results.append({"error": None, "response": None, **judged, "custom_id": item["custom_id"]})
        return {"results": results}

    def judge(self, code: str, from_body: bool) -> dict[str, Any]:
        """Answer one file the way the REPL fake would."""
        lines = code.split("\n")
        top = next(i for i, line in enumerate(lines) if line.strip() and not line.startswith("import "))
        if "fake_hang" in code:
            words = "Lean process timed out" if self.old else "Lean REPL command timed out in 1 seconds"
            return {"error": words, "time": 1.0}
        messages, sorries = _compile(code)
        for message in messages:
            message["pos"]["line"] -= top if from_body else 0
        response = {
            "env": 0,
            **({"messages": messages} if messages else {}),
            **({"sorries": sorries} if sorries else {}),
        }
        return {"response": response, "time": 0.01}


def _compile(code: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """Diagnostics of a file, with the lines of the whole file."""
    body, separator, probe = code.rpartition("\n\ntheorem fd_probe")
    repl_fake.ENVIRONMENTS.clear()
    whole = repl_fake.answer(code if not separator else body, None)
    messages = [m for m in whole.get("messages", []) if "fd_canary_false" not in m["data"]]
    for number, line in enumerate(code.split("\n"), 1):
        if line.startswith("#eval (Lean.versionString"):
            messages.append(repl_fake.message("info", '"4.33.0 fd_version"', number))
        if "fd_canary_false" in code and line.strip() == "exact hp":
            messages.append(repl_fake.message("error", "type mismatch", number))
    if "fake_unclosed" in code:  # swallows the rest, and is reported at the end of the file
        messages.append(repl_fake.message("error", "unterminated comment", code.count("\n") + 1))
    elif separator:
        after = repl_fake.answer("theorem fd_probe" + probe, 0)
        first = body.count("\n") + 2
        for message in after.get("messages", []):
            is_axioms = message["data"].startswith("'fd_probe")
            message["pos"]["line"] = first + (probe.rstrip().count("\n") + 1 if is_axioms else 1)
            messages.append(message)
    if "by sorry" in body:  # the canaries' statements alone are fine
        messages = [m for m in messages if "type mismatch fd_canary" not in m["data"]]
    return messages, whole.get("sorries", [])


async def _send(request: web.Request, data: bytes, plan: Plan) -> web.StreamResponse:
    if not plan.cut and not plan.drip_s:
        return web.Response(body=data, headers={"Content-Type": "application/json", **plan.headers})
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(data))})
    await response.prepare(request)
    if plan.cut:
        await response.write(data[: len(data) // 2])
        if request.transport:
            request.transport.close()
        return response
    for start in range(0, len(data), 16):
        await response.write(data[start : start + 16])
        await anyio.sleep(plan.drip_s)
    return response


@asynccontextmanager
async def serve_kimina(old: bool = False, *, port: int = 0, **options: Any) -> AsyncIterator[FakeKimina]:
    """Run the fake on a local port."""
    fake = FakeKimina(old, **options)
    app = web.Application(client_max_size=2**24)
    for route in ("/api/check", "/verify", "/one_pass_verify_batch"):
        app.router.add_post(route, fake.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
    await site.start()
    try:
        fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield fake
    finally:
        await runner.cleanup()
