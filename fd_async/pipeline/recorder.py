"""Keeps attempts under way in the ledger, so that whatever ends the process costs as few tokens as possible.

    end of a turn               ─┐
    every rollout.record_every_s ├─▶ newest state of each attempt ─▶ one write for all that wait
    cancelled, engine lost      ─┘

A kill costs what was sampled since the last of these; a stop, a restart and a lost engine cost nothing.
"""

from __future__ import annotations

import anyio

from fd_async.data.ledger import Ledger
from fd_async.rollouts import RolloutRunner
from fd_async.types import PartialRollout

_AT_ONCE = 32
_SPACING_S = 0.05
"""Between two writes: what turns end meanwhile share the next."""


class Recorder:
    """Collects states of attempts and writes them; `keep` returns at once."""

    def __init__(self, ledger: Ledger, runner: RolloutRunner, every_s: float) -> None:
        self._ledger = ledger
        self._runner = runner
        self._every_s = every_s or float("inf")
        self._latest: dict[str, PartialRollout] = {}
        self._waits = anyio.Event()

    def keep(self, partial: PartialRollout) -> None:
        """Have the state of an attempt written soon, in place of an older one."""
        if partial.completion_ids:
            self._latest[partial.id] = partial
            self._waits.set()

    async def run(self) -> None:
        """Write what is kept, until cancelled."""
        due = anyio.current_time() + self._every_s
        while True:
            with anyio.move_on_at(due):
                await self._waits.wait()
            if anyio.current_time() >= due:
                await self._record_sampling()
                due = anyio.current_time() + self._every_s
            await self.flush()
            await anyio.sleep(_SPACING_S)

    async def _record_sampling(self) -> None:
        """Record the open turns a few at a time: thousands at once would hold up the event loop."""
        waiting = self._runner.sampling()
        for start in range(0, len(waiting), _AT_ONCE):
            self._runner.keep_sampled(waiting[start : start + _AT_ONCE])
            await self.flush()

    async def flush(self) -> None:
        """Write all that is kept; it is on the disk afterwards, also where the caller is being cancelled."""
        latest, self._latest, self._waits = self._latest, {}, anyio.Event()
        with anyio.CancelScope(shield=True):
            await self._ledger.put_partials(list(latest.values()))
