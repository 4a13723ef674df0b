"""The teacher's exponential moving average: mu <- retention * mu + (1 - retention) * theta (paper section 3).

mu is float32 always. In bfloat16 a typical update is smaller than half the spacing of the numbers and is lost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def update_ema(average: Sequence[Tensor], student: Sequence[Tensor], retention: float) -> None:
    """Move `average` towards `student` in place, tensor by tensor.

    Args:
        average: float32 (or wider) tensors.
        student: the same tensors of the student, any float dtype.
        retention: share of the average that stays; 1 freezes it.

    Raises:
        ValueError: numbers or shapes of tensors differ, or the average is narrower than float32.
    """
    if len(average) != len(student):
        raise ValueError(f"the EMA has {len(average)} tensors, the student {len(student)}")
    for index, (mu, theta) in enumerate(zip(average, student, strict=True)):
        if mu.shape != theta.shape:
            raise ValueError(f"EMA tensor {index} has shape {tuple(mu.shape)}, the student's {tuple(theta.shape)}")
        if torch.finfo(mu.dtype).bits < 32:
            raise ValueError(f"EMA tensor {index} is {mu.dtype}; it must be float32")
    if retention == 1.0:
        return
    for mu, theta in zip(average, student, strict=True):
        mu.lerp_(theta.to(mu.device, mu.dtype), 1.0 - retention)
