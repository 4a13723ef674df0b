"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest
from hypothesis import settings

# A shared machine stalls now and then: examples are bounded in number, not in time.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run every async test on asyncio, as the project does."""
    return "asyncio"
