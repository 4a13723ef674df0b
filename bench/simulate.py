"""How fast would the same controller train on 8, 64 or 1,024 GPUs? Simulated on a virtual clock.

The controller, its ledger, buffer and admission, the rollouts and their tools, and the limits of the feedback provider
are the project's own; engine, Lean, feedback model and learner are stand-ins that take the seconds of
bench/simulation/figures.toml. Baseline: all GPUs generate, then all of them learn, at the same service times.

    python -m bench.simulate                        the table over S and GPU splits
    python -m bench.simulate --fit                  solve the two free figures for the paper's 300 and 550 s per step
    python -m bench.simulate --against RUN [RUN2]   predict finished runs of this machine from their own service times
    python -m bench.simulate --record RUN [RUN2]    keep those times in bench/simulation/recorded, for all later tables

`error_vs_real` is the largest error of predicting a run's seconds from its own service times, `error_across` from
those of a run in another mode: there the guess of how engine and learner share the processors comes in.
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
from bench.simulation.recorded import load_recording, save_recording
from bench.simulation.schedules import (
    BEST_S,
    async_settings,
    large_rows,
    large_settings,
    row_of,
    scaled,
    sync_settings,
    table_of,
    what_if,
)
from bench.simulation.world import Figures, load_figures, simulate

RECORDED = Path(__file__).parent / "simulation" / "recorded"


def compare(figures: Figures, quick: bool, pool: Executor) -> dict[str, Any]:
    """Simulate the whole table and print it."""
    large, sync, table = large_settings(quick), sync_settings(quick), async_settings(quick)
    settings = [*large, *sync, *table]  # the long ones first: both cores are at work until the end
    machines = [scaled(figures, setting) for setting in settings]
    results = list(pool.map(simulate, settings, machines))
    large_results, results = results[: len(large)], results[len(large) :]
    baseline_s = results[0].step_s
    best = min((r for r in results if 0 < r.setting.max_staleness <= BEST_S), key=lambda result: result.step_s)
    changed = [] if quick else what_if(figures, best.setting)
    others = list(pool.map(simulate, *zip(*changed, strict=True))) if changed else []
    tables = {
        "8 GPUs": [row_of(result, baseline_s, figures) for result in results],
        "S = 4 with other services": [
            row_of(result, baseline_s, its) for result, (_, its) in zip(others, changed, strict=True)
        ],
        "more GPUs": large_rows(large_results, machines),
    }
    for title, rows in tables.items():
        if rows:
            print(f"\n{title}\n{table_of(rows)}", flush=True)
    everything = [*large_results, *results, *others]
    return {
        "speedup_s4": round(baseline_s / best.step_s, 3),
        "dropped": sum(result.dropped for result in everything),
        "best": row_of(best, baseline_s, figures),
        "sync_step_s": round(baseline_s, 1),
        "paper_step_s": FD_STEP_S,
        "attempts": sum(len(result.trained) for result in everything),
        "tables": tables,
    }


def main() -> None:
    """Parse, simulate, print."""
    options = parser(__doc__)
    options.add_argument("--fit", action="store_true", help="solve the two free figures for the paper's two numbers")
    options.add_argument("--against", nargs="+", type=Path, metavar="RUN", help="finished run folders to predict")
    options.add_argument("--record", nargs="+", type=Path, metavar="RUN", help="finished run folders to keep")
    asked = options.parse_args()
    started, figures = time.monotonic(), load_figures()
    for folder in asked.record or []:
        print(save_recording(load_recording(folder), RECORDED))
    paths = asked.against or asked.record or sorted(RECORDED.glob("*.json.gz"))
    with ProcessPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        if asked.fit:
            emit(fit(figures, pool)._asdict())
            return
        result = against([load_recording(path) for path in paths], pool) if paths else {"error_vs_real": None}
        if result.get("against"):
            print(f"seconds of real runs and of simulated ones\n{table_of(result['against'])}", flush=True)
        if not (asked.against or asked.record):
            result |= compare(figures, asked.quick, pool)
    emit(result | {"simulated_in_s": round(time.monotonic() - started, 1)})


if __name__ == "__main__":
    main()
