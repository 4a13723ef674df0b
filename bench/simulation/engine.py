"""A stand-in for vLLM: continuous batching as a fluid.

Every running sequence gains one token per engine step, and a step takes

    step_s = base_s + per_sequence_s * running + per_context_token_s * (tokens of context of all running)

(weights read once, work per sequence, KV cache read). A prompt's new tokens are computed first and hold the others up
(`prefill_tokens_per_s`). A turn's earlier context is in the prefix cache as long as the weight version is the same,
which salts it. Sequences start first come, first served, while their KV fits. All is integrated exactly between two
events; there is no time step.
"""

from __future__ import annotations

import heapq
import itertools
import math
import re
from collections import deque
from collections.abc import Callable

import anyio
from msgspec import Struct

from bench.simulation.plans import Plans
from fd_async.policy.engine import Send
from fd_async.types import Completion, PushReport, StagedWeights, VersionSpan

_REQUEST = re.compile(r"(.+)-t(\d+)")


class EngineFigures(Struct, frozen=True, kw_only=True):
    """Service times of one engine (one GPU); sources in figures.toml."""

    base_s: float
    per_sequence_s: float
    per_context_token_s: float
    prefill_tokens_per_s: float
    kv_tokens: int
    max_num_seqs: int
    push_stall_s: float


class _Request:
    __slots__ = ("begun_at", "context", "done", "end_at", "is_running", "prefill", "seams", "tokens")

    def __init__(self, context: int, prefill: int, tokens: int) -> None:
        self.context, self.prefill, self.tokens = context, prefill, tokens
        self.begun_at = self.end_at = 0.0
        self.is_running = False
        self.seams: list[tuple[int, float]] = []
        """(version, tokens sampled when it came)."""
        self.done = anyio.Event()


class Gpu:
    """One engine: its batch, and how far every sequence of it has come."""

    def __init__(self, figures: EngineFigures) -> None:
        self.figures = figures
        self.waiting: deque[_Request] = deque()
        self.running: set[_Request] = set()
        self.tokens_generated = 0.0
        self.busy_s = 0.0
        self.sequence_s = 0.0
        self._order: list[tuple[float, int, _Request]] = []
        self._numbers = itertools.count()
        self._at = 0.0
        """Tokens that a sequence running since the start would have."""
        self._context = 0.0
        self._prefill_s = 0.0
        self._last = anyio.current_time()
        self._resume_at = 0.0
        self._changed = anyio.Event()
        self.step_s: Callable[[int], float] = lambda running: figures.base_s + figures.per_sequence_s * running
        """Seconds of a step without what it reads of the cache."""
        self.slowdown: Callable[[], float] = lambda: 1.0
        """Factor on every duration now, e.g. of a shared processor; `touch` before it changes, `wake` after."""

    @property
    def kv_usage(self) -> float:
        return min(1.0, self._context / self.figures.kv_tokens)

    async def serve(self) -> None:
        """Run until cancelled."""
        while True:
            self.touch()
            self._start_waiting()
            self._changed = anyio.Event()
            with anyio.move_on_after(self._next_event_s()):
                await self._changed.wait()

    async def generate(self, request: _Request) -> None:
        """Sample a request's tokens; a cancelled one leaves the batch."""
        self.touch()
        self.waiting.append(request)
        self._changed.set()
        try:
            await request.done.wait()
        except BaseException:
            self.touch()
            if request in self.running:
                self._leave(request)
            elif request in self.waiting:
                self.waiting.remove(request)
            self._changed.set()
            raise

    def hold(self, seconds: float, version: int) -> None:
        """Sample nothing for a while; what runs goes on under a new version."""
        self.touch()
        self._resume_at = max(self._resume_at, anyio.current_time() + seconds)
        for request in self.running:
            request.seams.append((version, self._at - request.begun_at))
        self._changed.set()

    def wake(self) -> None:
        """Have the next event computed anew."""
        self._changed.set()

    def touch(self) -> None:
        """Account for the time since the last event."""
        now = anyio.current_time()
        seconds = now - max(self._last, min(now, self._resume_at))
        self._last = now
        if not self.running or seconds <= 0:
            return
        self.busy_s += seconds
        self.sequence_s += seconds * len(self.running)
        seconds /= self.slowdown()
        spent = min(self._prefill_s, seconds)
        self._prefill_s -= spent
        self._advance(self._tokens_in(seconds - spent))
        while self._order and self._order[0][0] <= self._at + 1e-6:
            request = heapq.heappop(self._order)[2]
            if request.is_running:
                self._leave(request)
                request.done.set()

    def _advance(self, tokens: float) -> None:
        self._at += tokens
        self._context += tokens * len(self.running)
        self.tokens_generated += tokens * len(self.running)

    def _rate(self) -> tuple[float, float]:
        """Return (seconds of a step now, growth of these per token)."""
        f, num = self.figures, len(self.running)
        return self.step_s(num) + f.per_context_token_s * self._context, f.per_context_token_s * num

    def _tokens_in(self, seconds: float) -> float:
        """Solve step_s * x + growth * x^2 / 2 = seconds."""
        step_s, growth = self._rate()
        if growth * seconds < 1e-9 * step_s * step_s:
            return seconds / step_s
        return (math.sqrt(step_s * step_s + 2 * growth * seconds) - step_s) / growth

    def _next_event_s(self) -> float:
        while self._order and not self._order[0][2].is_running:
            heapq.heappop(self._order)
        if not self._order:
            return math.inf
        step_s, growth = self._rate()
        tokens = max(0.0, self._order[0][0] - self._at)
        work_s = self._prefill_s + step_s * tokens + growth * tokens * tokens / 2
        return max(0.0, self._resume_at - anyio.current_time()) + work_s * self.slowdown()

    def _start_waiting(self) -> None:
        f = self.figures
        while self.waiting and len(self.running) < f.max_num_seqs:
            request = self.waiting[0]
            needed = sum(r.context + r.tokens for r in self.running) if self.kv_usage > 0.5 else 0
            if self.running and needed + request.context + request.tokens > f.kv_tokens:
                return
            self.waiting.popleft()
            request.is_running, request.begun_at, request.end_at = True, self._at, self._at + request.tokens
            self.running.add(request)
            self._context += request.context
            self._prefill_s += request.prefill / f.prefill_tokens_per_s
            heapq.heappush(self._order, (request.end_at, next(self._numbers), request))

    def _leave(self, request: _Request) -> None:
        request.is_running = False
        self.running.discard(request)
        self._context -= request.context + min(self._at - request.begun_at, request.tokens)
        if not self.running:
            self._context = self._prefill_s = 0.0


class SimulatedEngine:
    """Several engines behind the interface of one; an attempt stays on the engine that has its context."""

    def __init__(self, figures: EngineFigures, num_engines: int, plans: Plans, grain: int) -> None:
        self.gpus = [Gpu(figures) for _ in range(num_engines)]
        self.weight_version = -1
        self.codes: list[tuple[str, int]] = []
        """Id -> (ticket, turn); the first id of a completion is its code, so that whoever decodes it knows."""
        self._plans, self._grain, self._stall_s = plans, grain, figures.push_stall_s
        self._homes: dict[str, tuple[Gpu, int]] = {}

    async def generate(
        self,
        prompt_ids: list[int],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        request_id: str,
        seed: int | None = None,
        salvage: Callable[[Completion], None] | None = None,
    ) -> Completion:
        """See `policy.engine.Engine`; a token id stands for `grain` tokens."""
        found = _REQUEST.match(request_id)
        if found is None:
            raise ValueError(f"{request_id}: not a request of an attempt")
        ticket, turn = found[1], int(found[2])
        wanted = max(1, round(self._plans.turns(ticket)[turn].sampled_tokens / self._grain))
        num_ids, context = min(wanted, max_tokens), len(prompt_ids) * self._grain
        home, version = self._homes.get(ticket, (None, -1))
        if home is None:
            home = min(self.gpus, key=lambda gpu: len(gpu.running) + len(gpu.waiting))
        cached = 0
        if version == self.weight_version and turn:
            before = self._plans.turns(ticket)[turn - 1]
            cached = max(0, context - before.tool_tokens)
        self._homes[ticket] = home, self.weight_version
        request = _Request(context, context - cached, num_ids * self._grain)
        request.seams.append((self.weight_version, 0.0))
        await home.generate(request)
        if turn == len(self._plans.turns(ticket)) - 1 or num_ids < wanted:
            self._homes.pop(ticket, None)
        self.codes.append((ticket, turn))
        return Completion(
            token_ids=[len(self.codes) - 1] + [0] * (num_ids - 1),
            logprobs=[-1.0] * num_ids,
            spans=_spans(request.seams, num_ids, self._grain),
            finish_reason="stop" if num_ids == wanted else "length",
        )

    def partial(self, request_id: str) -> Completion | None:
        """See `policy.engine.Engine`."""
        return None

    async def score(self, token_ids: list[int]) -> list[float]:
        """See `policy.engine.Engine`."""
        return [-1.0] * (len(token_ids) - 1)

    async def push(self, staged: StagedWeights, send: Send | None = None) -> PushReport:
        """Hold every engine for the stall, then serve the new version; requests keep their KV."""
        for gpu in self.gpus:
            gpu.hold(self._stall_s, staged.version)
        await anyio.sleep(self._stall_s)
        self.weight_version = staged.version
        return PushReport(
            version=staged.version, stage_s=0.0, stall_s=self._stall_s, commit_s=0.0, probe_s=0.0, probe_max_abs=0.0
        )

    def statistics(self) -> dict[str, float]:
        """See `policy.engine.Engine`."""
        return {
            "running": sum(len(gpu.running) for gpu in self.gpus),
            "waiting": sum(len(gpu.waiting) for gpu in self.gpus),
            "kv_usage": max(gpu.kv_usage for gpu in self.gpus),
            "tokens_generated": sum(gpu.tokens_generated for gpu in self.gpus),
        }


def _spans(seams: list[tuple[int, float]], num_ids: int, grain: int) -> list[VersionSpan]:
    """Turn the tokens at which versions came into spans that cover all ids."""
    spans: list[VersionSpan] = []
    ends = [min(num_ids, round(tokens / grain)) for _, tokens in seams[1:]] + [num_ids]
    start = 0
    for (version, _), end in zip(seams, ends, strict=True):
        if end > start:
            spans.append(VersionSpan(version, start, end))
            start = end
    return spans
