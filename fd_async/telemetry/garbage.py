"""Python's collector of reference cycles, kept out of the event loop's way.

A full collection walks every object there is: with 10,000 attempts under way it stops the loop for a second, and by
default one comes every few seconds. While a run goes on only young objects are walked, in lots that take a few
milliseconds, and everything once in ten minutes; what was there before the run began is never walked.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

YOUNG = 10_000
NEVER = 1 << 30
FULL_EVERY_S = 600.0


@contextmanager
def calm_collector() -> Iterator[None]:
    """Collect in this way inside the block."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, NEVER, NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()  # a process that runs several experiments keeps nothing of the one before


async def collect_now_and_then() -> None:
    """Walk everything once in a while, until cancelled."""
    while True:
        await anyio.sleep(FULL_EVERY_S)
        gc.collect()
