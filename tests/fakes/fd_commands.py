"""Stands in for `fd-run` and `fd-eval`: leaves what they leave in a run folder, as a plan tells it.

`python fd_commands.py PLAN run|eval|check ARGUMENTS...`. PLAN is a JSON file: run -> list of what its
calls do, one after another; the last one is for all later calls. `finish` goes on to run.max_steps; `fail 4` takes a
step and ends with that code; `alarm` ends as an alarm does; `die` kills itself after a step; `wait` takes a step and
waits for a signal, then writes a checkpoint and ends with 130. Every call is a line of PLAN's calls.log.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from fd_async.config.load import dump_toml, load_config
from fd_async.learner.checkpoints import Manifest, checkpoint_name, list_checkpoints


def main() -> int:
    plan, command, *arguments = sys.argv[1:]
    with (Path(plan).parent / "calls.log").open("a", encoding="utf-8") as log:
        log.write(json.dumps([command, *arguments]) + "\n")
    return {"run": run, "eval": evaluate, "check": check}[command](Path(plan), arguments)


def run(plan: Path, arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    for name in ("--config", "--set"):
        parser.add_argument(name, action="append", default=[])
    parser.add_argument("--run")
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args(arguments)
    files = [Path(text) for text in given.config]
    config = load_config(files[0], files[1:], given.set, options={"run.name": ("--run", given.run)})
    run_dir = Path(config.run.dir) / given.run
    (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run_dir / "config.toml").write_text(dump_toml(config))
    step = max(list_checkpoints(run_dir / "checkpoints"), default=0)
    deed = _deed(plan, given.run)
    print(f"fd-run: {given.run}: {deed} from step {step}", file=sys.stderr, flush=True)
    if deed == "finish":
        _leave(run_dir, range(step + 1, config.run.max_steps + 1))
        return 0
    _leave(run_dir, [step + 1])
    if deed == "alarm":
        _status(run_dir, {"phase": "ended by an alarm", "error": "policy entropy fell"})
        return 7
    if deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "wait":
        return _wait(run_dir, step + 2)
    print("fd-run: the provider is out of words", file=sys.stderr)
    return int(deed.split()[1])


def evaluate(plan: Path, arguments: list[str]) -> int:
    run_dir, options = Path(arguments[0]), arguments[1:]
    value = dict(zip(options[::2], options[1::2], strict=True))
    if _deed(plan, f"eval {run_dir.name}") != "finish":
        print("fd-eval: no engine", file=sys.stderr)
        return 5
    suite = {
        "suite": value["--suite"], "samples": int(value["--samples"]), "temperature": 1.0, "tools": True, "failed": 0,
        "pass_at": {k: [0.5, 0.4, 0.6] for k in value["--k"].split(",")},
    }  # fmt: skip
    path = run_dir / "evals" / "one" / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode({"step": int(value["--step"]), "suites": [suite]}))
    return 0


def check(plan: Path, arguments: list[str]) -> int:
    return 0 if _deed(plan, "check") == "finish" else 3


def _deed(plan: Path, name: str) -> str:
    """Take the next deed of a run off the plan."""
    deeds: dict[str, list[str]] = json.loads(plan.read_text())
    own = deeds.get(name) or ["finish"]
    if len(own) > 1:
        plan.write_text(json.dumps({**deeds, name: own[1:]}))
    return own[0]


def _leave(run_dir: Path, steps: Any) -> None:
    for step in steps:
        with (run_dir / "metrics.jsonl").open("ab") as file:
            row = {"step": step, "eval/test/pass@1": step / 10, "eval/test/statements": 1}
            file.write(msgspec.json.encode(row) + b"\n")
        folder = run_dir / "checkpoints" / checkpoint_name(step)
        folder.mkdir()
        manifest = Manifest(step=step, algorithm="fd", ranks=1, config_hash="", written=0.0, files={})
        (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    _status(run_dir, {"phase": "training", "error": ""})


def _status(run_dir: Path, status: dict[str, str]) -> None:
    (run_dir / "status.json").write_bytes(msgspec.json.encode(status))


def _wait(run_dir: Path, step: int) -> int:
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.append(number))
    (run_dir / "waiting").write_text(str(os.getpid()))
    while not asked:
        time.sleep(0.02)
    _leave(run_dir, [step])
    (run_dir / "signals").write_text(" ".join(signal.Signals(number).name for number in asked))
    return 130


if __name__ == "__main__":
    sys.exit(main())
