"""The part of a training engine that makes parameters whole, without an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from fd_async.learner.model import Policy


class Whole:
    """An engine that holds everything, and notes which parameters were gathered together."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.shapes = {name: parameter.shape for name, parameter in policy.lm.named_parameters()}
        self.buckets: list[list[str]] = []

    @contextmanager
    def gathered(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        self.buckets.append(list(names))
        parameters = dict(self.policy.lm.named_parameters())
        yield {name: parameters[name].detach() for name in names}
