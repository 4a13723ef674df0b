"""fd-eval: pass@k of a model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fd_async.cli.parser import Parser, add_config, step
from fd_async.cli.shared import ErrorLog, protect_keys, run_folder
from fd_async.config.load import load_config
from fd_async.config.schema import RunConfig
from fd_async.errors import ConfigError

if TYPE_CHECKING:
    from fd_async.app import Evaluated

_UNREAD = ("model.init_from",)
"""Read for step 0 alone, and it may have moved: `app.subject` finds it."""
HELP = "Measure pass@k of a model on held-out statements; the same call again continues."


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "model", nargs="?", metavar="RUN", help="run (newest checkpoint), checkpoint or export; default: model.path"
    )
    parser.add_argument("--step", type=step, metavar="N", help="checkpoint of RUN; 0 is the model that it starts from")
    add_config(parser, required=False)
    parser.add_argument(
        "--suite",
        action="append",
        metavar="SUITE",
        help="minif2f, leanworkbook, or a source as in data.eval; repeatable",
    )
    parser.add_argument("--samples", type=int, metavar="N", help="attempts per statement; the same as eval.samples")
    parser.add_argument(
        "--k",
        metavar="1,8,32",
        help="pass@k to report; without --samples it raises eval.samples to the largest",
    )
    parser.add_argument("--no-tools", action="store_true", help="the same as --set rollout.tools=false")
    parser.add_argument("--retry-failed", action="store_true", help="make attempts again that infrastructure failed")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the evaluation; default: one below RUN/evals or runs/evals"
    )


def execute(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Print a table of pass@k and, last, one JSON object."""
    source = run_folder(arguments.model) if arguments.model else None
    config = _config(arguments, source)
    protect_keys(config)
    from fd_async import app

    subject = app.find_subject(config, source, arguments.step)
    folder = app.evaluation_folder(config, subject, arguments.out)
    log.path = folder / "logs" / "error.log"
    _say(f"evaluation {folder}")
    found = app.evaluate(config, subject, folder, retry_failed=arguments.retry_failed, say=_say)
    print(table(found))
    print(json.dumps({key: value for result in found.results for key, value in result.metrics().items()}))
    return 0


def table(found: Evaluated) -> str:
    """Return one line per suite and k: the estimate, its 95 % interval, and what it rests on."""
    rows = [["suite", "k", "pass@k", "95 % interval", "statements", "samples", "judged", "failed"]]
    for result in found.results:
        for k, estimate in result.pass_at.items():
            usable = result.num_usable(k)
            of = f"{usable}" if usable == len(result.counts) else f"{usable} of {len(result.counts)}"
            rows.append([
                result.suite, str(k), f"{estimate.value:.4f}" if estimate else "-",
                f"{estimate.low:.4f} to {estimate.high:.4f}" if estimate else "-",
                of, str(result.samples), str(result.num_judged), str(result.num_failed),
            ])  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    for result in found.results:
        if result.failures:
            causes = ", ".join(f"{cause} {num}" for cause, num in sorted(result.failures.items()))
            lines.append(f"{result.suite}: no verdict, and counted neither as solved nor as unsolved: {causes}")
            least = ", ".join(f"pass@{k} {result.if_unsolved(k):.4f}" for k in result.pass_at if k <= result.samples)
            lines.append(f"{result.suite}: were all of these unsolved: {least}")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"fd-eval: {text}", file=sys.stderr, flush=True)


def _config(arguments: argparse.Namespace, source: Path | None) -> RunConfig:
    """Read the configuration that is named, or that of the run; the options are the last word."""
    files = arguments.config or ([_config_of(source)] if source else [])
    if not files:
        raise ConfigError("name a RUN or --config FILE, e.g. fd-eval tiny_fd")
    options: dict[str, tuple[str, Any]] = {}
    if arguments.suite:
        options["data.eval"] = ("--suite", arguments.suite)
    if arguments.samples is not None:
        options["eval.samples"] = ("--samples", arguments.samples)
    numbers = _numbers(arguments.k)
    if numbers:
        options["eval.k"] = ("--k", numbers)
    sets = [*arguments.set, *(["rollout.tools=false"] if arguments.no_tools else [])]
    if numbers and arguments.samples is None:
        asked = options | {"eval.k": ("--k", [1])}
        given = load_config(files[0], files[1:], sets, options=asked, may_be_gone=_UNREAD).eval.samples
        options["eval.samples"] = ("--k", max(given, *numbers))
    config = load_config(files[0], files[1:], sets, options=options, may_be_gone=_UNREAD)
    if arguments.suite and config.data.source:  # its test part is a suite of its own, which was not asked for
        data = msgspec.structs.replace(config.data, source="", train=config.data.train or f"{config.data.source}#train")
        config = msgspec.structs.replace(config, data=data)
    return config


def _numbers(text: str | None) -> Sequence[int]:
    if text is None:
        return []
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ConfigError(f'--k: "{text}" is not a list of numbers, e.g. --k 1,8,32') from None


def _config_of(source: Path) -> Path:
    """Find the resolved configuration of the run that a run, checkpoint or model folder belongs to."""
    for folder in (source, *source.resolve().parents[:3]):
        if (folder / "config.toml").is_file():
            return folder / "config.toml"
    raise ConfigError(f"{source} has no config.toml: add --config FILE")
