"""N REPL workers that serve many callers: affinity to headers, first come first served, restart in the background.

Owns the workers' lives. Each slot is one task that starts a process, offers it until it is retired, kills it and
starts the next, so a caller never pays for another caller's timeout. `lease` lends a process that has the asked
header loaded; whatever happens inside the lease, the process comes back clean or is replaced. Waiting for a lease
has a deadline, and passing it is an infrastructure failure, never a judgement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import anyio.abc
import structlog
from anyio import Event, current_time

from fd_async.errors import PreflightError, VerifierError
from fd_async.verifier.repl import HeaderRejected, ReplDesync, ReplProcess, ReplSpec, open_repl

_MAX_STARTS_AT_ONCE = 8
_BACKOFF_S = (0.1, 1.0, 5.0, 15.0, 30.0)
_GIVE_UP_AFTER_STARTS = 3
_REJECTED_FOR_S = 60.0
_USES_BEFORE_TURN = 16
"""A worker serves its header at least this often before it turns to one that waits and has no worker."""
_log = structlog.get_logger("fd_async.verifier")


@dataclass(eq=False)
class _Slot:
    """One worker's place. `header` is what its process has loaded, or will load next."""

    number: int
    header: str
    repl: ReplProcess | None = None
    retire: Event = field(default_factory=Event)


@dataclass(eq=False)
class _Waiter:
    """A caller in the queue; exactly one of slot and error is set when the event fires."""

    event: Event = field(default_factory=Event)
    slot: _Slot | None = None
    error: VerifierError | None = None


class ReplPool:
    """Workers and their queue. Made by `open_pool`."""

    def __init__(
        self, spec: ReplSpec, *, workers: int, max_uses: int, queue_timeout_s: float, default_header: str
    ) -> None:
        self._spec = spec
        self._max_uses = max_uses
        self._queue_timeout_s = queue_timeout_s
        self._default_header = default_header
        self._slots = [_Slot(number, default_header) for number in range(workers)]
        self._idle: dict[_Slot, None] = {}
        self._queues: dict[str, dict[_Waiter, None]] = {}
        self._rejected: dict[str, tuple[HeaderRejected, float]] = {}
        self._failed_starts: Counter[str] = Counter()
        self._starting = anyio.Semaphore(min(_MAX_STARTS_AT_ONCE, workers))
        self._fresh = anyio.Semaphore(2)
        self._first = _Waiter()
        self._busy = 0
        self._counts: Counter[str] = Counter()

    def statistics(self) -> dict[str, float]:
        """Counters `restarts`, `desyncs`, `failed_starts`; gauges `waiting`, `busy`, `idle`."""
        return {
            "restarts": self._counts["restarts"],
            "desyncs": self._counts["desyncs"],
            "failed_starts": self._counts["failed_starts"],
            "waiting": sum(len(queue) for queue in self._queues.values()),
            "busy": self._busy,
            "idle": len(self._idle),
        }

    def pids(self) -> list[int]:
        """Process ids of the workers that are up."""
        return [slot.repl.pid for slot in self._slots if slot.repl is not None]

    @asynccontextmanager
    async def lease(self, header: str) -> AsyncIterator[ReplProcess]:
        """Lend a worker that has this header loaded.

        Raises:
            VerifierError: No worker became free inside `verifier.queue_timeout_s`, or none can be started.
        """
        slot = await self._acquire(header)
        repl = slot.repl
        assert repl is not None
        try:
            yield repl
        except ReplDesync:
            self._counts["desyncs"] += 1
            raise
        finally:
            repl.uses += 1
            self._busy -= 1
            self._offer(slot)

    @asynccontextmanager
    async def fresh(self, header: str) -> AsyncIterator[ReplProcess]:
        """Lend a process of its own that nobody used before; for inputs that broke a worker."""
        async with AsyncExitStack() as stack:
            try:
                with anyio.fail_after(self._queue_timeout_s):
                    await stack.enter_async_context(self._fresh)
            except TimeoutError:
                raise VerifierError("no turn for a fresh worker within verifier.queue_timeout_s") from None
            repl = await stack.enter_async_context(open_repl(self._spec, header))
            try:
                yield repl
            except ReplDesync:
                self._counts["desyncs"] += 1
                raise

    async def first_outcome(self) -> None:
        """Wait until one worker is up; raises PreflightError when the first to finish its start failed."""
        await self._first.event.wait()
        if self._first.error is not None:
            raise PreflightError(f"the verifier does not start: {self._first.error}") from self._first.error

    async def run_slot(self, slot: _Slot) -> None:
        """Keep one worker up for ever."""
        failures = 0
        while True:
            header, slot.retire = slot.header, Event()
            try:
                async with AsyncExitStack() as stack:
                    async with self._starting:
                        repl = await stack.enter_async_context(open_repl(self._spec, header))
                    failures = 0
                    self._started(slot, repl, header)
                    await slot.retire.wait()
                    slot.repl = None
                self._counts["restarts"] += 1
            except VerifierError as error:
                self._start_failed(slot, header, error)
                await anyio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1

    @property
    def slots(self) -> list[_Slot]:
        return self._slots

    async def _acquire(self, header: str) -> _Slot:
        rejected = self._rejected.get(header)
        if rejected is not None and current_time() - rejected[1] < _REJECTED_FOR_S:
            raise VerifierError(str(rejected[0])) from rejected[0]
        slot = self._take_idle(header)
        if slot is not None:
            self._busy += 1
            return slot
        waiter = _Waiter()
        self._queues.setdefault(header, {})[waiter] = None
        self._make_room(header)
        try:
            with anyio.move_on_after(self._queue_timeout_s):
                await waiter.event.wait()
        except BaseException:
            self._forget(header, waiter)
            if waiter.slot is not None:
                self._busy -= 1
                self._offer(waiter.slot)
            raise
        self._forget(header, waiter)
        if waiter.error is not None:
            raise VerifierError(str(waiter.error)) from waiter.error
        if waiter.slot is None:
            raise VerifierError(
                f"no verifier worker became free within verifier.queue_timeout_s = {self._queue_timeout_s:g}; "
                "raise it, or verifier.workers"
            )
        return waiter.slot

    def _forget(self, header: str, waiter: _Waiter) -> None:
        queue = self._queues.get(header)
        if queue is not None:
            queue.pop(waiter, None)
            if not queue:
                del self._queues[header]

    def _take_idle(self, header: str) -> _Slot | None:
        for slot in list(self._idle):
            if slot.header != header:
                continue
            del self._idle[slot]
            if slot.repl is not None and slot.repl.is_usable():
                return slot
            self._counts["died_idle"] += 1
            slot.retire.set()
        return None

    def _make_room(self, header: str) -> None:
        """Turn an idle worker of another header to this one when its own workers cannot keep up."""
        workers = Counter(slot.header for slot in self._slots)
        if workers[header] and len(self._queues[header]) <= workers[header]:
            return
        for slot in self._idle:
            if slot.header != header and (workers[slot.header] > 1 or not workers[header]):
                del self._idle[slot]
                self._turn(slot, header)
                return

    def _turn(self, slot: _Slot, header: str) -> None:
        slot.header = header
        slot.retire.set()

    def _offer(self, slot: _Slot) -> None:
        """Give a worker that became free to whoever waits for it, or retire it."""
        repl = slot.repl
        if repl is None or slot.retire.is_set():
            return
        own = self._queues.get(slot.header)
        unserved = self._unserved_header()
        if not repl.is_usable() or repl.uses >= self._max_uses:
            self._turn(slot, unserved if unserved is not None and not own else slot.header)
        elif unserved is not None and (not own or repl.uses >= _USES_BEFORE_TURN):
            self._turn(slot, unserved)
        elif own:
            waiter = next(iter(own))
            self._forget(slot.header, waiter)
            waiter.slot = slot
            self._busy += 1
            waiter.event.set()
        else:
            self._idle[slot] = None

    def _unserved_header(self) -> str | None:
        """The longest waiting header that no worker has or is loading."""
        if not self._queues:
            return None
        served = {slot.header for slot in self._slots}
        return next((header for header in self._queues if header not in served), None)

    def _started(self, slot: _Slot, repl: ReplProcess, header: str) -> None:
        slot.repl = repl
        self._failed_starts.pop(header, None)
        self._rejected.pop(header, None)
        self._first.event.set()
        self._offer(slot)

    def _start_failed(self, slot: _Slot, header: str, error: VerifierError) -> None:
        slot.repl = None
        self._counts["failed_starts"] += 1
        self._failed_starts[header] += 1
        if not self._first.event.is_set():
            self._first.error = error
            self._first.event.set()
        _log.warning("a verifier worker did not start", worker=slot.number, error=str(error))
        up = any(other.repl is not None and other.header == header for other in self._slots)
        if isinstance(error, HeaderRejected):
            self._rejected[header] = (error, current_time())
        if isinstance(error, HeaderRejected) or (not up and self._failed_starts[header] >= _GIVE_UP_AFTER_STARTS):
            for waiter in list(self._queues.pop(header, {})):
                waiter.error = error
                waiter.event.set()
            slot.header = self._unserved_header() or self._default_header


@asynccontextmanager
async def open_pool(
    spec: ReplSpec, *, workers: int, max_uses: int, queue_timeout_s: float, default_header: str
) -> AsyncIterator[ReplPool]:
    """Start the workers with the default header and wait for the first one; kill them all at the end.

    Raises:
        PreflightError: The first worker does not start, or does not accept the header.
    """
    pool = ReplPool(
        spec, workers=workers, max_uses=max_uses, queue_timeout_s=queue_timeout_s, default_header=default_header
    )
    try:
        async with anyio.create_task_group() as tasks:
            for slot in pool.slots:
                tasks.start_soon(pool.run_slot, slot, name=f"verifier-worker-{slot.number}")
            try:
                await pool.first_outcome()
                yield pool
            finally:
                tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise
