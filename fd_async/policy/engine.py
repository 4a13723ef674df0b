"""What the rest of the project may ask of a policy engine."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from fd_async.types import Completion, PushReport, StagedWeights

Send = Callable[[StagedWeights, str, int], Coroutine[Any, Any, None]]
"""Makes the learner send staged weights, through a class (module:class), to a number of workers."""


class Engine(Protocol):
    """A model that serves; safe to call from many coroutines at once."""

    @property
    def weight_version(self) -> int:
        """Version of the last push that succeeded; 0 for the weights that the engine started with."""
        ...

    async def generate(
        self,
        prompt_ids: list[int],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        request_id: str,
        seed: int | None = None,
        salvage: Callable[[Completion], None] | None = None,
    ) -> Completion:
        """Sample one completion.

        It ends after a stop token, which stays in `token_ids`, or after `max_tokens`. Cancelling the call aborts the
        request in the engine.

        Args:
            prompt_ids: ids of everything before.
            max_tokens: most new tokens.
            temperature: of the sampling.
            top_p: nucleus; 1 keeps log-probs exact.
            request_id: unique among the requests under way.
            seed: of the sampling.
            salvage: called with what was sampled (`finish_reason` "abort") when the call is cancelled or fails, so that
                whoever continues the attempt need not sample it again; not called if nothing was.

        Raises:
            EngineDied: the engine's process is gone.
            PushFailed: a push left the weights in doubt while this request ran.
            EngineError: the request does not fit the engine, or `policy.generate_timeout_s` passed.
        """
        ...

    def partial(self, request_id: str) -> Completion | None:
        """Return what a request under way has sampled so far; None where there is nothing or it is not known."""
        ...

    async def score(self, token_ids: list[int]) -> list[float]:
        """Return the log-probs of `token_ids[1:]` given their prefixes, natural log, temperature 1."""
        ...

    async def push(self, staged: StagedWeights, send: Send | None = None) -> PushReport:
        """Replace the weights by a staged set; `weight_version` changes only when the probe agrees.

        Args:
            staged: the manifest of the weights, and where they are.
            send: called while the engine receives, if the weights are in no file (`policy.push = "nccl"`).

        Raises:
            PushRefused: nothing changed, the old weights still serve.
            PushFailed: the engine's weights are in doubt; close it and open another.
        """
        ...

    def statistics(self) -> dict[str, float]:
        """Return `running`, `waiting` (requests), `kv_usage` (0 to 1) and `tokens_generated` (since the start)."""
        ...
