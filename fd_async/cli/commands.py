"""What each command does; every function returns the exit code."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fd_async.cli.plan import plan
from fd_async.config.load import dump_toml, load_config
from fd_async.config.schema import RunConfig
from fd_async.errors import ConfigError, PreflightError
from fd_async.telemetry.redact import protect, protect_environment, redact

if TYPE_CHECKING:
    from fd_async.preflight import Finding

STARTED = ("ledger.db", "metrics.jsonl", "checkpoints")
"""What a run folder holds once the run has begun; a folder without them may be used again."""


class ErrorLog:
    """Where the traceback of a failed command goes; nowhere until the run folder is known."""

    def __init__(self) -> None:
        self.path: Path | None = None

    def write(self, error: BaseException) -> Path | None:
        """Append the traceback; return the file, or None where there is none."""
        if self.path is None:
            return None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(time.strftime("%Y-%m-%d %H:%M:%S\n"))
                file.write(redact("".join(traceback.format_exception(error))))
        except OSError as failure:
            print(f"cannot write {self.path}: {failure.strerror}", file=sys.stderr)
            return None
        return self.path


def run(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Train; refuse to mix with an earlier run of the same name."""
    if arguments.replay is not None:
        return _replay(arguments, log)
    options: dict[str, tuple[str, Any]] = {}
    if arguments.run is not None:
        options["run.name"] = ("--run", arguments.run)
    if arguments.max_steps is not None:
        options["run.max_steps"] = ("--max-steps", arguments.max_steps)
    config = load_config(*_files(arguments), arguments.set, options=options)
    run_dir = Path(config.run.dir) / config.run.name
    if arguments.dry_run:
        print(dump_toml(config) + "\n" + "".join(f"# {line}\n" for line in plan(config, run_dir)), end="")
        return 0
    _refuse_mixing(run_dir, arguments.resume)
    _protect_keys(config)
    log.path = run_dir / "logs" / "error.log"
    from fd_async import app

    code = app.run(config, run_dir, arguments.resume)
    if config.telemetry.report:
        _report(run_dir, log)
    return code


def _replay(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Repeat a run from its ledger; 0 when everything is equal bit for bit, 1 when something differs."""
    more = (arguments.resume, arguments.max_steps)
    if arguments.config or arguments.set or arguments.dry_run or any(value is not None for value in more):
        raise ConfigError("--replay repeats a run as it was: only --run NAME goes with it")
    recorded = _run_folder(arguments.replay)
    name = arguments.run or f"{recorded.resolve().name}-replay"
    config = load_config(recorded / "config.toml", [], [], options={"run.name": ("--run", name)})
    run_dir = Path(config.run.dir) / config.run.name
    if run_dir.exists() and any((run_dir / entry).exists() for entry in STARTED):
        raise ConfigError(f"{run_dir} holds a run already: name the replay with --run, or delete it")
    log.path = run_dir / "logs" / "error.log"
    from fd_async import app

    result = app.replay(config, recorded, run_dir)
    print(result.text)
    return 1 if result.difference else 0


def _report(run_dir: Path, log: ErrorLog) -> None:
    """Write the report; the run is done, so its exit code stands even where this fails."""
    from fd_async.viewer.report import write_report

    try:
        print(f"report: {write_report(run_dir)}")
    except Exception as error:
        print(
            f"no report: {error} (traceback in {log.write(error)}; again with bin/fd-view {run_dir})", file=sys.stderr
        )


def _files(arguments: argparse.Namespace) -> tuple[Path, list[Path]]:
    """Return the main file and the overlays; a resumed run brings its own."""
    if arguments.config:
        return arguments.config[0], arguments.config[1:]
    if arguments.resume is None:
        raise ConfigError("--config FILE is missing, e.g. --config configs/tiny_fd.toml")
    if arguments.run is None:
        raise ConfigError("--resume needs --config FILE or --run NAME")
    return _run_folder(arguments.run) / "config.toml", []


def _protect_keys(config: RunConfig) -> None:
    """Keep the keys out of all that is printed and written, also those whose variables do not look like a key's."""
    protect_environment()
    tables = (config.feedback, config.fallback, config.verifier)
    for name in (config.policy.servers_key_env, *(table.api_key_env for table in tables)):
        protect(os.environ.get(name, ""), name)


def _refuse_mixing(run_dir: Path, resume: int | bool | None) -> None:
    if resume is None and has_begun(run_dir):
        raise ConfigError(
            f"{run_dir} holds an earlier run: add --resume to continue it, take another name with --run, or delete it"
        )
    if resume is not None and not any((run_dir / name).exists() for name in STARTED):
        raise ConfigError(f"{run_dir} holds no run to continue: leave --resume out, or name the run with --run")


def has_begun(run_dir: Path) -> bool:
    """Say whether the folder holds anything of value; a start that was refused leaves nothing of it."""
    from fd_async.data.ledger import is_empty

    ledger, metrics, checkpoints = (run_dir / name for name in STARTED)
    return (
        (metrics.exists() and metrics.stat().st_size > 0)
        or (checkpoints.is_dir() and any(checkpoints.iterdir()))
        or (ledger.exists() and not is_empty(ledger))
    )


def check(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Print what the configuration needs and whether it is there."""
    from fd_async import preflight

    config = load_config(arguments.config[0], arguments.config[1:], arguments.set)
    _protect_keys(config)
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


def _print_finding(finding: Finding, width: int) -> None:
    print(f"{finding.state:<8}{finding.name:<{width + 2}}{finding.found}", flush=True)
    if finding.advice:
        print(f"{'':<{width + 10}}-> {finding.advice}", flush=True)


def evaluate(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Print a table of pass@k and, last, one JSON object."""
    source = _run_folder(arguments.model) if arguments.model else None
    options: dict[str, tuple[str, Any]] = {}
    if arguments.suite:
        options["data.eval"] = ("--suite", [str(path) for path in arguments.suite])
    if arguments.k:
        options["eval.k"] = ("--k", _numbers(arguments.k))
    files = arguments.config or ([_config_of(source)] if source else [])
    if not files:
        raise ConfigError("name a RUN or --config FILE, e.g. fd-eval tiny_fd")
    config = load_config(files[0], files[1:], [*_samples(arguments), *arguments.set], options=options)
    _protect_keys(config)
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


def export(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Write the model of a checkpoint where other tools load it."""
    run_dir = _run_folder(arguments.run)
    log.path = run_dir / "logs" / "error.log"
    from fd_async import app

    print(f"wrote {app.export(run_dir, arguments.step, arguments.to)}")
    return 0


def view(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Write report.html anew from what the run has kept."""
    run_dir = _run_folder(arguments.run)
    log.path = run_dir / "logs" / "error.log"
    from fd_async.viewer.report import write_report

    out = arguments.out or run_dir / "report.html"
    write_report(run_dir, out)
    print(f"wrote {out}")
    return 0


def _run_folder(name: str) -> Path:
    """Take a folder, or the name of a run below the usual folder of runs."""
    runs = Path(msgspec.structs.fields(RunConfig)[0].default.dir)
    for folder in (Path(name), runs / name):
        if folder.is_dir():
            return folder
    known = sorted(entry.name for entry in runs.iterdir() if entry.is_dir()) if runs.is_dir() else []
    raise ConfigError(f"there is no run {name}" + (f"; {runs}/ has {', '.join(known)}" if known else ""))
