"""A training engine without DeepSpeed and without other ranks: plain AdamW on one policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fd_async.errors import NonFiniteLoss
from fd_async.learner.batching import Rows
from fd_async.learner.model import Objective, Policy
from fd_async.learner.shadow import Shadow
from fd_async.learner.shards import WholeShards


class PlainEngine:
    """Same surface as the DeepSpeed engine; keeps the gradients of the last step for inspection."""

    def __init__(self, policy: Policy, grad_clip: float = 1.0) -> None:
        self.policy, self._clip = policy, grad_clip
        self._optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, weight_decay=0.0)
        self.gradients: dict[str, Tensor] = {}
        self.shards = WholeShards(dict(policy.lm.named_parameters()))

    def __call__(self, rows: Rows, objective: Objective) -> Any:
        return self.policy(rows, objective)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, lr: float) -> float:
        named = [(name, p) for name, p in self.policy.named_parameters() if p.grad is not None]
        self.gradients = {name: p.grad.clone() for name, p in named}
        norm = float(torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self._clip))
        if norm != norm or norm == float("inf"):
            raise NonFiniteLoss("the gradient norm is not finite; no weight was changed")
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self.discard_gradients()
        return norm

    def discard_gradients(self) -> None:
        self._optimizer.zero_grad()

    @contextmanager
    def wearing(self, shadow: Shadow) -> Iterator[None]:
        self.shards.publish(shadow.flats)
        try:
            with torch.no_grad():
                yield
        finally:
            self.shards.publish(self.shards.flats)


def shadow_of(policy: Policy) -> Shadow:
    """Return a teacher or reference with this policy's weights."""
    return Shadow(WholeShards(dict(policy.lm.named_parameters())))
