"""The Kimina client against a local server with the real one's routes and failures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fd_async.errors import PreflightError
from fd_async.verifier.verifier import Verifier, open_verifier
from tests.fakes.repl_kimina import FakeKimina, serve_kimina
from tests.unit.verifier.conftest import STATEMENT, fake_config, proof

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def verifier_at(old: bool = False, **changes: Any) -> AsyncIterator[tuple[Verifier, FakeKimina]]:
    async with serve_kimina(old) as server:
        config = fake_config(backend="kimina", command=[], url=server.url, workers=4, **changes)
        async with open_verifier(config, output_chars=500) as verifier:
            yield verifier, server


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("tactics", "kind"),
    [
        ("exact Or.inl hp", "proved"),
        ("exact fake_error", "failed"),
        ("sorry", "sorry"),
        ("exact fake_axiom", "axiom"),
        ("exact fake_hidden_sorry", "sorry"),
        ("exact fake_changed", "statement_changed"),
        ("exact fake_hang", "timeout"),
    ],
)
async def test_verdicts_are_those_of_local_workers(tactics: str, kind: str, old: bool) -> None:
    """Both routes of the server give the same kinds."""
    async with verifier_at(old, header="open Nat\nopen Int") as (verifier, server):
        verdict = await verifier.check(proof(tactics), STATEMENT)
        assert (verdict.kind, verdict.backend, verdict.toolchain) == (kind, "kimina", "leanprover/lean4:v4.33.0")
        assert server.requests[-1][0] == ("/verify" if old else "/api/check")


async def test_positions_are_those_of_the_models_file() -> None:
    """Header lines do not count."""
    async with verifier_at(header="open Nat\nopen Int") as (verifier, _):
        verdict = await verifier.check(proof("exact fake_error"), STATEMENT)
        assert verdict.output == "2:8: error: unknown identifier 'fake_error'"


async def test_failures_of_the_server_are_retried() -> None:
    """Overload and internal errors pass; the proof gets its verdict."""
    async with verifier_at() as (verifier, server):
        server.failures = [429, 500]
        assert (await verifier.check(proof("exact Or.inl hp"), STATEMENT)).kind == "proved"
        assert verifier.statistics()["restarts"] == 2


async def test_a_server_that_stays_down_is_infrastructure() -> None:
    """After the patience is over; nothing is remembered."""
    async with verifier_at(queue_timeout_s=0.3) as (verifier, server):
        server.failures = [500] * 20
        verdict = await verifier.check(proof("exact Or.inl hp"), STATEMENT)
        assert verdict.kind == "infrastructure"
        assert "HTTP 500" in verdict.reason
        server.failures = []
        assert (await verifier.check(proof("exact Or.inl hp"), STATEMENT)).kind == "proved"


async def test_a_refused_request_is_not_retried() -> None:
    """A wrong key will not get better."""
    async with verifier_at() as (verifier, server):
        server.failures = [401]
        verdict = await verifier.check(proof("exact Or.inl hp"), STATEMENT)
        assert verdict.kind == "infrastructure"
        assert server.failures == []
        assert verifier.statistics()["restarts"] == 0


async def test_a_server_that_is_not_there_ends_the_preflight(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key and the address in the message."""
    monkeypatch.setattr("fd_async.verifier.kimina._PATIENCE_AT_START_S", 0.1)
    config = fake_config(backend="kimina", command=[], url="http://127.0.0.1:9")
    with pytest.raises(PreflightError, match=r"verifier\.url = 'http://127\.0\.0\.1:9'"):
        async with open_verifier(config, output_chars=500):
            pass
