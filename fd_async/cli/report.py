"""fd-report: the paper's figures of any runs, and Figure 1 of any attempt."""

from __future__ import annotations

import argparse
from pathlib import Path

from fd_async.cli.parser import Parser
from fd_async.cli.shared import ErrorLog, run_folder
from fd_async.errors import ConfigError

HELP = "Draw the figures of the paper for one or more runs, side by side, with their numbers."


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="[LABEL=]RUN[,RUN...]",
        help="run folder, or name of a run below runs/; several after one label are seeds: mean with band",
    )  # fmt: skip
    parser.add_argument(
        "--to", type=Path, metavar="DIR", help="folder of the report; default: figures/ in the run, or beside the runs"
    )
    parser.add_argument("--format", choices=("svg", "png"), default="svg", help="of the images; default: svg")
    parser.add_argument("--attempt", metavar="ID", help="write Figure 1 of this attempt instead, e.g. train-0000012-00")


def execute(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Write index.html with the figures and their numbers, or the page of one attempt."""
    named = [parse_group(text) for text in arguments.runs]
    folders = [folder for _, group in named for folder in group]
    out = arguments.to or (folders[0] if len(folders) == 1 else folders[0].resolve().parent) / "figures"
    if arguments.attempt is not None:
        from fd_async.viewer.figures.attempt import write_attempt

        print(f"wrote {write_attempt(folders, arguments.attempt, out)}")
        return 0
    from fd_async.viewer.figures.report import write_figures

    written = write_figures(named, out, arguments.format)
    empty = f"; without data: {', '.join(written.empty)}" if written.empty else ""
    print(f"wrote {written.index} with {written.num_figures} figures{empty}")
    return 0


def parse_group(text: str) -> tuple[str, list[Path]]:
    """Take `[LABEL=]RUN[,RUN...]` apart; a folder whose name is all of it is taken as it is.

    Raises:
        ConfigError: an empty label, an empty name, or a run that is not there.
    """
    if Path(text).is_dir():
        return "", [Path(text)]
    label, equals, names = text.partition("=") if "=" in text else ("", "", text)
    if equals and not label.strip():
        raise ConfigError(f"{text!r}: the label before = is empty; write LABEL=RUN or RUN")
    if not all(name.strip() for name in names.split(",")):
        raise ConfigError(f"{text!r}: a run is missing; write LABEL=RUN,RUN")
    return label.strip(), [run_folder(name) for name in names.split(",")]
