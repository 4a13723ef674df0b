"""pass@k and the uncertainty of a share."""

from __future__ import annotations

import math
from collections.abc import Iterable


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the probability that at least one of k samples is correct, without bias.

    1 - C(n - c, k) / C(n, k): source Chen et al. 2021, "Evaluating Large Language Models Trained on Code", eq. 1.
    Exact integers until the last division.

    Raises:
        ValueError: unless 0 <= num_correct <= num_samples and 1 <= k <= num_samples.
    """
    if not 0 <= num_correct <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_correct} correct in {num_samples} samples is not defined")
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def mean_pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> float | None:
    """Return the mean over statements of (num_samples, num_correct).

    Statements with fewer than k samples that reached a verdict are left out; None when none is left.
    """
    values = [pass_at_k(n, c, k) for n, c in counts if n >= k]
    return math.fsum(values) / len(values) if values else None


def wilson_interval(num_correct: int, num_samples: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval of a share; z = 1.96 gives 95 %. Without samples it is (0, 1).

    Source: Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".
    """
    if num_samples == 0:
        return 0.0, 1.0
    share = num_correct / num_samples
    scale = 1 + z * z / num_samples
    centre = (share + z * z / (2 * num_samples)) / scale
    half = z * math.sqrt(share * (1 - share) / num_samples + z * z / (4 * num_samples**2)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)
