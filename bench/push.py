"""How long the engine stands still for a push, and what bad pushes do.

Keys: `stall_vs_copy`, the stall of a 1 GB model's push over the time to copy the same bytes once into fresh memory,
both in this run; `tiny_stall_p50_s` for a model of 0.7 M parameters; `bad_pushes` tried among `pushes` under load and
`bad_refused`; `requests_lost` of all that were in flight. A stall is what requests feel: the longer of the time from
the request to hold until the engine was let go (`held_s`), and of the time without a new token around that, less a
usual engine step (`hold_gap_s` - `step_s`). `longest_gap_s` is the longest time without a new token in the whole push,
its preparation included. `models` has every large push's phases.
"""

from __future__ import annotations

import mmap
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import torch

from bench.common import arguments, emit
from fd_async.config.schema import Policy
from fd_async.errors import EngineError, PushRefused
from fd_async.policy import LocalEngine, open_engine
from fd_async.types import PushReport, StagedWeights
from tests.fakes.bad_pushes import BAD_PUSHES
from tests.fakes.weights import PROBE, perturb, stage, tiny_qwen3

CONFIG = Policy(
    max_num_seqs=32, max_model_len=1024, kv_cache_gib=0.5, enforce_eager=True, cpu_threads=1, probe_tolerance=1e-3
)
MEMORY = "/dev/shm"
SIZES = {
    "tiny": {},
    "quick": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 8192},
    "full": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 23, "vocab_size": 32768},
}
BAD_SHARE = 0.05
_PATIENCE_S = 120.0
_SAME_NATS = 1e-5
"""Scores of the same weights differ by less, whatever else the engine batches; those of two versions by more."""


class Traffic:
    """Requests that run while weights arrive, and when tokens came."""

    def __init__(self, engine: LocalEngine, requests: int, tokens: int) -> None:
        self.engine, self.requests, self.tokens = engine, requests, tokens
        self.sent = self.answered = 0
        self.times: list[float] = []
        """When the count of sampled tokens was seen to grow, while traffic ran."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep that many requests in flight inside the block; at its end wait for the last of them."""
        ended = anyio.Event()
        self.times = []
        async with anyio.create_task_group() as group:
            for _ in range(self.requests):
                group.start_soon(self._keep_asking, ended)
            group.start_soon(self._watch, ended)
            await self.until_tokens_came(5)
            yield
            ended.set()

    async def until_tokens_came(self, times: int) -> None:
        """Wait until tokens came that many times more."""
        goal = len(self.times) + times
        with anyio.fail_after(_PATIENCE_S):
            while len(self.times) < goal:  # noqa: ASYNC110
                await anyio.sleep(0.001)

    def longest_gap(self, since: float, until: float) -> float:
        """Return the longest time without a new token that touches the span."""
        return max(end - begin for begin, end in self.gaps() if end > since and begin < until)

    def gaps(self) -> list[tuple[float, float]]:
        """Return the times between one token and the next."""
        return list(zip(self.times, self.times[1:], strict=False))

    async def _keep_asking(self, ended: anyio.Event) -> None:
        while not ended.is_set():
            self.sent += 1
            try:
                completion = await self.engine.generate(
                    PROBE, max_tokens=self.tokens, temperature=1.0, top_p=1.0, request_id=f"bench-{self.sent}"
                )
            except EngineError as error:
                print(f"lost: {error}", flush=True)
                return
            self.answered += len(completion.token_ids) == self.tokens

    async def _watch(self, ended: anyio.Event) -> None:
        seen = self.engine.statistics()["tokens_generated"]
        while not ended.is_set():
            await anyio.sleep(0.001)
            count = self.engine.statistics()["tokens_generated"]
            if count != seen:
                seen = count
                self.times.append(time.perf_counter())


def copy_s(staged: StagedWeights) -> float:
    """Time one copy of the staged bytes into fresh memory, from memory that has just been read, seconds."""
    with open(staged.path, "rb") as file, mmap.mmap(file.fileno(), staged.num_bytes, access=mmap.ACCESS_COPY) as data:
        source = torch.frombuffer(data, dtype=torch.uint8)
        source.max()
        began = time.perf_counter()
        copied = source.clone()
        seconds = time.perf_counter() - began
        del copied, source
    return seconds


async def timed_push(traffic: Traffic, staged: StagedWeights) -> dict[str, float]:
    """Push under traffic, which keeps running until the next token, and return the phases."""
    began = time.perf_counter()
    report: PushReport = await traffic.engine.push(staged)
    ended = time.perf_counter()
    await traffic.until_tokens_came(1)
    step_s = statistics.median(end - begin for begin, end in traffic.gaps())
    let_go = ended - report.probe_s
    hold_gap_s = traffic.longest_gap(let_go - report.stall_s, let_go)
    return {
        "stall_s": max(report.stall_s, hold_gap_s - step_s),
        "held_s": report.stall_s,
        "commit_s": report.commit_s,
        "hold_gap_s": hold_gap_s,
        "longest_gap_s": traffic.longest_gap(began, ended),
        "step_s": step_s,
        "prepare_s": report.stage_s,
        "probe_s": report.probe_s,
        "probe_max_abs": report.probe_max_abs,
    }


async def push_a_large_model(size: str, pushes: int, scratch: Path) -> dict[str, Any]:
    """Time pushes with a few requests in flight; between them, without requests, time the copies."""
    model = await anyio.to_thread.run_sync(lambda: tiny_qwen3(scratch / size, **SIZES[size]))
    rows: list[dict[str, float]] = []
    num_bytes = 0
    async with open_engine(str(scratch / size), CONFIG, dtype="float32", seed=0, stop_token_ids=[]) as engine:
        traffic = Traffic(engine, requests=4, tokens=24)
        for number in range(pushes + 1):
            perturb(model, 1e-3, seed=number)
            staged = await anyio.to_thread.run_sync(stage, model, scratch / f"{size}.bin", number + 1)
            num_bytes = staged.num_bytes
            async with traffic.running():
                row = await timed_push(traffic, staged)
            if number:  # the first one pays for what happens once in an engine's life
                rows.append(row | {"copy_s": statistics.median(copy_s(staged) for _ in range(3))})
    return {"num_bytes": num_bytes, "lost": traffic.sent - traffic.answered, "rows": rows}


async def push_good_and_bad(pushes: int, scratch: Path) -> dict[str, Any]:
    """Push a tiny model again and again under load, some of the pushes corrupted."""
    model = tiny_qwen3(scratch / "tiny")
    file, refused, changed = scratch / "tiny.bin", 0, 0
    bad = set(random.Random(0).sample(range(pushes), max(len(BAD_PUSHES), round(BAD_SHARE * pushes))))
    kinds = list(BAD_PUSHES)
    rows: list[dict[str, float]] = []
    async with open_engine(str(scratch / "tiny"), CONFIG, dtype="float32", seed=0, stop_token_ids=[]) as engine:
        traffic = Traffic(engine, requests=16, tokens=96)
        async with traffic.running():
            for number in range(pushes):
                perturb(model, 1e-3, seed=number)
                staged = stage(model, file, number + 1)
                if number not in bad:
                    traffic.times = traffic.times[-5:]
                    rows.append(await timed_push(traffic, staged))
                    continue
                kind = kinds[len(bad & set(range(number))) % len(kinds)]
                before, version = await engine.score(PROBE), engine.weight_version
                try:
                    await engine.push(BAD_PUSHES[kind](staged))
                    print(f"accepted: {kind}", flush=True)
                except PushRefused:
                    refused += 1
                after = await engine.score(PROBE)
                same = max(abs(a - b) for a, b in zip(before, after, strict=True)) < _SAME_NATS
                changed += not same or engine.weight_version != version
    return {
        "pushes": pushes,
        "bad": len(bad),
        "refused": refused,
        "changed": changed,
        "requests": traffic.sent,
        "lost": traffic.sent - traffic.answered,
        **{f"{key}_p50": statistics.median(row[key] for row in rows) for key in rows[0]},
        "stall_s_max": max(row["stall_s"] for row in rows),
        "probe_max_abs_max": max(row["probe_max_abs"] for row in rows),
    }


async def run(*, quick: bool) -> dict[str, Any]:
    """Measure the tiny and the larger model."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as scratch:
        tiny = await push_good_and_bad(60 if quick else 1000, Path(scratch))
        size = "quick" if quick else "full"
        large = await push_a_large_model(size, 4 if quick else 10, Path(scratch))
    return {
        "stall_vs_copy": statistics.median(row["stall_s"] / row["copy_s"] for row in large["rows"]),
        "tiny_stall_p50_s": tiny["stall_s_p50"],
        "pushes": tiny["pushes"],
        "bad_pushes": tiny["bad"],
        "bad_refused": tiny["refused"],
        "served_otherwise_after_refusal": tiny["changed"],
        "requests": tiny["requests"],
        "requests_lost": tiny["lost"] + large["lost"],
        "models": {"tiny": tiny, size: large},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = arguments(__doc__)
    emit(anyio.run(lambda: run(quick=options.quick)))
