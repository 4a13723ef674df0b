"""REPL processes that serve many callers: who runs, who waits, who is set aside, and which process is worn out.

    callers ──▶ FairQueue ──▶ at most `workers` running ──▶ done
                    ▲                   │ ran longer than `first_budget_s` while others wait and a spare is ready
                    └── stopped ◀───────┘ (SIGSTOP; its process waits with it, at most `spares` of them)

There are `workers + spares` processes. A check runs in one that has its header loaded. What is not running is a spare:
ready at once when a process breaks, is recycled or turns to another header, all of which happen in the background.
Whatever happens inside a lease, the process comes back clean or is replaced. Waiting for a lease has a deadline, and
passing it is an infrastructure failure, never a judgement; a check that was set aside has no such deadline.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
from anyio import current_time

from fd_async.errors import VerifierError
from fd_async.verifier.backend import CheckTimeout, HeaderRefused
from fd_async.verifier.repl.check import Check
from fd_async.verifier.repl.fresh import CLOSED, FreshProcesses
from fd_async.verifier.repl.process import ReplDesync, ReplProcess, ReplSpec, ReplTimeout
from fd_async.verifier.repl.schedule import Costs, FairQueue, choose_turn
from fd_async.verifier.repl.upkeep import PoolSettings, keep_fit
from fd_async.verifier.repl.workers import Slot, Workers

_MIN_TICK_S, _MAX_TICK_S = 0.005, 0.25
_WAITS_KEPT = 1024


class ReplPool:
    """Processes and their queue. Made by `open_pool`."""

    def __init__(self, spec: ReplSpec, settings: PoolSettings) -> None:
        self._settings = settings
        self.workers = Workers(
            spec,
            self,
            num_slots=settings.workers + settings.spares,
            starts_at_once=settings.starts_at_once,
            header=settings.default_header,
        )
        self._costs = Costs()
        self._queue: FairQueue[Check] = FairQueue(self._predict)
        self._idle: dict[str, dict[Slot, None]] = {}
        self._running: dict[Slot, Check] = {}
        self._parked: dict[Slot, Check] = {}
        self.is_closed = False
        self._distrusted_at = float("-inf")
        self._counts: Counter[str] = Counter()
        self._fresh = FreshProcesses(
            self.workers, self._counts, at_once=settings.fresh_at_once, queue_timeout_s=settings.queue_timeout_s
        )
        self._waits: deque[float] = deque(maxlen=_WAITS_KEPT)

    def statistics(self) -> dict[str, float]:
        """Counters since the start; gauges `waiting`, `busy`, `idle`, `parked` (set aside now), `queue_p95_s`."""
        waits = sorted(self._waits)
        return {
            "restarts": float(self.workers.counts["restarts"]),
            "desyncs": float(self._counts["desyncs"]),
            "failed_starts": float(self.workers.counts["failed_starts"]),
            "recycled": float(self._counts["recycled"]),
            "set_aside": float(self._counts["set_aside"]),
            "out_of_memory": float(self._counts["out_of_memory"]),
            "waiting": float(len(self._queue) - len(self._parked)),
            "busy": float(len(self._running)),
            "idle": float(sum(map(len, self._idle.values()))),
            "parked": float(len(self._parked)),
            "queue_p95_s": waits[int(0.95 * (len(waits) - 1))] if waits else 0.0,
        }

    def pids(self) -> list[int]:
        """Process ids of the workers that are up."""
        return [slot.repl.pid for slot in self.slots if slot.repl is not None]

    @property
    def slots(self) -> list[Slot]:
        return self.workers.slots

    @asynccontextmanager
    async def lease(self, header: str, *, caller: str = "", cost_key: str = "") -> AsyncIterator[ReplProcess]:
        """Lend a process that has this header loaded.

        Args:
            header: What it must have loaded.
            caller: For whom; the queue is fair between callers.
            cost_key: What is checked; earlier leases with this key predict how long this one takes.

        Raises:
            VerifierError: No turn came inside `verifier.queue_timeout_s`, or no process can be started.
        """
        check = await self._acquire(header, caller, cost_key)
        slot = check.slot
        assert slot is not None
        assert slot.repl is not None
        repl, is_measured = slot.repl, False
        try:
            yield repl
            is_measured = True
        except ReplDesync:
            self._counts["desyncs"] += 1
            raise
        except (ReplTimeout, CheckTimeout):
            is_measured = True
            raise
        finally:
            if is_measured:
                self._costs.observe(cost_key, repl.running_s - check.began_s)
            self._release(check, slot, repl)

    def fresh(self, header: str) -> AbstractAsyncContextManager[ReplProcess]:
        """Lend a process of its own that nobody used before; for audits, and for inputs that broke a worker."""
        return self._fresh.lend(header)

    def close(self) -> None:
        """Give nobody a turn any more; whoever waits or runs in a fresh process learns it now."""
        self.is_closed = True
        for header in self._waiting():
            self.give_up(header, VerifierError(CLOSED))
        self._fresh.close()

    async def _acquire(self, header: str, caller: str, cost_key: str) -> Check:
        if self.is_closed:
            raise VerifierError(CLOSED)
        self.workers.demand_accepted(header)
        check = Check(current_time(), caller, cost_key, budget_s=self._settings.first_budget_s)
        slot = self._take_idle(header) if len(self._running) < self._settings.workers else None
        if slot is not None:
            self._begin(check, slot)
            return check
        check.ticket = self._queue.add(check, header, caller, self._costs.predict(cost_key))
        self._make_room(header)
        try:
            with anyio.move_on_after(self._settings.queue_timeout_s):
                await check.event.wait()
        except BaseException:
            self._queue.leave(check.ticket)
            if check.slot is not None and check.slot.repl is not None:
                self._release(check, check.slot, check.slot.repl)
            raise
        self._queue.leave(check.ticket)
        if check.error is not None:
            kind = HeaderRefused if isinstance(check.error, HeaderRefused) else VerifierError
            raise kind(str(check.error)) from check.error
        if check.slot is None:
            raise VerifierError(
                f"no verifier worker became free within verifier.queue_timeout_s = {self._settings.queue_timeout_s:g}; "
                "raise it, or verifier.workers"
            )
        return check

    def _predict(self, check: Check) -> float:
        """Seconds that a waiting check will take; of one that was set aside nothing new is known."""
        return self._costs.predict(check.cost_key) if check.slot is None else 0.0

    def _begin(self, check: Check, slot: Slot) -> None:
        assert slot.repl is not None
        self._running[slot] = check
        self._waits.append(current_time() - check.since)
        check.began_s = check.resumed_s = slot.repl.running_s
        check.slot = slot
        check.event.set()

    def _release(self, check: Check, slot: Slot, repl: ReplProcess) -> None:
        """Take back a process, whether its check was running or set aside."""
        if self._parked.pop(slot, None) is not None:
            assert check.ticket is not None
            self._queue.leave(check.ticket)
            if not repl.broken:
                repl.resume()
        else:
            self._running.pop(slot, None)
            if check.ticket is not None:
                self._queue.settle(check.ticket, repl.running_s - check.resumed_s)
        if repl.condemned:
            self._counts["out_of_memory"] += 1
        repl.uses += 1
        slot.served += 1
        self._offer(slot)

    def _dispatch(self) -> None:
        """Let checks begin or go on as long as there are rights to run and processes that are ready."""
        while self._queue and not self.is_closed and len(self._running) < self._settings.workers:
            ready: list[Hashable] = [*self._idle, *self._parked]
            ticket = self._queue.choose(ready)
            if ticket is None:
                return
            check = ticket.item
            if isinstance(ticket.place, Slot):
                self._go_on(check, ticket.place)
            else:
                slot = self._take_idle(str(ticket.place))
                if slot is None:
                    continue  # they had died; the next round looks at what is left
                self._queue.grant(ticket)
                self._begin(check, slot)

    def _go_on(self, check: Check, slot: Slot, *, is_turn: bool = False) -> None:
        assert check.ticket is not None
        assert slot.repl is not None
        self._queue.grant(check.ticket, was_chosen=not is_turn)
        del self._parked[slot]
        self._running[slot] = check
        if not is_turn:  # a turn is no new budget
            check.budget_s *= 2
        check.resumed_s = slot.repl.running_s
        slot.repl.resume()

    def _set_aside(self) -> None:
        """Stop checks that had their budget while others could begin in a spare process."""
        while self._settings.first_budget_s and len(self._parked) < self._settings.spares:
            if not any(self._queue.waiting(header) for header in self._idle):
                break
            over, slot = 0.0, None
            for other, check in self._running.items():
                if _is_answering(other) and check.over_s > over:
                    over, slot = check.over_s, other
            if slot is None:
                break
            self._park(slot)
            self._dispatch()
        self._take_turns()

    def _take_turns(self) -> None:
        """Let the stopped check that ran least go on in place of the running one that ran most.

        So long checks advance together, and those that use their whole time end together instead of one after another.
        """
        while self._parked and len(self._running) >= self._settings.workers:
            stopped, check = min(self._parked.items(), key=lambda item: item[1].ran_s)
            over = [
                slot
                for slot, other in self._running.items()
                if _is_answering(slot)
                and (other.over_s >= 0.0 or len(self._queue) == len(self._parked))
                and other.ran_s >= check.ran_s + self._settings.first_budget_s
            ]
            if not over:
                return
            self._park(max(over, key=lambda slot: self._running[slot].ran_s))
            self._go_on(check, stopped, is_turn=True)

    def _park(self, slot: Slot) -> None:
        check, repl = self._running.pop(slot), slot.repl
        assert repl is not None
        repl.pause()
        ran = check.ran_s
        if check.ticket is not None:
            self._queue.settle(check.ticket, repl.running_s - check.resumed_s)
        remainder = min(max(ran, self._costs.predict(check.cost_key) - ran), repl.left_s)
        check.ticket = self._queue.add(check, slot, check.caller, remainder, returns=True)
        self._parked[slot] = check
        self._counts["set_aside"] += 1

    def _take_idle(self, header: str) -> Slot | None:
        slots = self._idle.get(header)
        while slots:
            slot, _ = slots.popitem()
            if not slots:
                del self._idle[header]
            if slot.repl is not None and slot.repl.is_usable():
                return slot
            self.workers.retire(slot)
        return None

    def _remove_idle(self, slot: Slot) -> None:
        slots = self._idle[slot.header]
        del slots[slot]
        if not slots:
            del self._idle[slot.header]

    def _offer(self, slot: Slot) -> None:
        """Give a process that became free to whoever is next, or retire it."""
        repl = slot.repl
        if repl is not None and not slot.retire.is_set():
            turn = self._turn_of(slot)
            if not repl.is_usable() or repl.started_at <= self._distrusted_at:
                self.workers.retire(slot)
            elif repl.is_worn or repl.uses >= self._settings.max_uses:
                self._counts["recycled"] += 1
                self.workers.retire(slot)
            elif turn is not None:
                self.workers.retire(slot, turn)
            else:
                self._idle.setdefault(slot.header, {})[slot] = None
        self._dispatch()

    def distrust(self) -> None:
        """Replace every process, the busy ones after their check: one of them accepted what is not a proof."""
        self._distrusted_at = current_time()
        for slot in [slot for slots in self._idle.values() for slot in slots]:
            self._remove_idle(slot)
            self.workers.retire(slot)

    def _waiting(self) -> dict[str, int]:
        return {place: count for place, count in self._queue.places().items() if isinstance(place, str)}

    def _turn_of(self, slot: Slot) -> str | None:
        waiting = self._waiting()
        if not waiting or (len(waiting) == 1 and slot.header in waiting):
            return None
        has_right = len(self._running) < self._settings.workers
        return choose_turn(slot.header, slot.served, waiting, self._processes(), has_right=has_right)

    def _processes(self) -> Counter[str]:
        """Count processes by header, but for those that hold a stopped check: they can serve nobody else."""
        return self.workers.of_header() - Counter(slot.header for slot in self._parked)

    def _make_room(self, header: str) -> None:
        """Turn an idle process of another header to this one when its own processes cannot keep up."""
        for other in self._idle:
            if other == header:
                continue
            slot = next(iter(self._idle[other]))
            turn = self._turn_of(slot)
            if turn is not None:
                self._remove_idle(slot)
                self.workers.retire(slot, turn)
                return

    def started(self, slot: Slot) -> None:
        """Use a process that has loaded its header."""
        self._offer(slot)

    def header_to_load(self, slot: Slot) -> str:
        """Choose the header of a process that starts: one that waits and has none, else its own."""
        waiting = self._waiting()
        others = self._processes()
        others[slot.header] -= 1
        if waiting.get(slot.header) and not others[slot.header]:
            return slot.header
        return next((header for header in waiting if not others[header]), slot.header)

    def give_up(self, header: str, error: VerifierError) -> None:
        """Tell everybody who waits for this header that it cannot be had."""
        for check in self._queue.clear(header):
            check.error = error
            check.event.set()

    async def watch_budgets(self) -> None:
        """Look for checks to set aside, and for idle processes that died."""
        budget_s = self._settings.first_budget_s
        tick_s = max(_MIN_TICK_S, min(_MAX_TICK_S, budget_s / 8)) if budget_s else _MAX_TICK_S
        while True:
            await anyio.sleep(tick_s)
            self._set_aside()
            for slot in self.idle_slots():
                if slot.repl is None or not slot.repl.is_usable():
                    self.replace_idle(slot, is_worn=False)

    def processes(self) -> list[ReplProcess]:
        """All processes that are up, the fresh ones included."""
        return [*(slot.repl for slot in self.slots if slot.repl is not None), *self._fresh.processes]

    def idle_slots(self) -> list[Slot]:
        """The places whose processes wait for a check."""
        return [slot for slots in self._idle.values() for slot in slots]

    def replace_idle(self, slot: Slot, *, is_worn: bool) -> None:
        """Replace an idle process in the background."""
        self._counts["recycled"] += is_worn
        self._remove_idle(slot)
        self.workers.retire(slot)


def _is_answering(slot: Slot) -> bool:
    return slot.repl is not None and slot.repl.is_answering


@asynccontextmanager
async def open_pool(spec: ReplSpec, settings: PoolSettings) -> AsyncIterator[ReplPool]:
    """Start the processes with the default header and wait for the first one; kill them all at the end.

    Raises:
        PreflightError: The first process does not start, or does not accept the header.
    """
    pool = ReplPool(spec, settings)
    try:
        async with anyio.create_task_group() as tasks:
            for slot in pool.slots:
                tasks.start_soon(pool.workers.run_slot, slot, name=f"verifier-worker-{slot.number}")
            tasks.start_soon(pool.watch_budgets, name="verifier-budgets")
            tasks.start_soon(keep_fit, pool, settings, name="verifier-upkeep")
            try:
                await pool.workers.first_outcome()
                yield pool
            finally:
                pool.close()
                tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise
