"""fd-sweep: the runs of a figure, one after another."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fd_async.cli.parser import Parser
from fd_async.cli.shared import ErrorLog
from fd_async.errors import ConfigError

if TYPE_CHECKING:
    from fd_async.cli.sweeps.jobs import Job
    from fd_async.cli.sweeps.standing import Standing

HELP = "Run a list of experiments in order; the same call again continues."


def add_arguments(parser: Parser) -> None:
    parser.add_argument("sweep", type=Path, metavar="SWEEP.toml", help="e.g. configs/sweeps/figure_02.toml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="TABLE.KEY=VALUE",
        help="one key of every run, stronger than the sweep; repeatable",
    )
    parser.add_argument("--only", type=_names, default=[], metavar="NAME,...", help="these runs of the sweep alone")
    parser.add_argument(
        "--seeds", type=_seeds, default=[], metavar="0,1,2", help="every run once per seed, as NAME_seed0, ..."
    )
    parser.add_argument("--prefix", default="", metavar="P", help="in front of every run's name")
    parser.add_argument("--dry-run", action="store_true", help="print what would happen to each run, then stop")
    parser.add_argument("--check", action="store_true", help="fd-check of every configuration first; end if one fails")
    parser.add_argument(
        "--keep-going", action="store_true", help="after a run that failed, go on with those that do not need it"
    )


def execute(arguments: argparse.Namespace, log: ErrorLog) -> int:
    """Run what is not done; print one line per run and the command that draws the figure."""
    from fd_async.cli.sweeps.document import read_sweep
    from fd_async.cli.sweeps.jobs import make_jobs
    from fd_async.cli.sweeps.standing import look

    sweep = read_sweep(arguments.sweep)
    jobs = make_jobs(sweep, sets=arguments.set, only=arguments.only, seeds=arguments.seeds, prefix=arguments.prefix)
    standings = {job.name: look(job) for job in jobs}
    if arguments.dry_run:
        from fd_async.cli.sweeps.telling import plan_lines

        for line in plan_lines(sweep.title or str(arguments.sweep), jobs, standings):
            print(line)
    refused = [f"run {name}: {standing.text}" for name, standing in standings.items() if standing.kind == "refused"]
    if refused:
        raise ConfigError("\n".join(refused))
    _need_starts(jobs, standings)
    return 0 if arguments.dry_run else _drive(arguments, jobs)


def _drive(arguments: argparse.Namespace, jobs: Sequence[Job]) -> int:
    import anyio

    from fd_async.cli.sweeps.driving import Sweeping, worst_code
    from fd_async.cli.sweeps.processes import Processes
    from fd_async.cli.sweeps.telling import report_command, result_lines

    async def work() -> int:
        processes = Processes()
        sweeping = Sweeping(processes, _say, keep_going=arguments.keep_going)
        if arguments.check and (code := await sweeping.check(jobs)):
            return code
        outcomes = await sweeping.run(jobs)
        for line in result_lines(outcomes, jobs):
            print(line)
        command = report_command(arguments.sweep.stem, jobs)
        if command:
            print(f"the figure: {command}")
        return worst_code(outcomes, processes.asked.is_set())

    return anyio.run(work)


def _need_starts(jobs: Sequence[Job], standings: dict[str, Standing]) -> None:
    """Refuse a run whose start is neither there nor made by this call."""
    from fd_async.errors import CheckpointError
    from fd_async.learner.checkpoints import resolve_init_from

    problems = []
    for job in jobs:
        if job.start is None or standings[job.name].kind == "done":
            continue
        maker = standings.get(job.after)
        if maker is not None and maker.kind != "done":
            continue
        try:
            resolve_init_from(str(job.start))
        except CheckpointError as error:
            cure = "" if maker else f"; add {job.entry.after} to --only"
            problems.append(f"run {job.name}: starts from {job.start}: {error}{cure}")
    if problems:
        raise ConfigError("\n".join(problems))


def _say(text: str) -> None:
    print(f"fd-sweep: {text}", file=sys.stderr, flush=True)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names, e.g. first,second")
    return names


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different numbers, e.g. 0,1,2")
    return [int(part) for part in parts]
