"""Looks after the processes: memory during a check, age and memory while idle. One task, one thread call a second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import anyio
from anyio import CapacityLimiter, current_time, to_thread

from fd_async.verifier.repl.process import ReplProcess
from fd_async.verifier.repl.tree import own_bytes
from fd_async.verifier.repl.workers import Slot, Workers

SAMPLE_S = 1.0
_GIB = 1 << 30
_AGE_SPREAD = 0.2
"""Processes that started together do not all grow old together."""


@dataclass(frozen=True)
class PoolSettings:
    """The `[verifier]` keys of the same names; 0 turns a limit off."""

    workers: int
    max_uses: int
    queue_timeout_s: float
    default_header: str
    spares: int = 0
    first_budget_s: float = 0.0
    starts_at_once: int = 4
    max_age_s: float = 0.0
    recycle_gib: float = 0.0
    resident_limit_gib: float = 0.0
    fresh_at_once: int = 2


class Pool(Protocol):
    """What is looked after."""

    workers: Workers

    def processes(self) -> list[ReplProcess]: ...

    def idle_slots(self) -> list[Slot]: ...

    def replace_idle(self, slot: Slot, *, is_worn: bool) -> None: ...


async def keep_fit(pool: Pool, settings: PoolSettings) -> None:
    """Kill processes that hold too much memory in a check, and replace idle ones that are worn out, for ever."""
    limiter = CapacityLimiter(1)
    limit = settings.resident_limit_gib * _GIB
    memory: dict[int, int] = {}
    while True:
        await anyio.sleep(SAMPLE_S)
        processes = pool.processes()
        if limit or settings.recycle_gib:
            memory = await to_thread.run_sync(_measure, [repl.pid for repl in processes], limiter=limiter)
        for repl in processes:
            used = memory.get(repl.pid, 0)
            if limit and used > limit and repl.is_answering:
                repl.condemn(
                    f"it used {used / _GIB:.1f} GiB of its own; verifier.resident_limit_gib = "
                    f"{settings.resident_limit_gib:g}"
                )
        if not pool.workers.num_loading:  # one after the other, so that spares stay ready
            _replace_one(pool, settings, memory)


def _replace_one(pool: Pool, settings: PoolSettings, memory: dict[int, int]) -> None:
    idle = pool.idle_slots()
    for slot in pool.workers.slots:
        if slot.repl is None or slot.repl.is_worn:
            continue
        max_age_s = settings.max_age_s * (1 - _AGE_SPREAD * slot.number / len(pool.workers.slots))
        is_old = bool(max_age_s) and current_time() - slot.repl.started_at > max_age_s
        is_large = bool(settings.recycle_gib) and memory.get(slot.repl.pid, 0) > settings.recycle_gib * _GIB
        if is_old or is_large:
            if slot in idle:
                pool.replace_idle(slot, is_worn=True)
            else:  # under load a process is never seen idle
                slot.repl.is_worn = True
            return


def _measure(pids: list[int]) -> dict[int, int]:
    return {pid: own_bytes(pid) for pid in pids}
