"""A fake `vllm serve`: the routes that a fleet uses, a model that is a formula, and faults on demand."""

from __future__ import annotations

import asyncio
from typing import Any, Self

import anyio
from aiohttp import web

from fd_async.policy.manifest import REFUSED

VOCAB = 64
_LOWEST = 8
"""The model never samples an id below this one."""


def next_token(ids: list[int], weights: int) -> int:
    """Return what the model samples after `ids`: one id only, so that a broken continuation shows."""
    return _LOWEST + (31 * sum(ids) + 7 * len(ids) + 5 * weights) % (VOCAB - _LOWEST)


def logprob(ids: list[int], token_id: int, weights: int) -> float:
    """Return the log-prob of a token after `ids`; the weights are known by the number of the push that brought them."""
    return -0.1 - 0.01 * ((token_id + len(ids) + 13 * weights) % 97)


def sample(prompt: list[int], count: int, weights: int = 0) -> list[int]:
    """Return what an undisturbed server samples."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(next_token(ids, weights))
    return ids[len(prompt) :]


def scores(ids: list[int], weights: int) -> list[float]:
    """Return the log-probs of ids[1:]."""
    return [logprob(ids[:end], ids[end], weights) for end in range(1, len(ids))]


class FakeServer:
    """One server. `start` and `kill` may be called again and again; the port stays."""

    def __init__(self, description: dict[str, Any]) -> None:
        self.description = description
        self.token_s = 0.002
        self.faults: dict[str, Any] = {}
        """Route or name of a fault -> what to do; see `_fault` and where `faults` is read."""
        self.seen: list[dict[str, Any]] = []
        """Bodies of the requests to sample, with the label that served when they came."""
        self.headers: list[dict[str, str]] = []
        self.calls: list[str] = []
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    async def start(self) -> None:
        """Start with the weights of the checkpoint, as a new process does."""
        self.weights, self.label, self.prepared = 0, "default", None
        self.running = asyncio.Event()
        self.running.set()
        self.in_flight = 0
        app = web.Application(client_max_size=1 << 26, middlewares=[self._fault])
        app.router.add_post("/inference/v1/generate", self._generate)
        app.router.add_post("/collective_rpc", self._collective_rpc)
        app.router.add_post("/pause", self._pause)
        app.router.add_post("/resume", self._resume)
        app.router.add_post("/update_weight_version", self._set_label)
        app.router.add_get("/weight_info", self._get_label)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.0, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def kill(self) -> None:
        """Close every connection where it stands."""
        if self._runner is not None:
            for connection in self._runner.server.connections if self._runner.server else []:
                if connection.transport is not None:
                    connection.transport.abort()
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _fault(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Misbehave on a route: an HTTP status, "hang", "garbage", or a function of the body that tells which."""
        self.calls.append(request.path)
        self.headers.append(dict(request.headers))
        fault = self.faults.get(request.path)
        if fault == "hang":
            await anyio.sleep_forever()
        if fault == "garbage":
            return web.Response(text="<html>I am a proxy</html>")
        if isinstance(fault, int):
            return web.json_response({"error": {"message": "told so", "code": fault}}, status=fault)
        return await handler(request)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(body | {"label": self.label})
        if not body.get("stream"):
            rows = [None] + [
                {str(token_id): {"logprob": value, "rank": 1}}
                for token_id, value in zip(body["token_ids"][1:], scores(body["token_ids"], self.weights), strict=True)
            ]
            return web.json_response({"prompt_logprobs": rows[: len(rows) - self.faults.get("short_score", 0)]})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        self.in_flight += 1
        try:
            await self._stream(response, body)
        finally:
            self.in_flight -= 1
        return response

    async def _stream(self, response: web.StreamResponse, body: dict[str, Any]) -> None:
        params, ids, sampled = body["sampling_params"], list(body["token_ids"]), 0
        spans: list[dict[str, Any]] = []
        reason = None
        while reason is None:
            await anyio.sleep(self.token_s)
            await self.running.wait()
            token_id = next_token(ids, self.weights)
            value = logprob(ids, token_id, self.weights)
            if not spans or spans[-1]["version"] != self.label:
                spans.append({"version": self.label, "start": sampled, "end": sampled})
            ids.append(token_id)
            sampled += 1
            spans[-1]["end"] = sampled
            if token_id in params["stop_token_ids"]:
                reason = "stop"
            elif sampled == params["max_tokens"]:
                reason = "length"
            elif sampled >= self.faults.get("abort_after", sampled + 1):
                reason = "abort"
            content = [{"token_id": token_id, "logprob": self.faults.get("logprob", value), "rank": 1}]
            choice: dict[str, Any] = {
                "index": 0,
                "finish_reason": reason,
                "token_ids": [token_id],
                "logprobs": {"content": content * self.faults.get("copies", 1)},
                "weight_versions": None,
            }
            if reason is not None:
                short = self.faults.get("short_spans", 0)
                choice["weight_versions"] = [span | {"end": span["end"] - short} for span in spans]
            event = web.json_response({"request_id": "x", "choices": [choice]}).text
            await response.write(f"data: {event}\n\n".encode())
            if sampled >= self.faults.get("cut_after", sampled + 1):
                return
            if sampled >= self.faults.get("engine_dies_after", sampled + 1):
                await response.write(b'data: {"error": {"message": "EngineCore encountered an issue."}}\n\n')
                break
        await response.write(b"data: [DONE]\n\n")

    async def _collective_rpc(self, request: web.Request) -> web.Response:
        body = await request.json()
        method, args = body["method"], body.get("args", [])
        self.calls.append(method)
        fault = self.faults.get(method)
        if fault == "hang":
            await anyio.sleep_forever()
        if fault is not None:
            message = f"Call to collective_rpc method failed: {fault}"
            return web.json_response({"error": {"message": message, "code": 500}}, status=500)
        answer: Any = None
        if method == "fd_describe":
            answer = self.description
        elif method == "fd_prepare":
            self.prepared = args[0]["staged"]["version"]
        elif method == "fd_is_prepared":
            looks = self.faults.get("looks", 0)
            self.faults["looks"] = max(0, looks - 1)
            answer = str(not looks)
        elif method == "fd_commit":
            if self.prepared != args[0]:
                message = f"Call to collective_rpc method failed: {REFUSED}: version {args[0]} was not prepared"
                return web.json_response({"error": {"message": message}}, status=500)
            self.weights = self.faults.get("loads", args[0])
        return web.json_response({"results": [answer]})

    async def _pause(self, request: web.Request) -> web.Response:
        self.calls.append(f"pause {request.query['mode']} {request.query['clear_cache']}")
        if request.query["mode"] == "wait":
            while self.in_flight:  # noqa: ASYNC110
                await anyio.sleep(0.001)
        self.running.clear()
        return web.json_response({"status": "paused"})

    async def _resume(self, request: web.Request) -> web.Response:
        self.running.set()
        return web.json_response({"status": "resumed"})

    async def _set_label(self, request: web.Request) -> web.Response:
        if not self.faults.get("deaf"):
            self.label = (await request.json())["new_version"]
        return web.json_response({"success": True})

    async def _get_label(self, request: web.Request) -> web.Response:
        return web.json_response({"weight_version": self.label})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            text='# HELP x\nvllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25\n'
            'vllm:num_requests_waiting{engine="0",model_name="m"} 0.0\n'
        )
