"""One rank of a sharded optimizer without DeepSpeed or processes: float32 fragments of a model's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fd_async.learner.model import Policy


class Fragment(NamedTuple):
    start: int
    values: Tensor


def cut(whole: Mapping[str, Tensor], cuts: Sequence[float], rank: int) -> dict[str, Fragment]:
    """Lay all parameters end to end, cut at shares of the length, and return a rank's piece of each parameter."""
    total = sum(tensor.numel() for tensor in whole.values())
    start, stop = [round(share * total) for share in (*cuts, 1.0)][rank : rank + 2]
    held, position = {}, 0
    for name, tensor in whole.items():
        first, last = max(start - position, 0), min(stop - position, tensor.numel())
        if first < last:
            held[name] = Fragment(first, tensor.flatten()[first:last].clone())
        position += tensor.numel()
    return held


class SplitShadow:
    """The teacher of one rank."""

    def __init__(self, fragments: dict[str, Fragment]) -> None:
        self.fragments = fragments

    def restore(self, values: Mapping[str, Tensor]) -> None:
        for name, fragment in self.fragments.items():
            fragment.values.copy_(values[name])


class SplitEngine:
    """Holds one rank's part; `cuts` are the ranks' first shares of the parameters laid end to end, from 0."""

    def __init__(self, policy: Policy, cuts: Sequence[float], rank: int, *, num_updates: int = 0) -> None:
        self.policy, self.num_updates = policy, num_updates
        self.replicated = len(cuts) == 1
        whole = {name: p.detach().float() for name, p in policy.lm.named_parameters()}
        self.shapes = {name: tensor.shape for name, tensor in whole.items()}
        self._held = {"master": cut(whole, cuts, rank)}
        for factor, moment in ((0.5, "exp_avg"), (2.0, "exp_avg_sq")):
            self._held[moment] = cut({name: tensor * factor for name, tensor in whole.items()}, cuts, rank)
        self.teacher = SplitShadow(cut({name: tensor - 1.0 for name, tensor in whole.items()}, cuts, rank))

    def states(self) -> dict[str, dict[str, Fragment]]:
        return {kind: held for kind, held in self._held.items() if kind == "master" or self.num_updates}

    def restore(self, states: Mapping[str, Mapping[str, Tensor]], num_updates: int) -> None:
        self.num_updates = num_updates
        for kind, held in self.states().items():
            for name, fragment in held.items():
                fragment.values.copy_(states[kind][name])

    @contextmanager
    def gathered(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        parameters = dict(self.policy.lm.named_parameters())
        yield {name: parameters[name].detach() for name in names}


def wholes(engines: Sequence[SplitEngine]) -> dict[str, Tensor]:
    """Put the fragments of all ranks together: KIND/NAME -> flat tensor; fails on a gap or an overlap."""
    parts: dict[str, list[Fragment]] = {}
    for engine in engines[:1] if engines[0].replicated else engines:
        for kind, held in {**engine.states(), "teacher": engine.teacher.fragments}.items():
            for name, fragment in held.items():
                parts.setdefault(f"{kind}/{name}", []).append(fragment)
    for found in parts.values():
        found.sort(key=lambda fragment: fragment.start)
        assert found[0].start == 0
        assert all(one.start + len(one.values) == two.start for one, two in pairwise(found))
    return {key: torch.cat([fragment.values for fragment in found]) for key, found in parts.items()}
