"""How well the Lean pool keeps its workers busy, alone and beside a Kimina Lean Server.

Replays recorded checks of MiniF2F through the real pool, with processes that answer what was recorded after the
recorded seconds (`tests/fakes/repl_trace.py`). Where the recordings are absent, synthetic ones of the same
distribution take their place, and `trace` says so.

`share_of_ideal` is `ideal_s` / `wall_s`, where `ideal_s` = max(sum of the seconds / workers, longest check): the floor
under every schedule, even one that knows all seconds beforehand (`ideal_lpt_s`: longest first). The seconds of a check
end at the deadline of 60 s under which the trace was recorded. Every time is multiplied by `--scale`, the overheads of
the systems are not: the nearer to 1, the more honest.

With `--kimina CHECKOUT` the same checks go through a Kimina Lean Server, unmodified, with as many REPLs, all started
beforehand on both sides, and the same deadline; all checks are submitted at once, and Kimina's best way of use counts.
Our spares hold stopped processes: at most `--workers` compute at a time on either side (`peak_computing`). Throughput
ratios: `vs_kimina` with judge and cache of verdicts, `_no_cache` with the judge alone, `_pool_alone` without either
(accepted where Lean reports neither error nor sorry, as Kimina's client does), `_accounted` with the accounting of
lemmas as well, which elaborates accepted proofs again, `_two_headers` where every second statement needs another
import, `_rollouts` where callers think between their checks (time until nine tenths are done, because one caller's six
timeouts decide when all are). Kimina answers HTTP 500 where a REPL's line is longer than 64 KiB: `kimina_failed` of the
checks, counted as done. To repeat it:

    git clone https://github.com/project-numina/kimina-lean-server && cd kimina-lean-server
    python -m venv .venv && .venv/bin/pip install -r requirements.txt && .venv/bin/prisma generate
    python -m bench.lean_pool --kimina kimina-lean-server --kimina-python kimina-lean-server/.venv/bin/python
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from bench.common import emit
from bench.lean_arrivals import Arrival
from bench.lean_kimina import WAYS, Kimina
from bench.lean_measure import (
    Driver,
    Setup,
    judged,
    measure_kimina,
    measure_lag,
    measure_ours,
    measure_overhead,
    plain,
    row,
    simulated_cpu_seconds,
)
from bench.lean_trace import LIMIT_S, Check, bounds, entries_of, load_checks, with_second_header
from fd_async.verifier.repl import backend as repl_backend
from tests.fakes import repl_trace

LOADS = ("backlog", "judged", "cached", "accounted", "rollouts", "two_headers")


def loads_of(checks: Sequence[Check]) -> dict[str, tuple[Sequence[Check], Driver, Arrival]]:
    """Return every load by its name: checks, what is done with each, and how they arrive."""
    mixed = with_second_header(checks)
    return {
        "backlog": (checks, plain(checks), "backlog"),
        "judged": (checks, judged(checks, cache=False), "backlog"),
        "cached": (checks, judged(checks, cache=True), "backlog"),
        "accounted": (checks, judged(checks, cache=True, accounting=True), "backlog"),
        "rollouts": (checks, plain(checks), "rollouts"),
        "two_headers": (mixed, plain(mixed), "backlog"),
    }


async def compare(
    setup: Setup, checks: Sequence[Check], kimina: Kimina | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Run every load on both systems, one after another; returns the rows and the figures drawn from them."""
    loads, ours, theirs = loads_of(checks), {}, {}
    for load in options.loads:
        these, driver, arrival = loads[load]
        measured = await measure_ours(setup, these, driver, arrival)
        ours[load] = row("ours", load, setup, these, measured)
    best, rows = None, list(ours.values())
    if kimina is not None:
        for way in options.kimina_ways:
            measured = await measure_kimina(setup, kimina, checks, "backlog", way, setup.workers)
            rows.append(row(f"kimina {way}", "backlog", setup, checks, measured))
            if best is None or rows[-1]["wall_s"] < theirs["backlog"]["wall_s"]:
                best, theirs["backlog"] = way, rows[-1]
        more = {load: setup.workers for load in ("rollouts", "two_headers") if load in loads and load in options.loads}
        for load, repls in more.items():
            these, _, arrival = loads.get(load, loads["backlog"])
            way = "verify" if best == "client" else best or "inside"
            measured = await measure_kimina(setup, kimina, these, arrival, way, repls)
            rows.append(row(f"kimina {way}", load, setup, these, measured))
            theirs[load] = rows[-1]
    return {"kimina_best_way": best, **_figures(ours, theirs), "rows": rows}


def _figures(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    backlog, kimina = ours["backlog"], theirs.get("backlog", {})
    figures: dict[str, Any] = {
        "wall_s": backlog["wall_s"],
        "queue_wait_p50_s": backlog["queue_wait_p50_s"],
        "queue_wait_p95_s": backlog["queue_wait_p95_s"],
        "equal_verdicts": not any(r["num_wrong"] or r["lost"] for r in (*ours.values(), *theirs.values())),
        "kimina_failed": kimina.get("num_failed"),
        "kimina_wall_s": kimina.get("wall_s"),
        "kimina_queue_wait_p50_s": kimina.get("queue_wait_p50_s"),
        "kimina_queue_wait_p95_s": kimina.get("queue_wait_p95_s"),
    }
    pairs = {
        "vs_kimina": ("cached", "backlog", "wall_s"),
        "vs_kimina_no_cache": ("judged", "backlog", "wall_s"),
        "vs_kimina_pool_alone": ("backlog", "backlog", "wall_s"),
        "vs_kimina_accounted": ("accounted", "backlog", "wall_s"),
        "vs_kimina_two_headers": ("two_headers", "two_headers", "wall_s"),
        "vs_kimina_rollouts": ("rollouts", "rollouts", "nine_tenths_done_s"),
        "vs_kimina_rollouts_wait_p95": ("rollouts", "rollouts", "queue_wait_p95_s"),
    }
    for name, (load, their_load, key) in pairs.items():
        known = load in ours and their_load in theirs
        figures[name] = theirs[their_load][key] / ours[load][key] if known else None
    return figures


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare the stand-in's index and take every measurement."""
    checks, trace = load_checks(options.limit)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as scratch:
        setup = Setup(
            scratch=Path(scratch),
            scale=options.scale,
            import_s=options.import_s,
            workers=options.workers,
            spares=options.spares,
            first_budget_s=options.first_budget_s,
            think_s=options.think_s * options.scale,
        )
        setup.clocks.mkdir()
        repl_trace.write_index(str(setup.scratch / "index"), entries_of(checks))
        repl_backend.cpu_seconds = simulated_cpu_seconds(setup.clocks)
        gc.collect()
        gc.freeze()  # the trace is no part of the verifier: collecting it must not be taken for the loop's lag
        kimina = None
        if options.kimina:
            kimina = Kimina(options.kimina, options.kimina_python, setup.repl_argv, setup.scratch, setup.scale)
        overhead = await measure_overhead(setup, checks[0].header, 100 if options.quick else 500)
        lag = await measure_lag(setup, checks[0].header, 500 if options.quick else 2000)
        compared = await compare(setup, checks, kimina, options)
        stubbed = kimina is not None and not kimina.has_database_client()
    floors = bounds(checks, options.workers, options.scale)
    sizes = {
        name: vars(options)[name] for name in ("workers", "spares", "first_budget_s", "scale", "import_s", "think_s")
    }
    return {
        "share_of_ideal": floors["ideal_s"] / compared["wall_s"],
        **floors,
        **compared,
        **overhead,
        **lag,
        "trace": trace,
        "checks": len(checks),
        **sizes,
        "kimina_database_client_stubbed": stubbed,
    }


def parse() -> argparse.Namespace:
    """Read the options; `--quick` sets small sizes where none are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, the same keys, at most 60 s on 2 cores")
    parser.add_argument("--workers", type=int, help="32, or 16 with --quick")
    parser.add_argument("--spares", type=int, help="verifier.spares; as many as workers by default")
    parser.add_argument("--first-budget-s", type=float, default=8.0, help="verifier.first_budget_s, before scaling")
    parser.add_argument("--scale", type=float, help="factor on all times; 60 x scale must be whole seconds")
    parser.add_argument("--limit", type=int, help="only the first checks of the trace")
    parser.add_argument("--import-s", type=float, default=5.0, help="seconds that a header takes, before scaling")
    parser.add_argument("--think-s", type=float, default=5.0, help="mean pause of a rollout between its checks")
    parser.add_argument("--kimina", type=lambda path: Path(path).resolve(), help="checkout of kimina-lean-server")
    parser.add_argument("--kimina-python", default=sys.executable, help="interpreter with its requirements")
    parser.add_argument("--kimina-ways", nargs="+", choices=WAYS, default=["inside", "verify"], help="the best counts")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS), help="`backlog` always runs")
    options = parser.parse_args()
    options.loads = ["backlog", *(load for load in options.loads if load != "backlog")]
    options.scale = options.scale or (1 / 30 if options.quick else 0.5)
    options.workers = options.workers or (16 if options.quick else 32)
    options.spares = options.workers if options.spares is None else options.spares
    options.limit = options.limit or (732 if options.quick else None)
    if options.kimina and not shutil.which(options.kimina_python):
        parser.error(f"--kimina-python {options.kimina_python}: no such program")
    if abs(LIMIT_S * options.scale - round(LIMIT_S * options.scale)) > 1e-6:
        parser.error("60 x scale must be whole seconds: Kimina takes its deadline in whole seconds")
    return options


if __name__ == "__main__":
    emit(anyio.run(run, parse()))
