"""Thousands of broken inputs: configurations, files of statements, provider answers, tool calls. Never a traceback.

`python -m bench.fuzz` tries 3,000 of each kind (`--cases`), `--quick` 300; `--seed` takes others. Each input ends in a
result or in one clear line with the right exit code, answers come within their deadlines and the bill is exact. Runs
that are refused leave no folder that the next run of the same name trips over. Findings are printed before the result.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from bench.common import emit, parser
from tests.fuzz import answers, configs, datasets, toolcalls
from tests.fuzz.report import Report

QUICK_CASES, CASES = 300, 3000
SHARE_OF_CHECKS = 20
"""One fd-check per this many configurations: it looks at the whole machine."""
SHARE_OF_RUNS = 60
"""One real fd-run per this many files of statements."""


def run(cases: int, seed: int) -> dict[str, Any]:
    """Run every fuzzer; return the figures."""
    targets: dict[str, Callable[[Path], Report]] = {
        "configs": lambda folder: configs.fuzz(cases, seed, folder, checks=cases // SHARE_OF_CHECKS),
        "datasets": lambda folder: datasets.fuzz(cases, seed, folder),
        "runs": lambda folder: datasets.fuzz_runs(cases // SHARE_OF_RUNS, seed, folder),
        "answers": lambda folder: anyio.run(answers.fuzz, cases, seed),
        "tool_calls": lambda folder: toolcalls.fuzz(cases, seed),
    }
    rows: dict[str, Any] = {}
    for name, fuzz in targets.items():
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="fd-fuzz-") as folder:
            report = fuzz(Path(folder))
        for finding in report.findings:
            print(f"--- {name}\n{finding}")
        rows[name] = {
            "cases": report.cases,
            "outcomes": dict(report.outcomes),
            "findings": report.num_findings,
            "seconds": round(time.perf_counter() - started, 1),
        }
    runs = rows["runs"]
    return {
        "seed": seed,
        "cases": sum(row["cases"] for row in rows.values()),
        "tracebacks": sum(row["findings"] for name, row in rows.items() if name != "runs"),
        "leftovers": runs["findings"],
        "targets": rows,
    }


def main() -> None:
    """Parse the command line and print one JSON object."""
    options = parser(__doc__)
    options.add_argument(
        "--cases", type=int, default=0, help=f"of each kind; default {CASES}, with --quick {QUICK_CASES}"
    )
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    logging.disable(logging.CRITICAL)  # servers complain about what is sent through them
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    emit(run(given.cases or (QUICK_CASES if given.quick else CASES), given.seed))


if __name__ == "__main__":
    main()
