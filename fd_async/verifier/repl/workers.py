"""Keeps processes up: one task per place starts a process, offers it until it is retired, kills it, starts the next.

So nobody who asks for a check ever waits for the end of another's process. Owns what starting needs: how many load
their header at once, how long to wait after a start that failed, and which headers Lean has refused.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol

import anyio
import structlog
from anyio import Event, current_time

from fd_async.errors import PreflightError, VerifierError
from fd_async.verifier.backend import HeaderRefused
from fd_async.verifier.repl.process import HeaderRejected, ReplProcess, ReplSpec, open_repl

BACKOFF_S = (0.1, 1.0, 5.0, 15.0, 30.0)
_GIVE_UP_AFTER_STARTS = 3
_LOOK_AGAIN_S = 1.0
"""Somebody may ask for a header that can be loaded, while another one waits for its next try."""
_REJECTED_FOR_S = 60.0
_log = structlog.get_logger("fd_async.verifier")


@dataclass(eq=False)
class Slot:
    """The place of one process. `header` is what it has loaded, or will load next."""

    number: int
    header: str
    repl: ReplProcess | None = None
    served: int = 0
    """Checks since the header was loaded."""
    retire: Event = field(default_factory=Event)


class Owner(Protocol):
    """Who uses the processes."""

    def started(self, slot: Slot) -> None: ...

    def header_to_load(self, slot: Slot) -> str: ...

    def give_up(self, header: str, error: VerifierError) -> None: ...


class Workers:
    """All processes that the pool keeps up."""

    def __init__(self, spec: ReplSpec, owner: Owner, *, num_slots: int, starts_at_once: int, header: str) -> None:
        self.spec = spec
        self.slots = [Slot(number, header) for number in range(num_slots)]
        self.starting = anyio.Semaphore(starts_at_once)
        self.num_loading = 0
        self.counts: Counter[str] = Counter()
        self._owner = owner
        self._default_header = header
        self._rejected: dict[str, tuple[HeaderRejected, float]] = {}
        self._failures: Counter[str] = Counter()
        self._not_before: dict[str, float] = {}
        self._first = Event()
        self._first_error: VerifierError | None = None

    def of_header(self) -> Counter[str]:
        """Count processes by header, those that are loading it included."""
        return Counter(slot.header for slot in self.slots)

    def demand_accepted(self, header: str) -> None:
        """Raise VerifierError when Lean refused this header a short while ago."""
        rejected = self._rejected.get(header)
        if rejected is None:
            return
        if current_time() - rejected[1] < _REJECTED_FOR_S:
            raise HeaderRefused(str(rejected[0])) from rejected[0]
        del self._rejected[header]

    async def first_outcome(self) -> None:
        """Wait until one process is up; raises PreflightError when the header is refused or no start succeeds."""
        await self._first.wait()
        if self._first_error is not None:
            raise PreflightError(f"the verifier does not start: {self._first_error}") from self._first_error

    def retire(self, slot: Slot, header: str | None = None) -> None:
        """Let another process take this one's place, in the background."""
        slot.header = header or slot.header
        slot.retire.set()

    async def run_slot(self, slot: Slot) -> None:
        """Keep one process up for ever."""
        while True:
            slot.retire, slot.served = Event(), 0
            try:
                async with AsyncExitStack() as stack:
                    header = await self._take_turn(slot)
                    try:
                        slot.repl = await stack.enter_async_context(open_repl(self.spec, header))
                    finally:
                        self.num_loading -= 1
                        self.starting.release()
                    self._start_succeeded(header)
                    self._owner.started(slot)
                    await slot.retire.wait()
                    slot.repl = None
                self.counts["restarts"] += 1
            except VerifierError as error:
                self._start_failed(slot, error)
            finally:
                slot.repl = None

    async def _take_turn(self, slot: Slot) -> str:
        """Wait until this place may start a process, and return the header to load.

        After failed starts of a header one process tries again at a time, and nobody holds a turn meanwhile.
        """
        while True:
            await self.starting.acquire()
            slot.header = header = self._owner.header_to_load(slot)
            wait_s = self._not_before.get(header, 0.0) - current_time()
            if wait_s <= 0.0:
                if self._failures[header]:
                    self._push_back(header)
                self.num_loading += 1
                return header
            self.starting.release()
            await anyio.sleep(min(wait_s, _LOOK_AGAIN_S))

    def _push_back(self, header: str) -> None:
        failures = self._failures[header]
        self._not_before[header] = current_time() + BACKOFF_S[min(max(failures, 1), len(BACKOFF_S)) - 1]

    def _start_succeeded(self, header: str) -> None:
        for record in (self._failures, self._not_before, self._rejected):
            record.pop(header, None)
        self._first.set()

    def _start_failed(self, slot: Slot, error: VerifierError) -> None:
        header = slot.header
        self.counts["failed_starts"] += 1
        self._failures[header] += 1
        self._push_back(header)
        _log.warning("a verifier worker did not start", worker=slot.number, error=str(error))
        up = any(other.repl is not None and other.header == header for other in self.slots)
        if isinstance(error, HeaderRejected):
            self._rejected[header] = (error, current_time())
        if isinstance(error, HeaderRejected) or (not up and self._failures[header] >= _GIVE_UP_AFTER_STARTS):
            if not self._first.is_set():
                self._first_error = error
                self._first.set()
            self._owner.give_up(header, error)
            slot.header = self._default_header
            if header != self._default_header:
                self._failures.pop(header, None)
                self._not_before.pop(header, None)
