"""How fast an evaluation goes on, told now and then."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from fd_async.telemetry.progress import duration
from fd_async.types import Rollout

TELL_EVERY_S = 30.0


class Pace:
    """Counts the attempts of one suite that this process makes."""

    def __init__(self, suite: str, num_missing: int, say: Callable[[str], None]) -> None:
        self._suite, self._num_missing, self._say = suite, num_missing, say
        self._made = self._solved = self._failed = self._tokens = 0
        self._began = anyio.current_time()

    def count(self, rollout: Rollout) -> None:
        """Take an attempt that has ended."""
        self._made += 1
        self._solved += rollout.verdict.is_proved
        self._failed += rollout.end_reason == "failed"
        self._tokens += rollout.num_sampled_tokens

    @asynccontextmanager
    async def telling(self) -> AsyncIterator[Pace]:
        """Say how far it is every half minute while the block runs."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tell)
            yield self
            tasks.cancel_scope.cancel()

    async def _tell(self) -> None:
        while True:
            await anyio.sleep(TELL_EVERY_S)
            self._say(self.line)

    @property
    def line(self) -> str:
        """Say it in one line."""
        seconds = anyio.current_time() - self._began
        judged = self._made - self._failed
        solved = f"{self._solved / judged:.1%} solved" if judged else "none judged"
        left_s = (self._num_missing - self._made) * seconds / self._made if self._made else None
        eta = f", about {duration(left_s)} left" if left_s is not None else ""
        failed = f", {self._failed} failed" if self._failed else ""
        return (
            f"{self._suite}: {self._made:,} of {self._num_missing:,} attempts, {solved}{failed}, "
            f"{self._tokens / max(seconds, 1e-9):,.0f} tokens/s{eta}"
        )
