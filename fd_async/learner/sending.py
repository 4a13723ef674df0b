"""Pushes that travel without a file (`policy.push = "nccl"`): from rank 0 to the engine's workers.

    stage ▸ announce: names, types, shapes, the probe; nothing moves
    send  ▸ the tensors leave, in the announced order, while the engine receives them

The class that moves tensors belongs to the engine's room, which this room may not import: the request brings its
dotted name. `send` blocks; the controller holds the deadline and ends the process when it passes. All ranks take part
in gathering whole tensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from fd_async.errors import LearnerError
from fd_async.learner.export import Gathering, whole_weights
from fd_async.learner.link import Send, Stage
from fd_async.learner.staging import Row, describe, require_finite, score
from fd_async.types import StagedWeights


class Sender(Protocol):
    """What the dotted name must lead to; made as `Sender(address, num_workers)`."""

    def send(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Meet the workers at the first call, then move all tensors; returns when they have arrived."""
        ...


class Sending:
    """Remembers which weights were announced, and the open sender."""

    def __init__(self) -> None:
        self._announced: int | None = None
        self._sender: Sender | None = None

    def announce(
        self, engine: Gathering, request: Stage, *, rank: int, bucket_bytes: int, chunk_tokens: int
    ) -> StagedWeights | None:
        """Describe the current weights and score the probe with them; offsets and hashes stay empty. Collective.

        Raises:
            LearnerError: a weight is not finite.
        """
        logprobs = score(engine.policy, request.probe_ids, chunk_tokens)
        rows: list[Row] = []
        num_bytes = 0
        problems: list[LearnerError] = []
        for name, tensor in whole_weights(engine, bucket_bytes):
            rows.append(Row(name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), 0))
            num_bytes += tensor.nbytes
            try:
                require_finite(name, tensor, request.version)
            except LearnerError as problem:  # raised below, when the ranks have gathered everything
                problems.append(problem)
        if problems:
            raise problems[0]
        self._announced = request.version
        return None if rank else describe(request, rows, num_bytes, [], logprobs, request.address)

    def forget(self) -> None:
        """Weights change now: what was announced can no longer be sent."""
        self._announced = None

    def send(self, engine: Gathering, request: Send, *, rank: int, bucket_bytes: int) -> None:
        """Send the announced weights from rank 0. Blocks until the engine's workers have them. Collective.

        Raises:
            LearnerError: the version is not the one that was announced last, or weights have changed since.
        """
        if request.version != self._announced:
            raise LearnerError(
                f"asked to send weight version {request.version}, but the announced one is {self._announced}; "
                "a push must follow its own stage, with no gradient step between"
            )
        weights = whole_weights(engine, bucket_bytes)
        if rank:
            for _ in weights:
                pass
            return
        if self._sender is None:
            module, _, name = request.sender.partition(":")
            self._sender = getattr(importlib.import_module(module), name)(request.address, request.num_workers)
        assert self._sender is not None
        # The sender packs several tensors into one message, and a gathered one is gone when its bucket is left.
        self._sender.send((name, tensor.detach().clone()) for name, tensor in weights)
