"""Group advantages of GRPO, without torch, so that whoever cuts batches can use them."""

from __future__ import annotations

import math
from collections.abc import Sequence


def is_flat(rewards_G: Sequence[float]) -> bool:
    """Tell whether all rewards of a group are equal, so that the group teaches nothing."""
    return all(reward == rewards_G[0] for reward in rewards_G)


def group_advantages(rewards_G: Sequence[float], *, divide_by_std: bool) -> list[float]:
    """Compare every reward with its group: r - mean, optionally over the sample standard deviation (n - 1).

    A flat group gets exact zeros. Source: DeepSeekMath, section 4.1.2; without division, Dr. GRPO.
    """
    if is_flat(rewards_G):
        return [0.0] * len(rewards_G)
    mean = math.fsum(rewards_G) / len(rewards_G)
    centred = [reward - mean for reward in rewards_G]
    if not divide_by_std:
        return centred
    std = math.sqrt(math.fsum(value * value for value in centred) / (len(rewards_G) - 1))
    return [value / std for value in centred]
