"""Opens whoever listens to a run, as `[telemetry]` says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from fd_async.config.schema import RunConfig
from fd_async.telemetry.external import ExternalSink, demand_packages
from fd_async.telemetry.observers import Observer, Observers
from fd_async.telemetry.trace import Trace


@asynccontextmanager
async def open_observers(config: RunConfig, run_dir: Path, *, step: int = 0) -> AsyncIterator[Observers]:
    """Open trace, endpoint and sinks; at the end all close side by side, each within seconds.

    Args:
        config: of the run; `[telemetry]` is used, and sinks show the whole of it.
        run_dir: of the run; exists.
        step: that the run starts or resumes from.

    Raises:
        PreflightError: a package of `telemetry.sinks` is not installed, or the port of the endpoint is taken.
    """
    settings = config.telemetry
    observers: list[Observer] = []
    closers: list[Callable[[], None]] = []
    await anyio.to_thread.run_sync(demand_packages, settings.sinks)
    try:
        if settings.prometheus_port:
            from fd_async.telemetry.prometheus import Endpoint  # only who wants it needs the package

            endpoint = Endpoint(run_dir.name, settings.prometheus_host, settings.prometheus_port)
            observers.append(endpoint)
            closers.append(endpoint.close)
        if settings.trace:
            trace = Trace(run_dir / "trace.json", settings.trace_max_mib << 20)
            observers.append(trace)
            closers.append(trace.close)
        for name in settings.sinks:
            sink = ExternalSink(name, run_dir, settings.project, step, msgspec.to_builtins(config))
            observers.append(sink)
            closers.append(sink.close)
        yield Observers(observers)
    finally:
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for close in closers:
                    tasks.start_soon(anyio.to_thread.run_sync, close)
