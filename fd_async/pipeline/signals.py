"""Requests to end a run: SIGINT, SIGTERM, and SIGHUP unless the shell had it ignored (`nohup`).

    first, while a learner trains    finish the step, write a checkpoint, leave; all within `run.shutdown_s`
    first, while parts still start   leave now
    second                           leave now

To leave now is to cancel everything: whoever started a process ends it on the way out.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
import structlog

from fd_async.pipeline.stopping import beside

log = structlog.get_logger(__name__)

EXIT_INTERRUPTED = 130
LEAVE_S = 20.0
"""Time to leave at once: what was started is killed, nothing is waited for."""


class Limit(Protocol):
    """Ends the process if it has not ended by itself in time."""

    def leave_by(self, seconds: float, code: int) -> None: ...


class NoLimit:
    """Leaves the process alone."""

    def leave_by(self, seconds: float, code: int) -> None:
        """Do nothing."""


class Stop:
    """The request, shared by all that a process runs."""

    def __init__(self, *, shutdown_s: float = 120.0, limit: Limit | None = None) -> None:
        self.asked = anyio.Event()
        self.leaving = anyio.Event()
        """Set when nothing is waited for any more, paid calls included."""
        self.can_finish = False
        """Whether there is a step to finish and a checkpoint to write; else the first request leaves at once."""
        self.say: Callable[[str], None] = lambda text: None
        self.limit = limit or NoLimit()
        self._shutdown_s = shutdown_s
        self._everything = anyio.CancelScope()

    @property
    def leaves_now(self) -> bool:
        """Whether everything is being cancelled."""
        return self._everything.cancel_called

    async def run(self, work: Callable[[], Awaitable[int]]) -> int:
        """Run `work` and return its exit code, or 130 when a signal made it leave at once."""
        async with self.listening():
            return await self.cancelable(work)

    async def cancelable(self, work: Callable[[], Awaitable[int]]) -> int:
        """Run `work` so that a request to leave now cancels it; what fails on the way out is logged alone."""
        code = EXIT_INTERRUPTED
        with self._everything:
            try:
                code = await work()
            except Exception as error:
                if not self.leaves_now:
                    raise
                log.warning("failed_while_leaving", error=repr(error))
        return code

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Take the signals for the length of the block."""
        with anyio.open_signal_receiver(*wanted_signals()) as signals:

            async def listen() -> None:
                async for received in signals:
                    self.request(signal.Signals(received).name)

            async with beside(listen):
                yield

    def request(self, name: str) -> None:
        """Ask once more."""
        if self.asked.is_set() or not self.can_finish:
            self.asked.set()
            self.say(f"{name}: leaving now")
            self.limit.leave_by(LEAVE_S, EXIT_INTERRUPTED)
            self.leaving.set()
            self._everything.cancel()
        else:
            self.asked.set()
            self.say(f"{name}: finishing the step, then a checkpoint; again leaves now")
            self.limit.leave_by(self._shutdown_s, 6)


def wanted_signals() -> list[signal.Signals]:
    """Return the signals that ask a run to end."""
    asks = [signal.SIGINT, signal.SIGTERM]
    return asks if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [*asks, signal.SIGHUP]
