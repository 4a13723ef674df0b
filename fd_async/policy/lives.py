"""What a supervised engine is made of: engines that can be lost, and requests that outlive them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import anyio
import msgspec

from fd_async.errors import EngineDied, PushFailed
from fd_async.policy.engine import Engine
from fd_async.policy.outputs import joined
from fd_async.types import Completion


class MortalEngine(Engine, Protocol):
    """An engine that says when it is lost."""

    @property
    def pids(self) -> list[int]:
        """Its processes."""
        ...

    async def watch(self) -> str:
        """Wait until it is lost and return why."""
        ...

    def kill(self, reason: str) -> None:
        """End its processes at once; calls under way raise `EngineDied`."""
        ...


OpenEngine = Callable[[], AbstractAsyncContextManager[MortalEngine]]


class Life:
    """One engine, from its opening until it is lost."""

    def __init__(self, engine: MortalEngine) -> None:
        self.engine = engine
        self.whole = anyio.Event()
        """It has its weights: requests may run."""
        self.lost, self.cause = anyio.Event(), ""
        self.seen = anyio.Event()
        """The watch has said why it is lost."""
        self.pushing = anyio.Lock()

    def lose(self, error: EngineDied | PushFailed) -> None:
        """Note what a call met; a push that failed is the cause, and the watch has nothing to add."""
        if isinstance(error, PushFailed):
            self.seen.set()
        self.cause = self.cause or str(error)
        self.lost.set()

    async def watch(self) -> None:
        """Wait until the engine is lost; what is seen of its processes says more than what calls meet."""
        self.cause = await self.engine.watch()
        self.seen.set()
        self.lost.set()


class OpenRequest:
    """A `generate` call: what it asked for and what engines that are gone sampled for it."""

    def __init__(self, max_tokens: int, stop_token_ids: list[int]) -> None:
        self._max_tokens, self._stop_token_ids = max_tokens, stop_token_ids
        self.sampled: Completion | None = None

    def keep(self, part: Completion) -> None:
        self.sampled = joined(self.sampled, part)

    @property
    def token_ids(self) -> list[int]:
        return self.sampled.token_ids if self.sampled else []

    def finished(self) -> Completion | None:
        """Return the whole completion if nothing is left to sample: the engine died after the last token."""
        if self.sampled is None:
            return None
        reason: Literal["stop", "length"]
        if self.sampled.token_ids[-1] in self._stop_token_ids:
            reason = "stop"
        elif len(self.sampled.token_ids) >= self._max_tokens:
            reason = "length"
        else:
            return None
        return msgspec.structs.replace(self.sampled, finish_reason=reason)
