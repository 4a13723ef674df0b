"""The arguments of every command."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

COMMANDS = ("run", "check", "eval", "export", "view")


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; a wrong argument is a wrong configuration (exit 2)."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser(command: str) -> Parser:
    """Build the parser of one command of COMMANDS."""
    parser = Parser(prog=f"fd-{command}", description=_HELP[command], allow_abbrev=False)
    _ARGUMENTS[command](parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_config(parser: Parser, required: bool) -> None:
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


def _run(parser: Parser) -> None:
    _add_config(parser, required=False)
    parser.add_argument("--run", metavar="NAME", help="name of the run, a folder below run.dir; default: FILE's stem")
    parser.add_argument(
        "--resume",
        nargs="?",
        type=_step,
        const=True,
        metavar="STEP",
        help="continue the run from its newest checkpoint, or from STEP; without --config with the run's own",
    )
    parser.add_argument(
        "--replay",
        metavar="RUN",
        help="repeat a run from its ledger, without vLLM and verifier, into RUN-replay or --run NAME, and compare",
    )
    parser.add_argument("--max-steps", type=_step, metavar="N", help="the same as --set run.max_steps=N")
    parser.add_argument("--dry-run", action="store_true", help="print the whole configuration and the plan, then stop")


def _check(parser: Parser) -> None:
    _add_config(parser, required=True)
    parser.add_argument("--quick", action="store_true", help="only look; do not start the verifier and try it")


def _eval(parser: Parser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="RUN", help="run (newest checkpoint), checkpoint or export; default: model.path"
    )
    _add_config(parser, required=False)
    parser.add_argument(
        "--suite", action="append", type=Path, metavar="FILE", help="JSONL file of statements; repeatable"
    )
    parser.add_argument(
        "--k", metavar="1,8,32", help="pass@k to report; sets eval.samples to the largest where it is less"
    )
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="folder for logs; default: logs below the run, or runs/eval"
    )


def _export(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, or name of a run below runs/")
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="new folder in Hugging Face format")
    parser.add_argument("--step", type=_step, metavar="N", help="checkpoint; default: the newest")


def _view(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder, or name of a run below runs/")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: report.html in the run folder")


def _step(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps")
    return int(text)


_HELP = {
    "run": "Train a prover as a configuration says.",
    "check": "Check whether this machine can run a configuration, and say how to get what is missing.",
    "eval": "Measure pass@k of a model on held-out statements.",
    "export": "Write the model of a checkpoint as a Hugging Face folder.",
    "view": "Write the report of a run: curves, attempts, feedback.",
}

_ARGUMENTS = {"run": _run, "check": _check, "eval": _eval, "export": _export, "view": _view}
