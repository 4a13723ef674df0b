"""How checks arrive, and what came of them; the same code drives every system of the verifier's benchmark.

Needs nothing but anyio, because it also runs under the interpreter of a Kimina Lean Server.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, NamedTuple

import anyio
import anyio.lowlevel
from anyio import current_time

Arrival = Literal["backlog", "rollouts"]
BURST = 16
"""Checks submitted within one turn of the event loop."""
CheckOne = Callable[[int], Awaitable[str]]
"""Judges the check of that number: `accepted`, `rejected`, `timeout`, or what went wrong."""


class Outcome(NamedTuple):
    """One check: its number, what came of it, and when, in seconds since the beginning."""

    number: int
    verdict: str
    submitted_s: float
    finished_s: float


async def drive(names: Sequence[str], check_one: CheckOne, arrival: Arrival, think_s: float) -> list[Outcome]:
    """Submit every check and wait for all.

    Args:
        names: The statement of each check.
        check_one: Called once for every check.
        arrival: `backlog` submits all at once. `rollouts` has one caller for each statement, which thinks and then
            submits the next of its checks, until it has no more.
        think_s: Mean of the exponentially distributed thinking, the same draws for every system.
    """
    outcomes: list[Outcome] = []
    began = current_time()

    async def submit(number: int) -> None:
        submitted = current_time()
        verdict = await check_one(number)
        outcomes.append(Outcome(number, verdict, submitted - began, current_time() - began))

    async def trajectory(name: str, numbers: list[int]) -> None:
        chance = random.Random(name)
        for number in numbers:
            await anyio.sleep(chance.expovariate(1 / think_s))
            await submit(number)

    async with anyio.create_task_group() as tasks:
        if arrival == "backlog":
            for number in range(len(names)):
                tasks.start_soon(submit, number)
                if number % BURST == BURST - 1:
                    await anyio.lowlevel.checkpoint()
        else:
            callers: dict[str, list[int]] = {}
            for number, name in enumerate(names):
                callers.setdefault(name, []).append(number)
            for name, numbers in callers.items():
                tasks.start_soon(trajectory, name, numbers)
    return outcomes


def summary(outcomes: Sequence[Outcome], work_s: Sequence[float]) -> dict[str, Any]:
    """Return times and waits, seconds; a check's wait is all but its own seconds `work_s`, whatever it was spent on."""
    waits = sorted(max(0.0, o.finished_s - o.submitted_s - work_s[o.number]) for o in outcomes)
    finished = sorted(o.finished_s for o in outcomes)
    wall = finished[-1]
    return {
        "wall_s": wall,
        "checks_per_s": len(outcomes) / wall,
        "half_done_s": finished[len(finished) // 2],
        "nine_tenths_done_s": finished[len(finished) * 9 // 10],
        "queue_wait_p50_s": waits[len(waits) // 2],
        "queue_wait_p95_s": waits[len(waits) * 95 // 100],
    }
