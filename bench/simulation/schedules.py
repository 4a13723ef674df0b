"""The schedules that are compared, and how a simulated run reads as a row of the table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from bench.simulation.fit import with_fit
from bench.simulation.world import Figures, Setting, Simulated

STALENESS = (0, 1, 2, 4, 8)
SPLITS = ((2, 6), (3, 5), (4, 4), (5, 3), (6, 2))
"""GPUs of (engines, learner). A learner with one GPU has no room for 9 B parameters, their moments and the teacher."""
BEST_S = 4
"""The bound under which the speed-up is stated."""


def sync_settings(quick: bool) -> list[Setting]:
    """Return the baselines: GPUs that take turns; feedback on each attempt as it ends, or after all have (`sync`)."""
    steps = 4 if quick else 12
    return [
        Setting(name="sync", shared=True, steps=steps),
        Setting(name="sync, feedback after all", mode="sync", shared=True, steps=steps),
    ]


def async_settings(quick: bool) -> list[Setting]:
    """Return the table over S and splits of 8 GPUs."""
    splits = SPLITS[1:3] if quick else SPLITS
    return [
        Setting(
            name="async", max_staleness=bound, engine_gpus=engines, learner_gpus=learner, periods=periods(bound, quick)
        )
        for bound in STALENESS
        for engines, learner in (splits[:1] if quick and bound != BEST_S else splits)
    ]


def large_settings(quick: bool) -> list[Setting]:
    """Return 64 and 1,024 GPUs with a batch that suits them, synchronous and at S = 2 and 4; the largest first."""
    found = []
    for gpus, prompts in ((64, 128),) if quick else ((1024, 2048), (64, 512)):
        sizes = {"prompts_per_step": prompts, "grain": 64}
        engines = gpus // 2
        found.append(
            Setting(name="sync", shared=True, steps=2 if quick else 4, engine_gpus=gpus, learner_gpus=gpus, **sizes)
        )
        found += [
            Setting(
                name="async", max_staleness=bound, engine_gpus=engines, learner_gpus=gpus - engines, periods=1, **sizes
            )
            for bound in ((BEST_S,) if quick else (2, BEST_S))
        ]
    return found


def large_rows(results: Sequence[Simulated], machines: Sequence[Figures]) -> list[dict[str, Any]]:
    """Return the rows of `large_settings`; each machine's first is its baseline."""
    rows, baseline_s = [], 0.0
    for result, machine in zip(results, machines, strict=False):
        baseline_s = result.step_s if result.setting.shared else baseline_s
        rows.append(row_of(result, baseline_s, machine))
    return rows


def scaled(figures: Figures, setting: Setting) -> Figures:
    """Return the figures of a machine of this size: Lean workers come with the nodes."""
    gpus = setting.engine_gpus if setting.shared else setting.engine_gpus + setting.learner_gpus
    lean = msgspec.structs.replace(figures.lean, workers=figures.lean.workers * gpus // 8)
    return msgspec.structs.replace(figures, lean=lean)


def what_if(figures: Figures, best: Setting) -> list[tuple[Setting, Figures]]:
    """Return the best split under other services: what would limit it next."""
    replace = msgspec.structs.replace
    found = []
    for workers in (16, 64):
        changed = replace(figures, lean=replace(figures.lean, workers=workers))
        found.append((replace(best, name=f"Lean workers: {workers}"), changed))
    for rpm in (60, 120):
        tables = {"feedback": {"requests_per_minute": rpm}}
        found.append((replace(best, name=f"feedback: {rpm} requests a minute", tables=tables), figures))
    engine = replace(figures.engine, push_stall_s=10 * figures.engine.push_stall_s)
    found.append((replace(best, name="push stall: ten times"), replace(figures, engine=engine)))
    # Half the engine's step and 8 % utilisation explain the 300 s as well, though not GRPO's 550 s (it would take 890).
    for engines, learner in ((2, 6), (3, 5)):
        setting = replace(best, name="slower learner", engine_gpus=engines, learner_gpus=learner)
        found.append((setting, with_fit(figures, 0.010, 0.080)))
    return found


def periods(bound: int, quick: bool) -> int:
    """Return how many times S + 1 steps are measured."""
    return -(-(5 if quick else 12) // (bound + 1))


def row_of(result: Simulated, baseline_s: float, figures: Figures) -> dict[str, Any]:
    """Return one row of the table."""
    setting = result.setting
    return {
        "name": setting.name,
        "gpus": setting.engine_gpus if setting.shared else setting.engine_gpus + setting.learner_gpus,
        "S": setting.max_staleness,
        "engine_gpus": setting.engine_gpus,
        "learner_gpus": setting.learner_gpus,
        "prompts": setting.prompts_per_step,
        "step_s": round(result.step_s, 1),
        "speedup": round(baseline_s / result.step_s, 2),
        "dropped": result.dropped,
        "staleness_max": result.max_staleness,
        "engine_idle": round(result.engine_idle, 2),
        "sequences": round(result.sequences, 1),
        "learner_idle": round(result.learner_idle, 2),
        "lean_busy": round(result.lean_busy, 2),
        "feedback_in_flight": round(result.feedback_in_flight, 1),
        "binds": binds(result, figures),
    }


def binds(result: Simulated, figures: Figures) -> str:
    """Say what a faster one of would shorten the step."""
    setting, engine = result.setting, figures.engine
    if setting.shared or setting.max_staleness == 0:
        return "no overlap"
    if result.learner_idle < 0.15:
        return "learner"
    if result.lean_busy > 0.85:
        return "Lean"
    per_minute = setting.tables.get("feedback", {}).get("requests_per_minute", 0)
    attempts = setting.prompts_per_step * setting.samples_per_prompt
    if per_minute and 60.0 * attempts / result.step_s > 0.9 * per_minute:
        return "feedback"
    load_s = result.sequences * (engine.per_sequence_s + engine.per_context_token_s * figures.attempts.prompt_tokens)
    return "engine" if load_s > 0.5 * engine.base_s else "staleness bound"


def table_of(rows: Iterable[dict[str, Any]]) -> str:
    """Format rows for people."""
    rows = list(rows)
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    lines = ["  ".join(key.rjust(width) for key, width in widths.items())]
    lines += ["  ".join(str(row[key]).rjust(width) for key, width in widths.items()) for row in rows]
    return "\n".join(lines)
