"""What a sweep prints: the plan before, the numbers and the command of the figure after."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fd_async.cli.sweeps.document import Evaluation
from fd_async.cli.sweeps.driving import Outcome, evaluation_arguments
from fd_async.cli.sweeps.jobs import Job
from fd_async.cli.sweeps.standing import Standing, is_evaluated, read_result
from fd_async.telemetry.sinks import read_rows


def plan_lines(title: str, jobs: Sequence[Job], standings: Mapping[str, Standing]) -> Iterator[str]:
    """Say what would happen to each run, in order, and what is left to do."""
    done = sum(standings[job.name].kind == "done" for job in jobs)
    yield f"{title}: {len(jobs)} run{'s' * (len(jobs) > 1)}, {done} done"
    steps, usd, unknown = 0, 0.0, False
    for number, job in enumerate(jobs, start=1):
        standing = standings[job.name]
        yield f"{number:>3}  {job.name}: {standing}"
        if standing.kind == "refused":
            yield f"     {standing.text}"
            continue
        if standing.kind != "done":
            left = job.config.run.max_steps - standing.step
            cost = usd_of(job, left)
            steps, usd, unknown = steps + left, usd + (cost or 0.0), unknown or cost is None
            about = "price unknown" if cost is None else f"feedback at most about ${cost:,.0f}" if cost else "no bill"
            yield f"     {left} steps, {about}; into {job.run_dir}"
            yield f"     bin/fd-run {shlex.join(job.arguments)}" + (" --resume" if standing.kind == "resume" else "")
            if job.start is not None:
                yield f"     starts from {job.start}"
        for each in job.entry.evals:
            state = "done" if standing.kind == "done" and is_evaluated(job, each) else "to do"
            yield f"     {state}: bin/fd-{shlex.join(evaluation_arguments(job, each))}"
    plus = " and what has no price" if unknown else ""
    yield f"left: {steps:,} steps, feedback at most about ${usd:,.0f}{plus}"


def usd_of(job: Job, steps: int) -> float | None:
    """Return what feedback for the steps costs at most, about; None where prices are not known."""
    from fd_async.preflight.costs import usd_per_step

    usd = usd_per_step(job.config)
    if usd is None:
        return None
    return min(usd * steps, job.config.feedback.max_usd or float("inf")) if usd else 0.0


def result_lines(outcomes: Sequence[Outcome], jobs: Sequence[Job]) -> Iterator[str]:
    """Say of each run how it ended and its last numbers of held-out evaluation."""
    known = {outcome.job.name: outcome for outcome in outcomes}
    width = max(len(job.name) for job in jobs)
    for job in jobs:
        outcome = known.get(job.name)
        how = "not reached" if outcome is None else outcome.text
        if outcome is not None and outcome.state != "done":
            how = f"{outcome.state}: {how}"
        numbers = "; ".join([*_trained(job.run_dir), *(text for each in job.entry.evals for text in _later(job, each))])
        yield f"{job.name:<{width}}  {how}" + (f"; {numbers}" if numbers else "")


def report_command(stem: str, jobs: Sequence[Job]) -> str:
    """Return the command that draws the runs there are; empty where there are none."""
    groups: dict[str, list[str]] = {}
    for job in jobs:
        if (job.run_dir / "metrics.jsonl").is_file():
            groups.setdefault(job.entry.label or job.entry.name, []).append(str(job.run_dir))
    if not groups:
        return ""
    named = [f"{label}={','.join(folders)}" for label, folders in groups.items()]
    return shlex.join(["bin/fd-report", *named, "--to", str(jobs[0].run_dir.parent / "figures" / stem)])


def _trained(run_dir: Path) -> Iterator[str]:
    """Yield the newest evaluation of training."""
    rows = [(row, found) for row in read_rows(run_dir / "metrics.jsonl") if (found := _pass_at(row))]
    if rows:
        row, found = rows[-1]
        yield f"step {row.get('step')}: " + ", ".join(f"{key} {value:.4f}" for key, value in found.items())


def _pass_at(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: value
        for key, value in row.items()
        if key.startswith("eval/") and "/pass@" in key and isinstance(value, int | float)
    }


def _later(job: Job, each: Evaluation) -> Iterator[str]:
    """Yield the numbers of `fd-eval`."""
    for suite, pass_at in read_result(job, each).items():
        numbers = ", ".join(f"pass@{k} {value:.4f}" for k, value in pass_at.items())
        at = "newest step" if each.step is None else f"step {each.step}"
        yield f"fd-eval {suite}, {at}: {numbers}"
