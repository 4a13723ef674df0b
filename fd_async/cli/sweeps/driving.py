"""The runs of a sweep in order, each a process of its own.

look ─▶ done ──────────────────────────────┐
  ├──▶ start / resume ─▶ fd-run ─▶ look ───┴─▶ fd-eval for each evaluation ─▶ next
  └──▶ starts from a run that failed: skipped
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import Literal

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from fd_async.cli.sweeps.document import Evaluation
from fd_async.cli.sweeps.jobs import Job
from fd_async.cli.sweeps.processes import Ended, Processes
from fd_async.cli.sweeps.standing import Standing, is_evaluated, look
from fd_async.config.schema import RunConfig, Verifier
from fd_async.errors import CheckpointError, ConfigError, FdError
from fd_async.learner.checkpoints import resolve_init_from

INTERRUPTED = 130
_ALARM = 7
"""Exit code of a run that an alarm ended; it is done."""
Say = Callable[[str], None]


class Outcome(Struct, frozen=True):
    """What became of one run."""

    job: Job
    state: Literal["done", "failed", "skipped", "interrupted"]
    text: str = ""
    code: int = 0
    """Exit code that this run gives the sweep."""


class Sweeping:
    """One call of `fd-sweep`."""

    def __init__(self, processes: Processes, say: Say, *, keep_going: bool = False) -> None:
        self._processes, self._say, self._keep_going = processes, say, keep_going

    async def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run all jobs that are not done; end at the first failure unless told to keep going."""
        outcomes: list[Outcome] = []
        lost: set[str] = set()
        async with self._processes.listening():
            for number, job in enumerate(jobs, start=1):
                if self._processes.asked.is_set():
                    break
                if job.after in lost:
                    outcome = Outcome(job, "skipped", f"starts from {job.after}, which is not there")
                else:
                    outcome = await self._one(job, f"{number}/{len(jobs)} {job.name}")
                outcomes.append(outcome)
                if outcome.state != "done":
                    lost.add(job.name)
                if outcome.state != "done" or outcome.code:
                    self._say(f"{job.name}: {outcome.state}: {outcome.text}")
                if outcome.state == "interrupted" or (outcome.code and not self._keep_going):
                    break
        return outcomes

    async def check(self, jobs: Sequence[Job]) -> int:
        """Run `fd-check` for every configuration once and return the worst exit code.

        The verifier is tried once for each [verifier]; the others are only looked at.
        """
        worst = 0
        seen: list[RunConfig] = []
        tried: list[Verifier] = []
        async with self._processes.listening():
            for job in jobs:
                config = job.config
                checked = _without_name(config)
                if checked in seen or self._processes.asked.is_set():
                    continue
                seen.append(checked)
                quick = ["--quick"] if config.verifier in tried else []
                tried.append(config.verifier)
                self._say(f"fd-check of {job.name}{' --quick, the verifier has been tried' if quick else ''}")
                ended = await self._processes.run(
                    ["check", *job.check_arguments, *quick], shutdown_s=config.run.shutdown_s
                )
                if ended.code:
                    self._say(f"{job.name}: fd-check: {ended.text}")
                worst = max(worst, ended.code)
        return INTERRUPTED if self._processes.asked.is_set() else worst

    async def _one(self, job: Job, title: str) -> Outcome:
        try:
            standing = await anyio.to_thread.run_sync(look, job)
            outcome = await self._train(job, standing, title)
        except FdError as error:
            return Outcome(job, "failed", str(error).splitlines()[-1], error.exit_code)
        if outcome.state != "done":
            return outcome
        codes = []
        for each in job.entry.evals:
            ended = await self._evaluate(job, each, title)
            if self._processes.asked.is_set():
                return Outcome(job, "interrupted", "during fd-eval; the same command continues", INTERRUPTED)
            if ended is not None and ended.code:
                codes.append((ended.code, f"{outcome.text}; fd-eval: {ended.text}"))
        code, text = max(codes, default=(0, outcome.text))
        return Outcome(job, "done", text, code)

    async def _train(self, job: Job, standing: Standing, title: str) -> Outcome:
        """Run `fd-run` where the run is not done."""
        if standing.kind == "refused":
            raise ConfigError(standing.text)
        if standing.kind == "done":
            self._say(f"{title}: {standing}")
            return Outcome(job, "done", str(standing))
        if job.start is not None:
            await anyio.to_thread.run_sync(_find_start, job)
        arguments = ["run", *job.arguments, *(["--resume"] if standing.kind == "resume" else [])]
        self._say(f"{title}: {standing}: bin/fd-{shlex.join(arguments)}")
        ended = await self._processes.run(arguments, shutdown_s=job.config.run.shutdown_s)
        if self._processes.asked.is_set():
            after = await anyio.to_thread.run_sync(look, job)
            return Outcome(job, "interrupted", f"{after}; the same command continues", INTERRUPTED)
        if ended.code not in (0, _ALARM):
            return Outcome(job, "failed", ended.text, ended.code)
        after = await anyio.to_thread.run_sync(look, job)
        if after.kind != "done":
            text = f"fd-run ended with {ended.code}, and yet {job.run_dir} says: {after} {after.text}".strip()
            return Outcome(job, "failed", text, 1)
        self._say(f"{title}: {after}")
        return Outcome(job, "done", str(after))

    async def _evaluate(self, job: Job, each: Evaluation, title: str) -> Ended | None:
        """Run `fd-eval` where its result is not there; it continues its own earlier calls."""
        if await anyio.to_thread.run_sync(is_evaluated, job, each):
            return None
        arguments = evaluation_arguments(job, each)
        self._say(f"{title}: bin/fd-{shlex.join(arguments)}")
        return await self._processes.run(arguments, shutdown_s=job.config.run.shutdown_s)


def evaluation_arguments(job: Job, each: Evaluation) -> list[str]:
    """Return `eval RUN ...`."""
    suites = [part for suite in each.suites for part in ("--suite", suite)]
    step = ["--step", str(each.step)] if each.step is not None else []
    tools = [] if each.tools else ["--no-tools"]
    k = ",".join(map(str, each.k))
    return ["eval", str(job.run_dir), *step, *suites, "--samples", str(each.samples), "--k", k, *tools]


def worst_code(outcomes: Sequence[Outcome], asked: bool) -> int:
    """Return the exit code of the sweep."""
    return INTERRUPTED if asked else max((outcome.code for outcome in outcomes), default=0)


def _without_name(config: RunConfig) -> RunConfig:
    """Return what two runs share of which one alone needs to be checked."""
    return msgspec.structs.replace(
        config,
        run=msgspec.structs.replace(config.run, name="", seed=0),
        model=msgspec.structs.replace(config.model, init_from=""),
    )


def _find_start(job: Job) -> None:
    try:
        resolve_init_from(str(job.start))
    except CheckpointError as error:
        raise CheckpointError(f"starts from {job.start}, and {job.after} left no complete checkpoint there") from error
