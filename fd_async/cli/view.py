"""fd-view: what a run did, for people."""

from __future__ import annotations

import argparse
from pathlib import Path

from fd_async.cli.parser import Parser
from fd_async.cli.shared import ErrorLog, run_folder

HELP = "Write the report of a run: curves, attempts, feedback."


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, or name of a run below runs/")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the run folder")


def execute(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Write report.html anew from what the run has kept."""
    run_dir = run_folder(arguments.run)
    log.path = run_dir / "logs" / "error.log"
    from fd_async.viewer.report import write_report

    out = arguments.out or run_dir / "report.html"
    write_report(run_dir, out)
    print(f"wrote {out}")
    return 0
