"""The door of this room: one protocol, one way to open whatever `feedback.type` names.

An SDK is imported only when its provider is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import anyio
import msgspec
from structlog.typing import FilteringBoundLogger

from fd_async.config.schema import FeedbackTable
from fd_async.errors import ConfigError
from fd_async.feedback.hashing import prompt_hash
from fd_async.feedback.local import Local
from fd_async.feedback.meter import Statistics
from fd_async.feedback.remote import Backoff, GenerateText, TextAnswer
from fd_async.feedback.tutor import Tutor
from fd_async.types import Feedback, Rollout

__all__ = ["Backoff", "GenerateText", "Provider", "Statistics", "TextAnswer", "open_provider", "prompt_hash"]


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
    spent_usd: float = 0.0,
    generate_text: GenerateText | None = None,
    backoff: Backoff | None = None,
    log: FilteringBoundLogger | None = None,
) -> AsyncIterator[Provider]:
    """Open the provider that the `[feedback]` table names, for the whole run.

    Args:
        config: the table.
        spent_usd: what earlier parts of a resumed run paid; counts against `feedback.max_usd`.
        generate_text: asks the frozen copy of the starting model (`self` only).
        backoff: rests between tries; the default suits real servers.
        log: one line per answer, retry and refusal.

    Raises:
        ConfigError: the table lacks what its type needs.
        FeedbackAccountError: no key is to be found.
    """
    problems = _problems(config)
    if problems:
        raise ConfigError("\n".join(problems))
    if config.type in ("ground_truth", "lean_output", "constant"):
        yield Local(config)
    elif config.type == "self":
        if generate_text is None:
            raise ValueError("feedback.type = 'self' needs generate_text, the frozen copy served by the engine")
        # Prices in the table belong to a remote model that an overlay replaced: the frozen copy sends no bill.
        free = {"max_usd": 0.0, "usd_per_million_input_tokens": 0.0, "usd_per_million_output_tokens": 0.0}
        table = msgspec.structs.replace(config, **free)
        yield Tutor(generate_text, table, spent_usd=spent_usd, backoff=backoff, log=log)
    else:
        async with _open_sdk(config) as sdk:
            yield Tutor(sdk, config, spent_usd=spent_usd, backoff=backoff, log=log)


@asynccontextmanager
async def _open_sdk(config: FeedbackTable) -> AsyncIterator[GenerateText]:
    """Import one SDK, in a thread because that takes about a second, and open its client."""
    module = await anyio.to_thread.run_sync(importlib.import_module, f"fd_async.feedback.{config.type}")
    async with getattr(module, f"open_{config.type}")(config) as generate_text:
        yield generate_text


def _problems(config: FeedbackTable) -> list[str]:
    if config.type not in ("anthropic", "openai"):
        return []
    found: list[str] = []
    if not config.model:
        found.append(f"feedback.model is empty: name the model that feedback.type = {config.type!r} asks.")
    if config.max_usd and not (config.usd_per_million_input_tokens and config.usd_per_million_output_tokens):
        found.append(
            f"feedback.max_usd = {config.max_usd:g} cannot be watched without prices: set"
            " feedback.usd_per_million_input_tokens and feedback.usd_per_million_output_tokens."
        )
    return found
