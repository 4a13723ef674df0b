"""How fast would the same controller train on 8, 64 or 1,024 GPUs? Simulated on a virtual clock.

The controller, its ledger, buffer and admission, the rollouts and their tools, and the limits of the feedback provider
are the project's own; engine, Lean, feedback model and learner are stand-ins that take the seconds of
bench/simulation/figures.toml. Baseline: all GPUs generate, then all of them learn, at the same service times.

    python -m bench.simulate                        the table over S and GPU splits
    python -m bench.simulate --fit                  solve the two free figures for the paper's 300 and 550 s per step
    python -m bench.simulate --against RUN [RUN2]   replay finished runs with their own recorded service times
"""

from __future__ import annotations

import os
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench.common import emit, parser
from bench.simulation.against import against
from bench.simulation.fit import FD_STEP_S, fit
from bench.simulation.schedules import (
    BEST_S,
    async_settings,
    large_settings,
    row_of,
    sync_settings,
    table_of,
    what_if,
)
from bench.simulation.world import Figures, Setting, load_figures, simulate


def compare(figures: Figures, quick: bool, pool: Executor) -> dict[str, Any]:
    """Simulate the whole table and print it."""
    settings = [*sync_settings(quick), *async_settings(quick)]
    results = list(pool.map(simulate, settings, [figures] * len(settings)))
    baseline, bests = results[0], [r for r in results[2:] if 0 < r.setting.max_staleness <= BEST_S]
    best = min(bests, key=lambda result: result.step_s)
    rows = [row_of(result, baseline.step_s, figures) for result in results]
    changed = what_if(figures, best.setting)
    others = list(pool.map(simulate, *zip(*changed, strict=True))) if not quick else []
    rows_if = [row_of(result, baseline.step_s, its) for result, (_, its) in zip(others, changed, strict=False)]
    large_rows = _large(figures, quick, (best.setting.engine_gpus, best.setting.learner_gpus), pool)
    for title, table in (("8 GPUs", rows), ("the best split, with other services", rows_if), ("more GPUs", large_rows)):
        if table:
            print(f"\n{title}\n{table_of(table)}", flush=True)
    return {
        "speedup_s4": round(baseline.step_s / best.step_s, 3),
        "dropped": sum(result.dropped for result in (*results, *others)),
        "best": row_of(best, baseline.step_s, figures),
        "sync_step_s": round(baseline.step_s, 1),
        "paper_step_s": FD_STEP_S,
        "rows": rows,
        "what_if": rows_if,
        "large": large_rows,
    }


def _large(figures: Figures, quick: bool, split: tuple[int, int], pool: Executor) -> list[dict[str, Any]]:
    """Simulate larger machines; Lean workers grow with the nodes."""
    settings = large_settings(quick, split)
    machines = [_scaled(figures, setting) for setting in settings]
    rows, baseline_s = [], 0.0
    for result, machine in zip(pool.map(simulate, settings, machines), machines, strict=True):
        baseline_s = result.step_s if result.setting.shared else baseline_s
        rows.append(row_of(result, baseline_s, machine))
    return rows


def _scaled(figures: Figures, setting: Setting) -> Figures:
    from msgspec.structs import replace

    gpus = setting.engine_gpus if setting.shared else setting.engine_gpus + setting.learner_gpus
    return replace(figures, lean=replace(figures.lean, workers=figures.lean.workers * gpus // 8))


def main() -> None:
    """Parse, simulate, print."""
    options = parser(__doc__)
    options.add_argument("--fit", action="store_true", help="solve the two free figures for the paper's two numbers")
    options.add_argument("--against", nargs="+", type=Path, metavar="RUN", help="finished run folders to replay")
    asked = options.parse_args()
    started, figures = time.monotonic(), load_figures()
    with ProcessPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        if asked.fit:
            emit(fit(figures, pool)._asdict())
            return
        if asked.against:
            emit(against(asked.against))
            return
        result = compare(figures, asked.quick, pool)
    emit(result | {"simulated_in_s": round(time.monotonic() - started, 1)})


if __name__ == "__main__":
    main()
