"""Sums over micro-batches and ranks, and seconds per phase.

A metric is a ratio of two sums, so it does not depend on how a batch was divided.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Add each value over all ranks."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor.tolist()


def max_over_ranks(value: int, device: torch.device) -> int:
    """Return the largest value that any rank has."""
    tensor = torch.tensor(value, dtype=torch.int64, device=device)
    if dist.is_initialized():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)


class Totals:
    """Named float64 sums; every rank declares the same names, so that a rank without samples can take part."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in names}
        self._device = device

    def add(self, name: str, values: Tensor | float) -> None:
        """Add a number or all elements of a tensor, without waiting for the device."""
        self._sums[name] += values.detach().double().sum() if isinstance(values, Tensor) else values

    def reduce(self) -> dict[str, float]:
        """Return the sums over all ranks. Collective."""
        values = torch.stack(list(self._sums.values()))
        if dist.is_initialized():
            dist.all_reduce(values)
        return dict(zip(self._sums, values.tolist(), strict=True))


class Stopwatch:
    """Adds up the seconds spent in named phases."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block, work queued on the device included."""
        self._synchronize()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronize()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
