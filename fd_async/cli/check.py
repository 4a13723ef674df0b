"""fd-check: what a machine lacks for a configuration."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fd_async.cli.parser import Parser, add_config
from fd_async.cli.shared import ErrorLog, protect_keys
from fd_async.config.load import load_config
from fd_async.errors import ConfigError, PreflightError

if TYPE_CHECKING:
    from fd_async.preflight import Finding

HELP = "Check whether this machine can run a configuration, and say how to get what is missing."


def add_arguments(parser: Parser) -> None:
    add_config(parser, required=False)
    parser.add_argument("--quick", action="store_true", help="only look; do not start the verifier and try it")
    parser.add_argument(
        "--health",
        nargs="?",
        type=Path,
        const=Path("runs"),
        metavar="RUNS",
        help="instead: is the run below this folder (default: runs) alive? For the health check of a container",
    )


def execute(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Print what the configuration needs and whether it is there."""
    from fd_async import preflight

    if arguments.health is not None:
        return _health(arguments)
    if not arguments.config:
        raise ConfigError("--config FILE is missing, e.g. --config configs/tiny_fd.toml")
    config = load_config(arguments.config[0], arguments.config[1:], arguments.set)
    protect_keys(config)
    findings = preflight.inspect(config)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        _print_finding(finding, width)
    if not arguments.quick:
        for finding in preflight.try_verifier(config, lambda line: print(line, file=sys.stderr)):
            _print_finding(finding, width)
            findings.append(finding)
    missing = list(dict.fromkeys(finding.name for finding in findings if finding.state == "missing"))
    if missing:
        raise PreflightError(f"missing: {', '.join(missing)}")
    print("ready")
    return 0


def _health(arguments: argparse.Namespace) -> int:
    if arguments.config or arguments.set or arguments.quick:
        raise ConfigError("--health stands alone: leave out --config, --set and --quick")
    from fd_async.preflight.health import health

    finding = health(arguments.health)
    _print_finding(finding, len(finding.name))
    if finding.state == "missing":
        raise PreflightError(f"missing: {finding.name}")
    return 0


def _print_finding(finding: Finding, width: int) -> None:
    print(f"{finding.state:<8}{finding.name:<{width + 2}}{finding.found}", flush=True)
    if finding.advice:
        print(f"{'':<{width + 10}}-> {finding.advice}", flush=True)
