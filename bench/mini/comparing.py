"""A difference over seeds, and whether it counts.

The rule was fixed before the runs: a difference counts when the lower end of its one-sided 95 % interval over seeds
(Student's t) is above 0. Seeds are paired: both sides of a difference come from runs with the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

MIN_SEEDS = 2
_T_95 = {2: 6.314, 3: 2.920, 4: 2.353, 5: 2.132, 6: 2.015, 7: 1.943, 8: 1.895, 9: 1.860, 10: 1.833}
"""Student's t, one-sided 95 %, by number of seeds."""
_T_MANY = 1.833
"""For more seeds; a little too careful."""

Finding = Literal["shown", "not shown", "contradicted", "not measured"]


@dataclass(frozen=True)
class Difference:
    """One comparison that must come out above 0."""

    name: str
    per_seed: Mapping[int, float]
    """Seeds without the figure are left out."""
    reason: str = ""
    """Why there is none, where there is none."""

    @property
    def mean(self) -> float:
        return fmean(self.per_seed.values())

    @property
    def half_width(self) -> float:
        """Mean minus lower end of the interval."""
        count = len(self.per_seed)
        return _T_95.get(count, _T_MANY) * stdev(self.per_seed.values()) / math.sqrt(count)

    @property
    def finding(self) -> Finding:
        """Say what the seeds show."""
        if len(self.per_seed) < MIN_SEEDS:
            return "not measured"
        if self.mean - self.half_width > 0:
            return "shown"
        return "contradicted" if self.mean + self.half_width < 0 else "not shown"

    def figures(self) -> dict[str, Any]:
        """Return what a reader needs to judge it."""
        if len(self.per_seed) < MIN_SEEDS:
            reason = self.reason or f"seeds measured: {len(self.per_seed)}, needed: {MIN_SEEDS}"
            return {"finding": self.finding, "per_seed": rounded(self.per_seed), "reason": reason}
        return {
            "finding": self.finding,
            "mean": round(self.mean, 4),
            "interval": [round(self.mean - self.half_width, 4), round(self.mean + self.half_width, 4)],
            "per_seed": rounded(self.per_seed),
        }


def rounded(values: Mapping[Any, float]) -> dict[str, float]:
    """Round for print, with keys that JSON takes."""
    return {str(key): round(value, 4) for key, value in values.items()}


def holds(differences: list[Difference]) -> bool | None:
    """Say whether all comparisons of a claim are shown; None when one of them was not measured and none fails."""
    findings = [difference.finding for difference in differences]
    if any(finding in ("not shown", "contradicted") for finding in findings):
        return False
    return None if not findings or "not measured" in findings else True
