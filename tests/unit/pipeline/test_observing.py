"""Whoever listens to a run is opened with it and closed after it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from fd_async.config.schema import RunConfig
from fd_async.errors import PreflightError
from fd_async.pipeline import observing
from fd_async.pipeline.observing import open_observers
from tests.fakes.control_plane import make_config

pytestmark = pytest.mark.anyio


def with_telemetry(**changes: Any) -> RunConfig:
    whole = make_config()
    return replace(whole, telemetry=replace(whole.telemetry, **changes))


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def test_a_run_has_a_trace_unless_it_wants_none(tmp_path: Path) -> None:
    """Nothing else is opened by default."""
    async with open_observers(with_telemetry(trace=False), tmp_path) as observers:
        observers.event("anything")
    assert names(tmp_path) == []
    async with open_observers(with_telemetry(), tmp_path) as observers:
        observers.event("anything")
    assert names(tmp_path) == ["trace.json"]
    assert "anything" in (tmp_path / "trace.json").read_text()


async def test_a_missing_package_ends_the_run_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asked for a sink is told at once."""
    monkeypatch.setattr("fd_async.telemetry.external.is_installed", lambda name: False)
    with pytest.raises(PreflightError, match="pip install trackio"):
        async with open_observers(with_telemetry(sinks=["trackio"]), tmp_path):
            raise AssertionError("opened")
    assert names(tmp_path) == []


async def test_a_port_that_is_taken_leaves_nothing_open(tmp_path: Path) -> None:
    """The line names the key; no trace was begun."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = with_telemetry(prometheus_port=server.getsockname()[1])
        with pytest.raises(PreflightError, match=r"telemetry\.prometheus_port"):
            async with open_observers(config, tmp_path):
                raise AssertionError("opened")
    assert names(tmp_path) == []


async def test_everything_is_closed_side_by_side_also_when_the_run_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that each wait for the other to begin closing would hang one after the other."""
    both = threading.Barrier(2, timeout=10.0)

    class Slow:
        def __init__(self, *_: Any) -> None: ...

        def close(self) -> None:
            both.wait()

    monkeypatch.setattr(observing, "ExternalSink", Slow)
    monkeypatch.setattr(observing, "demand_packages", lambda sinks: None)
    with anyio.CancelScope() as scope:
        async with open_observers(with_telemetry(sinks=["wandb", "trackio"]), tmp_path):
            scope.cancel()
            await anyio.sleep(10.0)
    assert not both.broken
