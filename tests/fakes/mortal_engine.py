"""Engines that die on command, opened one after another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
from msgspec.structs import replace

from fd_async.errors import EngineDied, EngineError
from fd_async.policy.engine import Send
from fd_async.types import Completion, PushReport, StagedWeights, VersionSpan


@dataclass
class Plan:
    """What one engine does."""

    sampled: int | None = None
    """Tokens that each request gets before the engine has to die; None: all of them."""
    start: Exception | None = None
    pushes: list[Exception | None] = field(default_factory=list)
    """Outcome of each push; None and everything after the list is success."""
    gives_up: bool = False
    """After `sampled` tokens it aborts its requests, as vLLM does when it is told to end."""


class MortalFake:
    """Samples the numbers from the length of the prompt on, so that a request that went on counts without a gap."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.pids = [1]
        self.version = 0
        self.pushed: list[int] = []
        self.asked: list[dict[str, Any]] = []
        self.tokens = 0
        self.is_killed = False
        self._lost, self._cause = anyio.Event(), ""
        self._parts: dict[str, Completion] = {}

    @property
    def weight_version(self) -> int:
        return self.version

    def die(self, cause: str = "killed") -> None:
        """End as a process does, without a word to those who wait."""
        self._cause = cause
        self._lost.set()

    async def watch(self) -> str:
        await self._lost.wait()
        return self._cause

    def kill(self, reason: str) -> None:
        self.is_killed = True
        self.die(reason)

    def statistics(self) -> dict[str, float]:
        return {"running": 0.0, "waiting": 0.0, "kv_usage": 0.0, "tokens_generated": float(self.tokens)}

    def partial(self, request_id: str) -> Completion | None:
        return self._parts.get(request_id)

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
        self._require_alive()
        self.asked.append({"prompt_ids": prompt_ids, "max_tokens": max_tokens, "seed": seed})
        count = max_tokens if self.plan.sampled is None else min(self.plan.sampled, max_tokens)
        ids = list(range(len(prompt_ids), len(prompt_ids) + count))
        spans = [VersionSpan(self.version, 0, count)] if count else []
        part = Completion(token_ids=ids, logprobs=[-float(i) for i in ids], spans=spans, finish_reason="abort")
        self.tokens += count
        if self.plan.gives_up:
            return part
        if self.plan.sampled is None:
            await anyio.lowlevel.checkpoint()
            return replace(part, finish_reason="length")
        if count:
            self._parts[request_id] = part
        try:
            await self._lost.wait()
            raise EngineDied(self._cause)
        except BaseException:
            if salvage is not None and count:
                salvage(part)
            raise
        finally:
            self._parts.pop(request_id, None)

    async def score(self, token_ids: list[int]) -> list[float]:
        self._require_alive()
        if self.plan.sampled is not None:
            await self._lost.wait()
            raise EngineDied(self._cause)
        return [0.0 for _ in token_ids[1:]]

    async def push(self, staged: StagedWeights, send: Send | None = None) -> PushReport:
        self._require_alive()
        await anyio.lowlevel.checkpoint()
        failure = self.plan.pushes.pop(0) if self.plan.pushes else None
        if failure is not None:
            raise failure
        self.version = staged.version
        self.pushed.append(staged.version)
        return PushReport(version=self.version, stage_s=0, stall_s=0, commit_s=0, probe_s=0, probe_max_abs=0)

    def _require_alive(self) -> None:
        if self._lost.is_set():
            raise EngineDied(self._cause)


class Opener:
    """Opens an engine for each plan, in order; the last plan stays."""

    def __init__(self, *plans: Plan) -> None:
        self.plans = list(plans)
        self.engines: list[MortalFake] = []
        self.num_open = 0
        self.may_open = anyio.Event()
        self.may_open.set()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[MortalFake]:
        await self.may_open.wait()
        plan = self.plans.pop(0) if len(self.plans) > 1 else self.plans[0]
        if plan.start is not None:
            raise plan.start
        engine = MortalFake(plan)
        self.engines.append(engine)
        self.num_open += 1
        try:
            yield engine
        finally:
            self.num_open -= 1

    @property
    def last(self) -> MortalFake:
        return self.engines[-1]


def no_start(reason: str = "no memory") -> Plan:
    """Return the plan of an engine that does not start."""
    return Plan(start=EngineError(f"vLLM did not start: {reason}"))
