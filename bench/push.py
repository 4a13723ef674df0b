"""How long the engine stands still for a push, and what bad pushes do.

Keys: `stall_vs_copy`, the stall of a larger model's push over the time to copy the same bytes once, both in this run;
`tiny_stall_p50_s` for a model of 0.7 M parameters; `bad_pushes` tried and `bad_refused`; `requests_lost` of all that
were in flight during good and bad pushes. `rows` has every push's phases.
"""

from __future__ import annotations

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import torch
from msgspec.structs import replace

from bench.common import arguments, emit
from fd_async.config.schema import Policy
from fd_async.errors import EngineError, PushRefused
from fd_async.policy import LocalEngine, open_engine
from fd_async.types import StagedWeights
from tests.fakes.weights import PROBE, perturb, stage, tiny_qwen3

CONFIG = Policy(
    max_num_seqs=32, max_model_len=1024, kv_cache_gib=0.5, enforce_eager=True, cpu_threads=1, probe_tolerance=1e-3
)
MEMORY = "/dev/shm"
SIZES = {
    "tiny": {},
    "quick": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": 8192},
    "full": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 12, "vocab_size": 32768},
}


class Traffic:
    """Requests that run while weights arrive."""

    def __init__(self, engine: LocalEngine, tokens: int) -> None:
        self.engine = engine
        self.tokens = tokens
        self.sent = 0
        self.answered = 0

    async def one(self) -> None:
        self.sent += 1
        name = f"bench-{self.sent}"
        try:
            completion = await self.engine.generate(
                PROBE, max_tokens=self.tokens, temperature=1.0, top_p=1.0, request_id=name
            )
        except EngineError as error:
            print(error, flush=True)
            return
        self.answered += len(completion.token_ids) == self.tokens

    async def during(self, action: Callable[[], Any], requests: int) -> None:
        """Start requests, act when they sample, wait for all."""
        goal = self.engine.statistics()["tokens_generated"] + requests
        async with anyio.create_task_group() as group:
            for _ in range(requests):
                group.start_soon(self.one)
            while self.engine.statistics()["tokens_generated"] < goal:  # noqa: ASYNC110
                await anyio.sleep(0.001)
            await action()


def bad_pushes(good: StagedWeights, scratch: Path) -> dict[str, StagedWeights]:
    """Return one staged set of weights for each way of being wrong."""
    short = scratch / "short.bin"
    short.write_bytes(Path(good.path).read_bytes()[:-4])
    return {
        "missing tensor": replace(
            good, **{key: getattr(good, key)[:-1] for key in ("names", "dtypes", "shapes", "offsets")}
        ),
        "extra tensor": replace(good, names=[*good.names[:-1], "model.unknown.weight"]),
        "wrong shape": replace(good, shapes=[*good.shapes[:-1], [1]]),
        "wrong dtype": replace(good, dtypes=["int8", *good.dtypes[1:]]),
        "overlap": replace(good, offsets=[good.offsets[0], *good.offsets[:-1]]),
        "truncated file": replace(good, path=str(short)),
        "wrong sha256": replace(good, sha256="0" * 64),
        "missing file": replace(good, path=str(scratch / "gone.bin")),
    }


def copy_s(staged: StagedWeights) -> float:
    """Time one copy of the staged bytes from the mapped file into fresh memory, seconds."""
    with open(staged.path, "rb") as file, mmap.mmap(file.fileno(), staged.num_bytes, access=mmap.ACCESS_COPY) as data:
        began = time.perf_counter()
        copied = torch.frombuffer(data, dtype=torch.uint8).clone()
        seconds = time.perf_counter() - began
        del copied
    return seconds


async def measure(size: str, pushes: int, requests: int, tokens: int, scratch: Path, *, bad: bool) -> dict[str, Any]:
    """Push into one engine under traffic; return stalls, copies and counts."""
    folder = scratch / size
    model = await anyio.to_thread.run_sync(lambda: tiny_qwen3(folder, **SIZES[size]))
    file = scratch / f"{size}.bin"
    rows: list[dict[str, float]] = []
    refused = tried = 0
    began = time.perf_counter()
    async with open_engine(str(folder), CONFIG, dtype="float32", seed=0, stop_token_ids=[]) as engine:
        start_s = time.perf_counter() - began
        traffic = Traffic(engine, tokens)
        staged = stage(model, file, 1)
        for number in range(1, pushes + 1):

            async def push(staged: StagedWeights = staged) -> None:
                report = await engine.push(staged)
                rows.append({"stall_s": report.stall_s, "commit_s": report.commit_s, "probe_s": report.probe_s})

            await traffic.during(push, requests)
            rows[-1]["copy_s"] = statistics.median(copy_s(staged) for _ in range(3))
            perturb(model, 1e-3, seed=number)
            staged = stage(model, file, number + 1)
        if bad:
            for name, staged_badly in bad_pushes(staged, scratch).items():
                tried += 1

                async def push_badly(name: str = name, staged: StagedWeights = staged_badly) -> None:
                    nonlocal refused
                    try:
                        await engine.push(staged)
                    except PushRefused:
                        refused += 1
                    else:
                        print(f"accepted: {name}", flush=True)

                await traffic.during(push_badly, requests)
            await engine.push(staged)
        lost = traffic.sent - traffic.answered
    return {
        "size": size,
        "num_bytes": staged.num_bytes,
        "start_s": start_s,
        "bad": tried,
        "refused": refused,
        "requests": traffic.sent,
        "lost": lost,
        "rows": rows,
    }


async def run(*, quick: bool) -> dict[str, Any]:
    """Measure the tiny and the larger model."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as scratch:
        tiny = await measure("tiny", 10 if quick else 40, 16, 96, Path(scratch), bad=True)
        larger = await measure("quick" if quick else "full", 4 if quick else 10, 4, 24, Path(scratch), bad=False)
    ratios = [row["stall_s"] / row["copy_s"] for row in larger["rows"]]
    return {
        "stall_vs_copy": statistics.median(ratios),
        "tiny_stall_p50_s": statistics.median(row["stall_s"] for row in tiny["rows"]),
        "bad_pushes": tiny["bad"],
        "bad_refused": tiny["refused"],
        "requests_lost": tiny["lost"] + larger["lost"],
        "models": [tiny, larger],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = arguments(__doc__)
    emit(anyio.run(lambda: run(quick=options.quick)))
