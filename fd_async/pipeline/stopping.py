"""Work that a request to stop may end early. The request is an event; whoever waits for it cleans up and returns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio

from fd_async.errors import EngineError, FeedbackError

Result = TypeVar("Result")

_SIGNAL_FOLLOWS_S = 1.0
"""A Ctrl-C on a terminal reaches the engine's process too, sometimes before ours."""


@asynccontextmanager
async def beside(*services: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run services for the length of the block. What the block raises comes out as it is, with no group around it."""
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        for service in services:
            group.start_soon(service)
        try:
            yield
        except Exception as error:
            failure = error
        group.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def run_until_stopped(stopping: anyio.Event, work: Callable[[], Awaitable[Result]]) -> Result | None:
    """Return the result of `work`, or None when `stopping` was set first; what then fails in it is no error.

    Args:
        stopping: the request.
        work: is cancelled by it.
    """
    result = None
    try:
        async with anyio.create_task_group() as tasks:

            async def stop() -> None:
                await stopping.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(stop)
            result = await work()
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as error:
        if not await _comes_with_stop(error, stopping):
            raise
    return result


async def _comes_with_stop(group: BaseExceptionGroup, stopping: anyio.Event) -> bool:
    """Say whether errors of the engine or the provider are a mere consequence of the request to stop."""
    if group.split((EngineError, FeedbackError))[1] is not None:
        return False
    if group.subgroup(EngineError) is not None:
        with anyio.move_on_after(_SIGNAL_FOLLOWS_S):
            await stopping.wait()
    return stopping.is_set()
