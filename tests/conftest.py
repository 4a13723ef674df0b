"""Fixtures shared by all tests."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from hypothesis import settings

# A shared machine stalls now and then: examples are bounded in number, not in time.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run every async test on asyncio, as the project does."""
    return "asyncio"


@pytest.fixture(autouse=True)
def _hear_every_level() -> None:
    """Undo what an earlier test told the logs, so that a test that reads them hears all."""
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _forgive_a_race_of_anyio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a Unix socket that turns readable in the very turn that cancels its reader not fail a test.

    anyio then sets the result of a cancelled future; asyncio only logs it, anyio's test runner raises it.
    """
    from anyio._backends._asyncio import TestRunner

    handle = TestRunner._exception_handler

    def forgiving(self: TestRunner, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        if not isinstance(context.get("exception"), asyncio.InvalidStateError):
            handle(self, loop, context)

    monkeypatch.setattr(TestRunner, "_exception_handler", forgiving)
