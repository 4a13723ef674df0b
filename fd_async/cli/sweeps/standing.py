"""Where a run stands, read from its folder alone."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from fd_async.cli.shared import has_begun
from fd_async.cli.sweeps.document import Evaluation
from fd_async.cli.sweeps.jobs import Job
from fd_async.config.load import dump_toml, flat
from fd_async.config.places import evaluated, suite_name
from fd_async.config.schema import RunConfig
from fd_async.learner.checkpoints import is_start, list_checkpoints
from fd_async.telemetry.sinks import read_rows

ALARM_PHASE = "ended by an alarm"
"""What status.json says of a run that an alarm ended."""
_START = "model.init_from"
FREE = {
    "run.dir", "run.stall_warn_s", "run.stall_abort_s", "run.shutdown_s", "feedback.max_usd", "fallback.max_usd",
    "checkpoint.keep_last", "checkpoint.min_free_gib",
}  # fmt: skip
"""Keys beside [telemetry] that change nothing of what is learned, such as the spend that ended a run."""


class Standing(Struct, frozen=True):
    """Where a run stands."""

    kind: Literal["start", "resume", "done", "refused"]
    step: int = 0
    """Of the newest complete checkpoint."""
    text: str = ""
    """Why it is refused, or which alarm ended it."""

    def __str__(self) -> str:
        if self.kind == "resume":
            return f"resume at step {self.step}"
        if self.kind == "done":
            return f"done, step {self.step}" + (f", ended by an alarm: {self.text}" if self.text else "")
        return self.kind


def look(job: Job) -> Standing:
    """Read the folder. Blocking, some milliseconds.

    A run is done when its newest checkpoint is that of `run.max_steps` and, where `eval.at_end` asks for it, the last
    evaluation stands in metrics.jsonl; or when an alarm ended it.
    """
    if not has_begun(job.run_dir):
        return Standing("start")
    step = max(list_checkpoints(job.run_dir / "checkpoints"), default=0)
    changed = _difference(job)
    if changed:
        return Standing("refused", step, changed)
    if step >= job.config.run.max_steps and _has_ended(job.config, job.run_dir):
        return Standing("done", step)
    status = _status(job.run_dir)
    if status.get("phase") == ALARM_PHASE and step:
        return Standing("done", step, str(status.get("error") or "no text"))
    return Standing("resume", step)


def is_evaluated(job: Job, each: Evaluation) -> bool:
    """Say whether the evaluation was made, from what `fd-eval` left."""
    return read_result(job, each).keys() >= {suite_name(suite) for suite in each.suites}


def read_result(job: Job, each: Evaluation) -> dict[str, dict[str, float]]:
    """Return suite -> k -> pass@k of an evaluation, from RUN/evals/*/result.json; {} where it is still to be made."""
    step = each.step
    if step is None:
        step = max(list_checkpoints(job.run_dir / "checkpoints"), default=None)
    names = {suite_name(suite) for suite in each.suites}
    read: dict[str, dict[str, float]] = {}
    for path in sorted((job.run_dir / "evals").glob("*/result.json")):
        try:
            result = msgspec.json.decode(path.read_bytes(), type=_Result)
        except (OSError, msgspec.MsgspecError):
            continue  # written by something else
        if result.step != step:
            continue
        for suite in result.suites:
            if suite.suite in names and _fits(suite, job, each):
                read[suite.suite] = {str(k): suite.pass_at[str(k)][0] for k in each.k if str(k) in suite.pass_at}
    return read


class _Suite(Struct, frozen=True):
    """One suite of a result.json, what is needed of it."""

    suite: str
    samples: int
    temperature: float
    tools: bool
    failed: int
    pass_at: dict[str, tuple[float, float, float]]


class _Result(Struct, frozen=True):
    suites: list[_Suite]
    step: int | None = None


def _fits(suite: _Suite, job: Job, each: Evaluation) -> bool:
    """Say whether a result is what was asked for; a k may be missing where too few attempts got a verdict."""
    return (
        suite.samples >= each.samples
        and suite.tools == (each.tools and job.config.rollout.tools)
        and suite.temperature == job.config.eval.temperature
        and (suite.failed > 0 or {str(k) for k in each.k} <= suite.pass_at.keys())
    )


def _difference(job: Job) -> str:
    """Say in which key the folder's configuration is another one; empty where it is the same."""
    path = job.run_dir / "config.toml"
    try:
        before = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{path} cannot be read ({error}), so nobody knows what the run is; {_ADVICE}"
    now, before = _below(flat(tomllib.loads(dump_toml(job.config)))), _below(flat(before))
    # A key that an older version did not know had its default there.
    usual = flat(msgspec.to_builtins(RunConfig(model=job.config.model, data=job.config.data)))
    if before.get(_START) and is_start(str(now[_START]), str(before[_START])):
        now[_START] = before[_START]  # the run has written down which checkpoint of the other it was
    changed = [
        key
        for key in sorted(now.keys() | before.keys())
        if now.get(key) != before.get(key, usual.get(key)) and key not in FREE and not key.startswith("telemetry.")
    ]
    if not changed:
        return ""
    key = changed[0]
    more = f" (and {len(changed) - 1} more: {', '.join(changed[1:])})" if len(changed) > 1 else ""
    there = _shown(before[key]) if key in before else "not set"
    here = _shown(now[key]) if key in now else "not set"
    return f"{path} has {key} = {there}, the sweep says {here}{more}; {_ADVICE}"


_ADVICE = "name other runs with --prefix, or delete the folder"


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


def _below(keys: dict[str, Any]) -> dict[str, Any]:
    """Name the run that this one starts from by its place below `run.dir`, which may have moved."""
    start, runs = str(keys.get("model.init_from", "")), str(keys.get("run.dir", ""))
    return keys | {"model.init_from": start.removeprefix(f"{runs}/")} if start else keys


def _has_ended(config: RunConfig, run_dir: Path) -> bool:
    suites = [suite_name(text) for text in evaluated(config.data)]
    if not config.eval.at_end or not suites:
        return True
    rows = [row for row in read_rows(run_dir / "metrics.jsonl") if row.get("step") == config.run.max_steps]
    return all(any(row.get(f"eval/{suite}/statements") is not None for row in rows) for suite in suites)


def _status(run_dir: Path) -> dict[str, Any]:
    return _object(run_dir / "status.json")


def _object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where there is none, which says nothing about the run."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return {}
