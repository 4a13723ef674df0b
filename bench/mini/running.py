"""Runs one condition after another on one engine; what is finished is kept, what was cut off goes on.

Invariants: `plan.json`, a fingerprint of what decides the run, is in a run folder before all else; with `done.json` the
run is complete. Nothing goes on under another fingerprint, and a folder of someone else's is left alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio.to_thread

from bench.experiments import configure
from bench.mini.conditions import (
    MATCHED,
    PASS_AT,
    STATEMENT_SEED,
    TUTOR,
    Condition,
    Sizes,
    conditions,
    run_dir,
    scaling,
)
from bench.mini.curves import nearest_step, windows
from examples.tiny.statements import make_split
from fd_async.app import run_experiment
from fd_async.config.schema import RunConfig
from fd_async.errors import ConfigError
from fd_async.learner.checkpoints import list_checkpoints
from fd_async.policy.engine import Engine
from fd_async.telemetry.sinks import read_rows, replace_file

Row = dict[str, Any]
TRAIN_FILE, PLAN_FILE, DONE_FILE = "train.jsonl", "plan.json", "done.json"
TRIES = 3
"""Checkpoints of Feedback Distillation that are evaluated to find it."""


def say(text: str) -> None:
    """Report progress on stderr; stdout ends with the JSON object."""
    print(text, file=sys.stderr, flush=True)


def is_done(out: Path, condition: Condition, seed: int) -> bool:
    """Say whether a run is complete.

    Raises:
        ConfigError: its folder was begun with other sizes, or by something else.
    """
    folder = run_dir(out, condition.name, seed)
    plan = folder / PLAN_FILE
    if plan.is_file():
        if json.loads(plan.read_text())["fingerprint"] != fingerprint(condition):
            raise ConfigError(f"{folder} was run with other sizes or settings: name another folder with --out")
    elif folder.is_dir() and any(PLAN_FILE not in entry.name for entry in folder.iterdir()):  # one may be half written
        raise ConfigError(f"{folder} is not of this benchmark: name another folder with --out")
    return (folder / DONE_FILE).is_file()


def fingerprint(condition: Condition) -> str:
    """Hash what decides a run: settings and configuration file, not the address of the tutor or the place of data."""
    sets = {key: value for key, value in condition.sets.items() if key != "data.eval"}
    file = tomllib.loads(Path(condition.config).read_text(encoding="utf-8"))
    text = json.dumps([file, sets, condition.after], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def missing(out: Path, plan: Iterable[Condition], seeds: Iterable[int]) -> list[tuple[Condition, int]]:
    """Return what is still to run, seed by seed, so that a broken-off benchmark has whole seeds."""
    plan = list(plan)
    return [(condition, seed) for seed in seeds for condition in plan if not is_done(out, condition, seed)]


def settings(out: Path, condition: Condition, seed: int, tutor_url: str) -> RunConfig:
    """Return the configuration of one run."""
    values = dict(condition.sets) | {"run.seed": seed}
    if values.get("feedback.type") == TUTOR:
        values |= {
            "feedback.type": "anthropic",
            "feedback.model": "tiny-tutor",
            "feedback.base_url": tutor_url,
            "feedback.max_output_tokens": 512,
        }
    values["data.train"] = str(out / TRAIN_FILE)
    start = condition.init_from(out, seed)
    return configure(condition.config, values | ({"model.init_from": str(start)} if start else {}))


async def run_one(out: Path, condition: Condition, seed: int, engine: Engine, tutor_url: str) -> None:
    """Run one condition with one seed, from its newest checkpoint where it was cut off.

    Raises:
        KeyboardInterrupt: a signal ended it.
    """
    if is_done(out, condition, seed):
        return
    folder = run_dir(out, condition.name, seed)
    began = time.monotonic()
    resumes = bool(await anyio.to_thread.run_sync(list_checkpoints, folder / "checkpoints"))
    if not resumes:
        await anyio.to_thread.run_sync(_make_empty, folder, condition)
    config = settings(out, condition, seed, tutor_url)
    if await run_experiment(config, folder, True if resumes else None, engine=engine):
        raise KeyboardInterrupt
    seconds = round(time.monotonic() - began, 1)
    replace_file(folder / DONE_FILE, json.dumps({"seconds": seconds, "resumed": resumes}).encode())
    say(f"{condition.name}, seed {seed}: {seconds:.0f} s (expected {condition.expected_s:.0f})")


def _make_empty(folder: Path, condition: Condition) -> None:
    """Take away what a run left that was killed before its first checkpoint; its plan goes last and comes first."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != PLAN_FILE:
            entry.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / PLAN_FILE, json.dumps({"fingerprint": fingerprint(condition)}).encode())


def rows_of(out: Path, condition: str, seed: int) -> list[Row]:
    """Return the rows of a finished run; none where it is not finished."""
    folder = run_dir(out, condition, seed)
    return read_rows(folder / "metrics.jsonl") if (folder / DONE_FILE).is_file() else []


async def compare_scaling(out: Path, sizes: Sizes, seed: int, engine: Engine) -> None:
    """Evaluate GRPO's best checkpoint and one of Feedback Distillation with the same pass@1, for pass@k.

    Every evaluation is a run, so that a second call goes on where one was cut off.
    """
    if is_compared(out, sizes, seed) or not all(rows_of(out, name, seed) for name in ("fd", "grpo")):
        return
    await _find_pair(out, sizes, seed, engine)
    replace_file(_compared(out, seed), b"")


def is_compared(out: Path, sizes: Sizes, seed: int) -> bool:
    """Say whether nothing is left to evaluate for pass@k."""
    return not sizes.scaling_statements or _compared(out, seed).is_file()


def _compared(out: Path, seed: int) -> Path:
    return out / "runs" / f"scaling-{seed}.done"


def free_checkpoints(out: Path, sizes: Sizes, seed: int) -> None:
    """Keep the newest checkpoint of every run of a seed of which nothing is left to do; blocks."""
    for condition in conditions(sizes):
        root = run_dir(out, condition.name, seed) / "checkpoints"
        for step in sorted(list_checkpoints(root))[:-1]:
            shutil.rmtree(list_checkpoints(root)[step])


async def _find_pair(out: Path, sizes: Sizes, seed: int, engine: Engine) -> None:
    data = _some_statements(out, sizes.scaling_statements)
    curve = [(end.step, end.values["train/pass_rate"]) for end in windows(rows_of(out, "grpo", seed))]
    rates = {end.step: end.values["train/pass_rate"] for end in windows(rows_of(out, "fd", seed))}
    if not curve or not rates:
        return  # too short to have an accuracy
    best = max(curve, key=lambda point: point[1])[0]
    grpo_step = nearest_step(_steps(out, "grpo", seed), {best: 0.0}, 0.0)
    goal = (await _evaluate(out, sizes, ("grpo", grpo_step), seed, data, engine))[1]
    steps, target = _steps(out, "fd", seed), goal
    for _ in range(TRIES):
        step = nearest_step(steps, rates, target)
        found = (await _evaluate(out, sizes, ("fd", step), seed, data, engine))[1]
        if abs(found - goal) <= MATCHED:
            return
        target += goal - found
        steps = [other for other in steps if other != step]
        if not steps:
            return


def scaling_results(out: Path, seed: int) -> dict[str, Any] | None:
    """Return pass@k of the pair that matches best: `{"grpo": {k: share}, "fd": {...}, "grpo_step": ..., ...}`."""
    pairs: dict[str, list[tuple[int, dict[int, float]]]] = {"grpo": [], "fd": []}
    for folder in sorted((out / "runs").glob(f"scaling_*-{seed}")):
        name, step = folder.name.removeprefix("scaling_").removesuffix(f"-{seed}").rsplit("_", 1)
        rows = rows_of(out, f"scaling_{name}_{step}", seed)
        if rows:
            pairs[name].append((int(step), _pass_at(rows[-1])))
    if not pairs["grpo"] or not pairs["fd"]:
        return None
    grpo_step, grpo = pairs["grpo"][-1]
    fd_step, fd = min(pairs["fd"], key=lambda found: abs(found[1][1] - grpo[1]))
    return {"grpo_step": grpo_step, "grpo": grpo, "fd_step": fd_step, "fd": fd}


async def _evaluate(
    out: Path, sizes: Sizes, after: tuple[str, int], seed: int, data: Path, engine: Engine
) -> dict[int, float]:
    condition = scaling(sizes, f"scaling_{after[0]}_{after[1]}", after, data)
    await run_one(out, condition, seed, engine, "")
    return _pass_at(rows_of(out, condition.name, seed)[-1])


def _pass_at(row: Row) -> dict[int, float]:
    return {k: next(row[key] for key in row if key.startswith("eval/") and key.endswith(f"/pass@{k}")) for k in PASS_AT}


def _steps(out: Path, condition: str, seed: int) -> list[int]:
    return [step for step in list_checkpoints(run_dir(out, condition, seed) / "checkpoints") if step > 0]


def write_statements(out: Path, sizes: Sizes) -> None:
    """Write training statements, so many that no run meets one twice; none has the shape of a test statement.

    Raises:
        ConfigError: an earlier call wrote others.
    """
    rows = make_split(sizes.statements, test=False, seed=STATEMENT_SEED)
    data, path = "".join(row.to_json() + "\n" for row in rows).encode(), out / TRAIN_FILE
    if path.is_file() and path.read_bytes() != data:
        raise ConfigError(f"{path} has other statements than this call needs: name another folder with --out")
    replace_file(path, data)


def _some_statements(out: Path, count: int) -> Path:
    """Write the first statements of the test split, whose order is random, to a file of their own."""
    lines = Path("examples/tiny/data/test.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path = out / f"test_first_{count}.jsonl"
    replace_file(path, "".join(lines[:count]).encode())
    return path
