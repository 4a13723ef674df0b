"""fd-export: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from fd_async.cli.parser import Parser, step
from fd_async.cli.shared import ErrorLog, run_folder

HELP = "Write the model of a checkpoint as a Hugging Face folder."


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, or name of a run below runs/")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="new folder in Hugging Face format")
    parser.add_argument("--step", type=step, metavar="N", help="checkpoint; default: the newest")


def execute(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Write the model of a checkpoint where other tools load it."""
    run_dir = run_folder(arguments.run)
    log.path = run_dir / "logs" / "error.log"
    from fd_async import app

    print(f"wrote {app.export(run_dir, arguments.step, arguments.to)}")
    return 0
