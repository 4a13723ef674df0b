"""What fd-check says of sinks and of the endpoint."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from msgspec.structs import replace

from fd_async.config.schema import RunConfig
from fd_async.preflight import machine, network
from tests.fakes.control_plane import make_config


def with_telemetry(**changes: Any) -> RunConfig:
    whole = make_config()
    return replace(whole, telemetry=replace(whole.telemetry, **changes))


def test_a_sink_whose_package_is_missing_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """No sink, nothing to say."""
    monkeypatch.setattr(machine, "is_installed", lambda name: name == "wandb")
    assert list(machine._sinks(with_telemetry())) == []
    wandb, trackio = machine._sinks(with_telemetry(sinks=["wandb", "trackio"]))
    assert (wandb.state, wandb.name) == ("ok", "wandb")
    assert (trackio.state, trackio.name) == ("missing", "trackio")
    assert trackio.advice.startswith("pip install trackio")


def test_a_port_that_is_taken_is_missing() -> None:
    """Without a port nothing is tried."""
    assert list(network._metrics(with_telemetry())) == []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (taken,) = network._metrics(with_telemetry(prometheus_port=port))
    (free,) = network._metrics(with_telemetry(prometheus_port=port))
    assert (taken.state, free.state) == ("missing", "ok")
    assert "telemetry.prometheus_port" in taken.advice
