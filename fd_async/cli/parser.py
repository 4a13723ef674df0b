"""How arguments are read: one line says what is wrong, and is a wrong configuration (exit 2)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; a wrong argument is a wrong configuration (exit 2)."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_config(parser: Parser, required: bool) -> None:
    """Add `--config` and `--set`."""
    parser.add_argument(
        "--config",
        action="append",
        type=Path,
        default=[],
        required=required,
        metavar="FILE",
        help="TOML file; given again, an overlay whose keys replace those before, e.g. configs/feedback/self.toml",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="one key, e.g. learner.lr=1e-5; repeatable",
    )


def step(text: str) -> int:
    """Read a whole number of an option, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)
