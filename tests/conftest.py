"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run every async test on asyncio, as the project does."""
    return "asyncio"
