"""The runs of a sweep with seeds, prefix and resolved configurations: what is run, where, from which checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tomli_w
from msgspec import Struct

from fd_async.cli.sweeps.document import Entry, Sweep, find_config
from fd_async.config.load import load_config
from fd_async.config.schema import RunConfig
from fd_async.errors import ConfigError
from fd_async.learner.checkpoints import checkpoint_name


class Job(Struct, frozen=True, kw_only=True):
    """One run."""

    name: str
    """With prefix and seed: the name of its folder."""
    entry: Entry
    config: RunConfig
    """As `fd-run` will resolve it."""
    run_dir: Path
    files: list[Path]
    sets: list[str]
    """`table.key=value`, as `--set` takes them."""
    after: str = ""
    """Name of the job that it starts from."""
    start: Path | None = None
    """Checkpoint, or run with its newest, that it starts from."""

    @property
    def arguments(self) -> list[str]:
        """What `fd-run` is given."""
        return [*self._config_arguments(self.sets), "--run", self.name]

    @property
    def check_arguments(self) -> list[str]:
        """What `fd-check` is given: without the checkpoint that an earlier run has yet to write."""
        return self._config_arguments([*self.sets, "model.init_from="] if self.after else self.sets)

    def _config_arguments(self, sets: Sequence[str]) -> list[str]:
        files = [part for file in self.files for part in ("--config", str(file))]
        return files + [part for text in sets for part in ("--set", text)]


def make_jobs(
    sweep: Sweep,
    *,
    sets: Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    prefix: str = "",
) -> list[Job]:
    """Resolve every configuration; the first seed of all runs comes before the second.

    Args:
        sweep: the file.
        sets: `table.key=value` for all runs, stronger than the sweep.
        only: names of the sweep; empty takes all.
        seeds: each run once per seed, as NAME_seed0; empty takes the configuration's own seed and NAME.
        prefix: in front of every name.

    Raises:
        ConfigError: one line per problem, with the run's name.
    """
    known = [entry.name for entry in sweep.runs]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ConfigError(f"--only: the sweep has no run {', '.join(unknown)}; name some of {', '.join(known)}")
    jobs: dict[str, Job] = {}
    problems: dict[str, list[str]] = {}
    """Line -> runs: what is wrong with --set is wrong with all."""
    for seed in seeds or [None]:
        for entry in sweep.runs:
            try:
                job = _job(entry, sets, seed, prefix, jobs)
                jobs[job.name] = job
                lines = list(_lost_checkpoints(job, jobs))
            except ConfigError as error:
                lines = str(error).splitlines()
            for line in lines:
                problems.setdefault(line, []).append(entry.name)
    if problems:
        raise ConfigError("\n".join(f"run {_listed(names)}: {line}" for line, names in problems.items()))
    return [job for job in jobs.values() if not only or job.entry.name in only]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(names))


def _job(entry: Entry, sets: Sequence[str], seed: int | None, prefix: str, earlier: dict[str, Job]) -> Job:
    def full(name: str) -> str:
        return f"{prefix}{name}" + (f"_seed{seed}" if seed is not None else "")

    name = full(entry.name)
    files = [found for text in entry.config if (found := find_config(text)) is not None]
    given = [f"{table}.{key}={_toml(value)}" for table, keys in entry.set.items() for key, value in keys.items()]
    given += sets
    if seed is not None:
        given.append(f"run.seed={seed}")
    start = None
    if entry.after:
        if full(entry.after) not in earlier:
            raise ConfigError(f"starts from {entry.after}, whose configuration is wrong")
        start = earlier[full(entry.after)].run_dir
        if entry.after_step is not None:
            start = start / "checkpoints" / checkpoint_name(entry.after_step)
    # The checkpoint may not be there yet, so it joins the configuration after the search for files.
    searched = [*given, "model.init_from="] if start else given
    config = load_config(files[0], files[1:], searched, options={"run.name": ("--run", name)})
    if start:
        config = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, init_from=str(start)))
        given.append(f"model.init_from={_toml(str(start))}")
    return Job(
        name=name,
        entry=entry,
        config=config,
        run_dir=Path(config.run.dir) / config.run.name,
        files=files,
        sets=given,
        after=full(entry.after) if entry.after else "",
        start=start,
    )


def _toml(value: Any) -> str:
    return tomli_w.dumps({"value": value}).partition("=")[2].strip()


def _lost_checkpoints(job: Job, jobs: dict[str, Job]) -> Iterator[str]:
    """Say which checkpoints are asked for that their run does not write, or removes."""
    wanted = [(job.after, job.entry.after_step, "starts from")] if job.after else []
    wanted += [(job.name, each.step, "evaluates") for each in job.entry.evals]
    for name, step, verb in wanted:
        problem = _why_lost(jobs[name].config, step) if step else ""
        if problem:
            yield f"{verb} step {step} of {jobs[name].entry.name}, {problem}"


def _why_lost(config: RunConfig, step: int) -> str:
    every, last = config.checkpoint.every_steps, config.run.max_steps
    if step > last:
        return f"which ends at step {last} (run.max_steps)"
    written = sorted({*(range(every, last + 1, every) if every else ()), last})
    if step not in written:
        return f"which writes a checkpoint every {every} steps and at the end (checkpoint.every_steps)"
    num_later = sum(later > step for later in written)
    if num_later >= config.checkpoint.keep_last:
        return (
            f"which keeps the last {config.checkpoint.keep_last} checkpoints alone: "
            f"set checkpoint.keep_last to {num_later + 1} or more"
        )
    return ""
