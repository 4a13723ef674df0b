"""The teacher's exponential moving average: mu <- retention * mu + (1 - retention) * theta (paper section 3).

mu is float32 always. In bfloat16 a typical update is smaller than half the spacing of the numbers and is lost.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def update_ema(average: Mapping[str, Tensor], student: Mapping[str, Tensor], retention: float) -> None:
    """Move `average` towards `student` in place, parameter by parameter, matched by name.

    Args:
        average: float32 (or wider) tensors by parameter name.
        student: the student's parameters under the same names, any float dtype.
        retention: share of the average that stays; 1 freezes it.

    Raises:
        ValueError: names or shapes differ, or the average is narrower than float32.
    """
    if average.keys() != student.keys():
        names = sorted(average.keys() ^ student.keys())
        raise ValueError(f"EMA and student disagree about {len(names)} parameters, first {names[0]!r}")
    for name, mu in average.items():
        theta = student[name]
        if mu.shape != theta.shape:
            raise ValueError(f"EMA of {name!r} has shape {tuple(mu.shape)}, the student {tuple(theta.shape)}")
        if torch.finfo(mu.dtype).bits < 32:
            raise ValueError(f"EMA of {name!r} is {mu.dtype}; it must be float32")
    if retention == 1.0:
        return
    for name, mu in average.items():
        mu.lerp_(student[name].to(mu.dtype), 1.0 - retention)
