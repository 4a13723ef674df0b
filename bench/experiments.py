"""Runs experiments one after another on one vLLM engine, so that a benchmark pays its start-up once."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
from msgspec import Struct

from fd_async.app import load_renderer, run_experiment, serve
from fd_async.config.load import load_config
from fd_async.config.schema import RunConfig
from fd_async.policy.engine import Engine
from fd_async.rendering import Renderer
from fd_async.telemetry.sinks import read_rows


class Outcome(Struct, frozen=True, kw_only=True):
    """What one experiment left."""

    rows: list[dict[str, Any]]
    run_dir: Path
    train_s: float
    """First to last metrics row, evaluations included, seconds."""

    def first(self, key: str) -> float:
        return next(row[key] for row in self.rows if row.get(key) is not None)

    def last(self, key: str) -> float:
        return next(row[key] for row in reversed(self.rows) if row.get(key) is not None)

    def highest(self, key: str) -> float:
        return max(row[key] for row in self.rows if row.get(key) is not None)

    def total(self, key: str) -> float:
        return sum(row.get(key) or 0 for row in self.rows)


def configure(config: str, sets: Mapping[str, Any] | None = None, overlays: Sequence[str] = ()) -> RunConfig:
    """Load a configuration of this repository with overrides, quiet on the console."""
    values = {"telemetry.console": "quiet", "telemetry.report": False} | dict(sets or {})
    return load_config(
        Path(config), [Path(overlay) for overlay in overlays], [f"{key}={toml(value)}" for key, value in values.items()]
    )


def toml(value: object) -> str:
    """Write a value as `--set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str | Path) else str(value)


@asynccontextmanager
async def one_engine(config: RunConfig) -> AsyncIterator[tuple[Engine, Renderer, Path]]:
    """Open vLLM for `config`, with a renderer and a temporary folder for run directories."""
    renderer = await anyio.to_thread.run_sync(load_renderer, config)
    with tempfile.TemporaryDirectory(prefix="fd-bench-") as folder:
        async with serve(config, renderer, Path(folder)) as engine:
            yield engine, renderer, Path(folder)


async def experiment(config: RunConfig, run_dir: Path, engine: Engine) -> Outcome:
    """Run one configuration on the open engine."""
    started = time.monotonic()
    if await run_experiment(config, run_dir, engine=engine):
        raise KeyboardInterrupt
    rows = read_rows(run_dir / "metrics.jsonl")
    elapsed = [row["time/elapsed_s"] for row in rows if "time/elapsed_s" in row]
    return Outcome(
        rows=rows,
        run_dir=run_dir,
        train_s=elapsed[-1] if elapsed else time.monotonic() - started,
    )
