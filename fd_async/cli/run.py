"""fd-run: train, continue, replay."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fd_async.cli.parser import Parser, add_config, step
from fd_async.cli.plan import plan
from fd_async.cli.shared import STARTED, ErrorLog, has_begun, protect_keys, run_folder
from fd_async.config.load import dump_toml, load_config
from fd_async.errors import ConfigError

HELP = "Train a prover as a configuration says."
Options = dict[str, tuple[str, Any]]
"""As `load_config` takes them."""
_START = "model.init_from"
"""A run that has begun may need it no more, or find it elsewhere: `app.resuming` says which."""


def add_arguments(parser: Parser) -> None:
    add_config(parser, required=False)
    parser.add_argument("--run", metavar="NAME", help="name of the run, a folder below run.dir; default: FILE's stem")
    parser.add_argument(
        "--resume",
        nargs="?",
        type=step,
        const=True,
        metavar="STEP",
        help="continue the run from its newest checkpoint, or from STEP; without --config with the run's own",
    )
    parser.add_argument(
        "--replay",
        metavar="RUN",
        help="repeat a run from its ledger, without vLLM and verifier, into RUN-replay or --run NAME, and compare",
    )
    parser.add_argument("--max-steps", type=step, metavar="N", help="the same as --set run.max_steps=N")
    parser.add_argument("--dry-run", action="store_true", help="print the whole configuration and the plan, then stop")


def execute(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Train; refuse to mix with an earlier run of the same name."""
    if arguments.replay is not None:
        return _replay(arguments, log)
    main, overlays, options = _files(arguments)
    if arguments.max_steps is not None:
        options["run.max_steps"] = ("--max-steps", arguments.max_steps)
    known = () if arguments.resume is None else (_START,)
    config = load_config(main, overlays, arguments.set, options=options, may_be_gone=known)
    run_dir = Path(config.run.dir) / config.run.name
    if arguments.dry_run:
        print(dump_toml(config) + "\n" + "".join(f"# {line}\n" for line in plan(config, run_dir)), end="")
        return 0
    _refuse_mixing(run_dir, arguments.resume)
    protect_keys(config)
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
        raise ConfigError("--replay repeats a run as it was: leave out all but --run NAME")
    recorded = run_folder(arguments.replay)
    lies = recorded.resolve()  # its file may name the folder of another machine
    options = {
        "run.dir": ("--replay", str(lies.parent)),
        "run.name": ("--run", arguments.run or f"{lies.name}-replay"),
    }
    config = load_config(recorded / "config.toml", options=options, may_be_gone=(_START,))
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


def _files(arguments: argparse.Namespace) -> tuple[Path, list[Path], Options]:
    """Return the main file, the overlays and what `--run` says; a resumed run brings its own file and is where it is.

    Its file may say where it was before it was moved, or what its folder is called in a container.
    """
    if arguments.config:
        named: Options = {} if arguments.run is None else {"run.name": ("--run", arguments.run)}
        return arguments.config[0], arguments.config[1:], named
    if arguments.resume is None:
        raise ConfigError("--config FILE is missing, e.g. --config configs/tiny_fd.toml")
    if arguments.run is None:
        raise ConfigError("--resume alone names no run: add --config FILE or --run NAME")
    found = run_folder(arguments.run)
    folder = found if found.name not in ("", "..") else found.resolve()
    place: Options = {"run.dir": ("--run", str(folder.parent)), "run.name": ("--run", folder.name)}
    for key in [text.partition("=")[0].strip() for text in arguments.set]:
        place.pop(key, None)
    return folder / "config.toml", [], place


def _refuse_mixing(run_dir: Path, resume: int | bool | None) -> None:
    if resume is None and has_begun(run_dir):
        raise ConfigError(
            f"{run_dir} holds an earlier run: add --resume to continue it, take another name with --run, or delete it"
        )
    if resume is not None and not any((run_dir / name).exists() for name in STARTED):
        raise ConfigError(f"{run_dir} holds no run to continue: leave --resume out, or name the run with --run")
