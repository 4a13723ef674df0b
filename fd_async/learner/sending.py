"""Rank 0's part of pushes that travel without a file (`policy.push = "nccl"`).

    stage ▸ announce: names, types, shapes, the probe; nothing moves
    send  ▸ the tensors leave, in the announced order, while the engine receives them

The class that moves tensors belongs to the engine's room, which this room may not import: the request brings its
dotted name. `send` blocks; the controller holds the deadline and ends the process when it passes.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from fd_async.errors import LearnerError
from fd_async.learner.link import Send, Stage
from fd_async.learner.model import Policy
from fd_async.learner.staging import named_weights, score
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

    def announce(self, policy: Policy, request: Stage, chunk_tokens: int) -> StagedWeights:
        """Describe the current weights and score the probe with them; offsets and sha256 stay empty."""
        weights = named_weights(policy)
        self._announced = request.version
        return StagedWeights(
            version=request.version,
            path=request.address,
            names=list(weights),
            dtypes=[str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()],
            shapes=[list(tensor.shape) for tensor in weights.values()],
            offsets=[],
            num_bytes=sum(tensor.nbytes for tensor in weights.values()),
            sha256="",
            probe_ids=request.probe_ids,
            probe_logprobs=score(policy, request.probe_ids, chunk_tokens),
        )

    def forget(self) -> None:
        """Weights change now: what was announced can no longer be sent."""
        self._announced = None

    def send(self, policy: Policy, request: Send) -> None:
        """Send the announced weights. Blocks until the engine's workers have them.

        Raises:
            LearnerError: the version is not the one that was announced last, or weights have changed since.
        """
        if request.version != self._announced:
            raise LearnerError(
                f"asked to send weight version {request.version}, but the announced one is {self._announced}; "
                "a push must follow its own stage, with no gradient step between"
            )
        if self._sender is None:
            module, _, name = request.sender.partition(":")
            self._sender = getattr(importlib.import_module(module), name)(request.address, request.num_workers)
        assert self._sender is not None
        self._sender.send((name, tensor.detach()) for name, tensor in named_weights(policy).items())
