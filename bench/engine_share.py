"""How much of vLLM's speed is left once rollouts, tools and verdicts surround it?

The same engine generates the same prompts and lengths twice: inside rollouts (tools, verifier, ledger-free), and alone.
The learner is idle. Both orders alternate; the ratio is of the medians of one run.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import anyio

from bench.common import arguments, emit
from bench.experiments import configure, one_engine
from fd_async.data.statements import read_statements
from fd_async.policy.engine import Engine
from fd_async.policy.local import LocalEngine
from fd_async.policy.supervised import SupervisedEngine
from fd_async.rollouts import RolloutRunner
from fd_async.types import Completion, Ticket
from fd_async.verifier.tools.search import open_search
from fd_async.verifier.verifier import open_verifier


class Recorder:
    """Passes calls to the engine and notes prompt and length of each, per attempt."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.calls: dict[str, list[tuple[list[int], int]]] = {}

    @property
    def weight_version(self) -> int:
        return self._engine.weight_version

    async def generate(self, prompt_ids: list[int], *, request_id: str, **options: Any) -> Completion:
        completion = await self._engine.generate(prompt_ids, request_id=request_id, **options)
        attempt = request_id.rsplit("-", 1)[0]
        self.calls.setdefault(attempt, []).append((prompt_ids, len(completion.token_ids)))
        return completion

    def partial(self, request_id: str) -> Completion | None:
        return self._engine.partial(request_id)


async def run(quick: bool) -> None:
    """Measure and print."""
    config = configure("configs/tiny_fd.toml")
    attempts, rounds = (192, 2) if quick else (512, 5)
    statements = read_statements(Path(config.data.train))
    inside, alone = [], []
    async with one_engine(config) as (supervised, renderer, _):
        assert isinstance(supervised, SupervisedEngine)
        engine = supervised.present
        assert isinstance(engine, LocalEngine)
        async with open_verifier(config.verifier, output_chars=config.rollout.tool_output_chars) as verifier:
            search = open_search(config.verifier)
            for number in range(rounds + 1):
                recorder = Recorder(supervised)
                runner = RolloutRunner(
                    engine=recorder,  # type: ignore[arg-type]
                    renderer=renderer,
                    verifier=verifier,
                    search=search,
                    config=config.rollout,
                )
                tickets = [
                    Ticket(
                        ordinal=number * attempts + i,
                        sample=0,
                        purpose="train",
                        statement=statements[(number * attempts + i) % len(statements)],
                    )
                    for i in range(attempts)
                ]
                in_run = await timed_rollouts(runner, tickets, config.rollout.concurrency)
                num_tokens = sum(length for calls in recorder.calls.values() for _, length in calls)
                by_itself = await timed_replay(engine, list(recorder.calls.values()), config.rollout.concurrency)
                if number:  # the first round warms both up
                    inside.append(num_tokens / in_run)
                    alone.append(num_tokens / by_itself)
            checks = verifier.statistics()["checks"]
    emit(
        {
            "ratio": statistics.median(inside) / statistics.median(alone),
            "inside_tokens_per_s": inside,
            "alone_tokens_per_s": alone,
            "attempts": attempts,
            "checks": checks,
            "concurrency": config.rollout.concurrency,
        }
    )


async def timed_rollouts(runner: RolloutRunner, tickets: list[Ticket], concurrency: int) -> float:
    """Run all tickets and return the seconds."""
    limiter = anyio.CapacityLimiter(concurrency)

    async def one(ticket: Ticket) -> None:
        async with limiter:
            await runner.run(ticket, temperature=1.0)

    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for ticket in tickets:
            tasks.start_soon(one, ticket)
    return time.perf_counter() - started


async def timed_replay(engine: LocalEngine, attempts: list[list[tuple[list[int], int]]], concurrency: int) -> float:
    """Generate the same prompts to the same lengths without anything between the turns; return the seconds."""
    limiter = anyio.CapacityLimiter(concurrency)

    async def one(index: int, calls: list[tuple[list[int], int]]) -> None:
        async with limiter:
            for turn, (prompt_ids, length) in enumerate(calls):
                name = f"alone-{started}-{index}-{turn}"
                await engine.generate(prompt_ids, max_tokens=length, temperature=1.0, top_p=1.0, request_id=name)

    stop, engine._stop_token_ids = engine._stop_token_ids, []  # lengths are given, nothing may end earlier
    engine._num_pushes += 1  # a new cache salt: no prefix of the rollouts is reused
    started = time.perf_counter()
    try:
        async with anyio.create_task_group() as tasks:
            for index, calls in enumerate(attempts):
                tasks.start_soon(one, index, calls)
    finally:
        engine._stop_token_ids = stop
    return time.perf_counter() - started


if __name__ == "__main__":
    anyio.run(run, arguments(__doc__).quick)
