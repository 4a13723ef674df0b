"""An event loop whose time is virtual: when nothing can run it jumps to the next timer.

`run` gives the whole of a coroutine's waiting for nothing, in the same order every time: hours of a run pass in
seconds, and two runs of the same inputs are equal bit for bit. What would go to a thread runs at once in the loop, so
it takes no virtual time; what reads the clock must ask the loop (`anyio.current_time`), not `time.monotonic`.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

Result = TypeVar("Result")


class NothingCanHappen(RuntimeError):
    """Every task waits and no timer is set: on a real clock this would hang for ever."""


class _Jump(selectors.DefaultSelector):
    """Never sleeps: the time that the loop would wait passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise NothingCanHappen("every task waits for another and no timer is set")
        self.now += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop with another clock."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def run(work: Callable[..., Awaitable[Result]], *args: Any) -> Result:
    """Run a coroutine function to its end on a virtual clock that starts at 0."""
    with threads_inline():
        return anyio.run(work, *args, backend_options={"loop_factory": VirtualLoop})


@contextmanager
def threads_inline() -> Iterator[None]:
    """Run what is meant for a thread in the event loop: a jump cannot know how long a busy thread will take."""

    async def run_sync(work: Callable[..., Result], *args: Any, **_: Any) -> Result:
        await anyio.lowlevel.checkpoint()
        return work(*args)

    real = anyio.to_thread.run_sync
    anyio.to_thread.run_sync = run_sync  # type: ignore[assignment]
    try:
        yield
    finally:
        anyio.to_thread.run_sync = real
