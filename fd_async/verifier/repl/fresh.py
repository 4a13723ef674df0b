"""Processes that serve one request each: for audits, and for inputs that broke a worker."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
from anyio import CancelScope

from fd_async.errors import VerifierError
from fd_async.verifier.repl.process import HeaderRejected, ReplDesync, ReplProcess, open_repl
from fd_async.verifier.repl.workers import Workers

CLOSED = "the verifier is closed"
_STARTS = 5
_PAUSE_S = 0.1


class FreshProcesses:
    """At most `at_once` of them; they load their header in turn with the pool's own."""

    def __init__(self, workers: Workers, counts: Counter[str], *, at_once: int, queue_timeout_s: float) -> None:
        self.processes: set[ReplProcess] = set()
        self._workers = workers
        self._counts = counts
        self._queue_timeout_s = queue_timeout_s
        self._turns = anyio.Semaphore(at_once)
        self._scopes: set[CancelScope] = set()
        self._is_closed = False

    @asynccontextmanager
    async def lend(self, header: str) -> AsyncIterator[ReplProcess]:
        """Start a process, lend it, and end it.

        Raises:
            HeaderRejected: Lean does not accept the header.
            VerifierError: No turn came inside `verifier.queue_timeout_s`, no process starts, or the pool is closed.
        """
        if self._is_closed:
            raise VerifierError(CLOSED)
        with CancelScope() as scope:
            self._scopes.add(scope)
            try:
                async with AsyncExitStack() as stack:
                    repl = await self._start(stack, header)
                    self.processes.add(repl)
                    stack.callback(self.processes.discard, repl)
                    try:
                        yield repl
                    except ReplDesync:
                        self._counts["desyncs"] += 1
                        raise
                    finally:
                        self._counts["out_of_memory"] += bool(repl.condemned)
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise VerifierError(CLOSED)

    async def _start(self, stack: AsyncExitStack, header: str) -> ReplProcess:
        await self._take(stack, self._turns)
        for tries in range(1, _STARTS + 1):
            async with AsyncExitStack() as start:
                await self._take(start, self._workers.starting)
                try:
                    return await stack.enter_async_context(open_repl(self._workers.spec, header))
                except HeaderRejected:
                    raise
                except VerifierError as error:
                    self._workers.counts["failed_starts"] += 1
                    if tries == _STARTS:
                        text = f"a fresh verifier worker did not start in {tries} tries: {error}"
                        raise VerifierError(text) from error
            await anyio.sleep(_PAUSE_S * 2 ** (tries - 1))
        raise AssertionError

    async def _take(self, stack: AsyncExitStack, turns: anyio.Semaphore) -> None:
        """Hold a turn until the stack unwinds; waiting for it has a deadline."""
        try:
            with anyio.fail_after(self._queue_timeout_s):
                await stack.enter_async_context(turns)
        except TimeoutError:
            raise VerifierError("no turn for a fresh worker within verifier.queue_timeout_s") from None

    def close(self) -> None:
        """End those that are in use; their users get a VerifierError."""
        self._is_closed = True
        for scope in self._scopes:
            scope.cancel()
