"""When an attempt may start: one decision over everything that can be full."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from fd_async.config.schema import RunConfig


class Admission:
    """Bounds the attempts under way. Staleness is bounded before, by the buffer's slots."""

    def __init__(self, config: RunConfig) -> None:
        self._limiter = anyio.CapacityLimiter(config.rollout.concurrency)

    @asynccontextmanager
    async def attempt(self) -> AsyncIterator[None]:
        """Hold the right to run one attempt."""
        async with self._limiter:
            yield
