"""fd-eval: pass@k of a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fd_async.cli.parser import Parser, add_config
from fd_async.cli.shared import ErrorLog, protect_keys, run_folder
from fd_async.config.load import load_config
from fd_async.errors import ConfigError

HELP = "Measure pass@k of a model on held-out statements."


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="RUN", help="run (newest checkpoint), checkpoint or export; default: model.path"
    )
    add_config(parser, required=False)
    parser.add_argument(
        "--suite", action="append", type=Path, metavar="FILE", help="JSONL file of statements; repeatable"
    )
    parser.add_argument(
        "--k", metavar="1,8,32", help="pass@k to report; sets eval.samples to the largest where it is less"
    )
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="folder for logs; default: logs below the run, or runs/eval"
    )


def execute(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Print a table of pass@k and, last, one JSON object."""
    source = run_folder(arguments.model) if arguments.model else None
    options: dict[str, tuple[str, Any]] = {}
    if arguments.suite:
        options["data.eval"] = ("--suite", [str(path) for path in arguments.suite])
    if arguments.k:
        options["eval.k"] = ("--k", _numbers(arguments.k))
    files = arguments.config or ([_config_of(source)] if source else [])
    if not files:
        raise ConfigError("name a RUN or --config FILE, e.g. fd-eval tiny_fd")
    config = load_config(files[0], files[1:], [*_samples(arguments), *arguments.set], options=options)
    protect_keys(config)
    log_dir = arguments.logs or (source / "logs" / "eval" if source else Path(config.run.dir) / "eval")
    log.path = log_dir / "error.log"
    from fd_async import app

    results = app.evaluate(config, source, log_dir=log_dir)
    for result in results:
        rates = "  ".join(f"pass@{k} {'-' if rate is None else f'{rate:.3f}'}" for k, rate in result.pass_at.items())
        print(f"{result.suite:<24} {rates}  ({result.statements} statements, {result.failed} attempts failed)")
    print(json.dumps({key: value for result in results for key, value in result.metrics().items()}))
    return 0


def _samples(arguments: argparse.Namespace) -> list[str]:
    numbers = _numbers(arguments.k) if arguments.k else []
    return [f"eval.samples={max(numbers)}"] if numbers else []


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f'--k: "{text}" is not a list of numbers, e.g. --k 1,8,32') from None


def _config_of(source: Path) -> Path:
    """Find the resolved configuration of the run that a run or checkpoint folder belongs to."""
    for folder in (source, *source.parents[:2]):
        if (folder / "config.toml").is_file():
            return folder / "config.toml"
    raise ConfigError(f"{source} has no config.toml: add --config FILE")
