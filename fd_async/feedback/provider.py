"""The door of this room: one protocol, one way to open whatever `feedback.type` names.

An SDK is imported only when its provider is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, Protocol

import anyio
import msgspec
from structlog.typing import FilteringBoundLogger

from fd_async.config.schema import FeedbackTable
from fd_async.errors import ConfigError
from fd_async.feedback.fallback import WithFallback
from fd_async.feedback.hashing import prompt_hash
from fd_async.feedback.local import Local
from fd_async.feedback.meter import Statistics
from fd_async.feedback.outage import OnEvent
from fd_async.feedback.remote import Backoff, GenerateText, TextAnswer
from fd_async.feedback.tutor import Tutor
from fd_async.types import Feedback, Rollout

__all__ = [
    "Backoff", "GenerateText", "OnEvent", "Provider", "Statistics", "TextAnswer", "open_provider", "prompt_hash"
]  # fmt: skip

_FREE: Final = {
    "max_usd": 0.0,
    "usd_per_million_input_tokens": 0.0,
    "usd_per_million_output_tokens": 0.0,
    "usd_per_million_cache_read_tokens": 0.0,
    "usd_per_million_cache_write_tokens": 0.0,
}


class Provider(Protocol):
    """A source of feedback; safe to use from many coroutines at once."""

    def key(self, rollout: Rollout) -> str:
        """Return what `Feedback.prompt_hash` will be, so that the ledger can be asked before money is spent."""
        ...

    async def feedback(self, rollout: Rollout) -> Feedback:
        """Return feedback on one attempt, or raise a `FeedbackError`; its `usd` says what was paid all the same."""
        ...

    def statistics(self) -> Statistics:
        """Return the counters as they stand."""
        ...


@asynccontextmanager
async def open_provider(
    config: FeedbackTable,
    *,
    fallback: FeedbackTable | None = None,
    spent_usd: float = 0.0,
    fallback_spent_usd: float = 0.0,
    generate_text: GenerateText | None = None,
    backoff: Backoff | None = None,
    on_event: OnEvent | None = None,
    log: FilteringBoundLogger | None = None,
) -> AsyncIterator[Provider]:
    """Open the provider that the `[feedback]` table names, for the whole run.

    Args:
        config: the table.
        fallback: the `[fallback]` table; read where `feedback.outage = "fallback"`.
        spent_usd: what earlier parts of a resumed run paid; counts against `feedback.max_usd`.
        fallback_spent_usd: the same for `fallback.max_usd`.
        generate_text: asks the frozen copy of the starting model (`self` only).
        backoff: rests between tries; the default suits real servers.
        on_event: told when the provider goes down and comes back, see `outage.OnEvent`.
        log: one line per answer, retry and refusal.

    Raises:
        ConfigError: a table lacks what its type needs.
        FeedbackAccountError: no key is to be found.
    """
    async with AsyncExitStack() as stack:
        if fallback is None or config.outage != "fallback":
            calm = msgspec.structs.replace(config, outage="pause") if config.outage == "fallback" else config
            yield await _open(stack, calm, "feedback", spent_usd, generate_text, backoff, on_event, log)
            return
        main = await _open(stack, config, "feedback", spent_usd, generate_text, backoff, on_event, log)
        if isinstance(main, Local):  # is never down
            yield main
            return
        second = msgspec.structs.replace(fallback, outage="end")
        other = await _open(stack, second, "fallback", fallback_spent_usd, generate_text, backoff, None, log)
        yield WithFallback(main, other, on_event=on_event, log=log)


async def _open(
    stack: AsyncExitStack,
    config: FeedbackTable,
    table: str,
    spent_usd: float,
    generate_text: GenerateText | None,
    backoff: Backoff | None,
    on_event: OnEvent | None,
    log: FilteringBoundLogger | None,
) -> Tutor | Local:
    """Open one table's provider; the stack closes it."""
    problems = _problems(config, table)
    if problems:
        raise ConfigError("\n".join(problems))
    if config.type in ("ground_truth", "lean_output", "constant"):
        return Local(config)
    if config.type == "self":
        if generate_text is None:
            raise ValueError(f"{table}.type = 'self' needs generate_text, the frozen copy served by the engine")
        # Prices in the table belong to a remote model that an overlay replaced: the frozen copy sends no bill.
        config = msgspec.structs.replace(config, **_FREE)
    else:
        generate_text = await stack.enter_async_context(_open_sdk(config))
    return Tutor(generate_text, config, spent_usd=spent_usd, backoff=backoff, on_event=on_event, log=log)


@asynccontextmanager
async def _open_sdk(config: FeedbackTable) -> AsyncIterator[GenerateText]:
    """Import one SDK, in a thread because that takes about a second, and open its client."""
    module = await anyio.to_thread.run_sync(importlib.import_module, f"fd_async.feedback.{config.type}")
    async with getattr(module, f"open_{config.type}")(config) as generate_text:
        yield generate_text


def _problems(config: FeedbackTable, table: str) -> list[str]:
    if config.type not in ("anthropic", "openai"):
        return []
    found: list[str] = []
    if not config.model:
        found.append(f"{table}.model is empty: name the model that {table}.type = {config.type!r} asks.")
    if config.max_usd and not (config.usd_per_million_input_tokens and config.usd_per_million_output_tokens):
        found.append(
            f"{table}.max_usd = {config.max_usd:g} cannot be watched without prices: set"
            f" {table}.usd_per_million_input_tokens and {table}.usd_per_million_output_tokens."
        )
    return found
