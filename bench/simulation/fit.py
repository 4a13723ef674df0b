"""Solves the two free figures for the paper's two numbers.

Synchronous steps do not overlap, so a step is the attempts' time, which depends on `engine.base_s`, plus the learner's,
which is inversely proportional to `learner.model_flops_utilisation`. Feedback Distillation takes 300 s a step and GRPO,
with five times the attempts and no feedback, 550 s (paper section 4.2): two equations, two unknowns.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import NamedTuple

import msgspec

from bench.simulation.world import Figures, Setting, simulate

FD_STEP_S, GRPO_STEP_S = 300.0, 550.0
SYNC = Setting(name="sync", shared=True, steps=4)
SYNC_GRPO = msgspec.structs.replace(SYNC, name="sync, GRPO", algorithm="grpo", samples_per_prompt=5, steps=2)


class Fit(NamedTuple):
    """What the paper's numbers leave for the two free figures."""

    base_s: float
    utilisation: float
    grpo_step_s: float
    """With the utilisation that gives 300 s for Feedback Distillation."""


def fit(figures: Figures, pool: Executor) -> Fit:
    """Bisect `base_s`: the first equation gives the utilisation, the second says how far off the value is."""
    low, high = 0.004, 0.035
    found = _solve(figures, high, pool)
    for _ in range(9):
        middle = (low + high) / 2
        found = _solve(figures, middle, pool)
        # A slower engine leaves the learner less of the 300 s, and the learner weighs six times as much in GRPO.
        low, high = (middle, high) if found.grpo_step_s > GRPO_STEP_S else (low, middle)
    return found


def _solve(figures: Figures, base_s: float, pool: Executor) -> Fit:
    changed = with_fit(figures, base_s, 1.0)
    fd, grpo = pool.map(simulate, (SYNC, SYNC_GRPO), (changed, changed))
    parts = [sum(_learn_s(figures, result.setting, result.trained)) / result.setting.steps for result in (fd, grpo)]
    rests = [result.total_s / result.setting.steps - part for result, part in zip((fd, grpo), parts, strict=True)]
    utilisation = parts[0] / (FD_STEP_S - rests[0]) if rests[0] < FD_STEP_S else 1.0
    return Fit(base_s, utilisation, rests[1] + parts[1] / utilisation)


def _learn_s(figures: Figures, setting: Setting, completions: list[int]) -> list[float]:
    """Seconds of each sample on all GPUs at a utilisation of 1."""
    f, extra = figures.learner, figures.attempts.prompt_tokens
    extra += figures.feedback.tokens if setting.algorithm == "fd" else 0
    passes = f.passes if setting.algorithm == "fd" else f.grpo_passes
    return [passes * f.parameters * (extra + n) / (setting.learner_gpus * f.peak_flops) for n in completions]


def with_fit(figures: Figures, base_s: float, utilisation: float) -> Figures:
    """Return the figures with the two free ones replaced."""
    replace = msgspec.structs.replace
    return replace(
        figures,
        engine=replace(figures.engine, base_s=base_s),
        learner=replace(figures.learner, model_flops_utilisation=utilisation),
    )
