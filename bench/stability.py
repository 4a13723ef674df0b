"""Does the run stay up? EMA teacher alone, frozen teacher, EMA teacher with anchor: the tiny world, the real loop.

`python -m bench.stability` takes four times as many gradient steps as `configs/tiny_fd.toml` and asks at several of
them: how often does the student prove held-out statements, how often does its teacher with the feedback in its prompt,
and what is `teacher/feedback_gain`. Three settings, three seeds, one vLLM for all; about 45 minutes on 2 free cores.
`--seeds`, `--settings` and `--steps` run parts; with `--results FILE` parts are joined. `--quick` takes a few steps,
to show that the pieces fit.

    settings        teacher                    anchor
    ema             EMA, retention 0.9         none
    frozen          retention 1                none
    ema_anchor      EMA, retention 0.9         weight 1, every 5th step
    ema_gated       EMA, waits below a gain    none; only with `--settings`

The student's pass rate comes from the run's own evaluation (vLLM, verifier). The teacher's comes from its float32
weights in the checkpoint, sampled in plain torch and judged by the recipes of `examples.tiny.measure`, which is a
little stricter. A setting collapses when in some seed the last evaluation is below `COLLAPSED` times the best one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean, median
from typing import Any

import anyio
import anyio.to_thread
import torch

from bench.common import emit, parser
from bench.experiments import Outcome, configure, experiment, one_engine
from examples.tiny.hints import worked_example
from examples.tiny.measure import attempt_all, load_model
from examples.tiny.statements import make_world
from fd_async.config.schema import RunConfig
from fd_async.learner.checkpoints import learner_folder, list_checkpoints, model_folder, read_state
from fd_async.learner.store import open_store
from fd_async.pipeline.alarms import Alarms
from fd_async.telemetry.sinks import replace_file

SETTINGS: dict[str, dict[str, Any]] = {
    "ema": {"algorithm.ema_retention": 0.9, "algorithm.anchor_weight": 0.0},
    "frozen": {"algorithm.ema_retention": 1.0, "algorithm.anchor_weight": 0.0},
    "ema_anchor": {"algorithm.ema_retention": 0.9, "algorithm.anchor_weight": 1.0, "algorithm.anchor_every": 5},
    "ema_gated": {"algorithm.ema_retention": 0.9, "algorithm.anchor_weight": 0.0, "algorithm.ema_min_gain": 0.02},
}
DEFAULT = ("ema", "frozen", "ema_anchor")
SIZES: dict[str, Any] = {
    "learner.prompts_per_step": 16,
    "learner.decay": "none",  # a rate that falls to 0 would hide a collapse
    "learner.lr": 5e-4,  # half the shipped rate for a quarter of its batch
    "eval.at_start": False,
    "eval.limit": 128,
}
QUICK: dict[str, Any] = {
    "learner.prompts_per_step": 4,
    "eval.limit": 4,
    "eval.every_steps": 4,
    "eval.at_end": False,  # over every statement
    "checkpoint.every_steps": 0,
    "algorithm.ema_every": 2,
    "algorithm.anchor_every": 2,
}
STEPS, QUICK_STEPS = 400, 5
COLLAPSED = 0.75
GAIN_WINDOW = 10
SUITE = "eval/test/pass@1"
Row = dict[str, Any]


async def run(quick: bool, settings: list[str], seeds: list[int], steps: int, results: Path | None) -> None:
    """Run every setting with every seed and print what was found, that of earlier parts included."""
    found = load(results)
    asked = (
        steps,
        QUICK["learner.prompts_per_step"] if quick else SIZES["learner.prompts_per_step"],
        SIZES["learner.lr"],
    )
    for row in found:
        if tuple(row.get(key) for key in ("steps", "prompts_per_step", "lr")) != asked:
            raise SystemExit(
                f"{results}: {row['setting']}, seed {row['seed']} was run with other sizes; take another file"
            )
    every = max(1, steps // 8)
    sizes = SIZES | {
        "run.max_steps": steps,
        "eval.every_steps": every,
        "checkpoint.every_steps": max(1, steps // 4),
        "checkpoint.keep_last": 8,
    }
    sizes |= QUICK if quick else {}
    async with one_engine(configure("configs/tiny_fd.toml", sizes)) as (engine, _, folder):
        for seed in seeds:
            for setting in settings:
                config = configure("configs/tiny_fd.toml", sizes | SETTINGS[setting] | {"run.seed": seed})
                outcome = await experiment(config, folder / f"{setting}-{seed}", engine)
                row = await anyio.to_thread.run_sync(describe, setting, seed, config, outcome)
                found = [old for old in found if (old["setting"], old["seed"]) != (setting, seed)] + [row]
                keep(results, found)
                print(json.dumps(row), file=sys.stderr, flush=True)
    emit({"rows": found, **verdict(found)})


def load(results: Path | None) -> list[Row]:
    """Read the rows of earlier parts."""
    return json.loads(results.read_text()) if results and results.exists() else []


def keep(results: Path | None, rows: list[Row]) -> None:
    """Write all rows, so that a part that is broken off loses one run at most."""
    if results:
        replace_file(results, json.dumps(rows, indent=1).encode() + b"\n")


def describe(setting: str, seed: int, config: RunConfig, outcome: Outcome) -> Row:
    """Return what one run showed."""
    steps = [row for row in outcome.rows if row.get("loss") is not None]
    student = {row["step"]: row[SUITE] for row in outcome.rows if row.get(SUITE) is not None}
    return {
        "setting": setting,
        "seed": seed,
        "steps": config.run.max_steps,
        "prompts_per_step": config.learner.prompts_per_step,
        "lr": config.learner.lr,
        "student": student,
        "teacher_with_feedback": teachers(config, outcome.run_dir / "checkpoints"),
        "feedback_gain": {step: mean_before(steps, step, "teacher/feedback_gain") for step in student},
        "train_pass_rate": {step: mean_before(steps, step, "train/pass_rate") for step in student},
        "teacher_updates_held": steps[-1].get("teacher/updates_held"),
        "collapsed": student[max(student)] < COLLAPSED * max(student.values()),
        "first_alarms": alarms(config, steps),
        "train_s": round(outcome.train_s, 1),
        "anchor": anchor_cost(config, steps),
    }


def mean_before(steps: list[Row], step: int, key: str) -> float | None:
    """Average a column over the last steps up to `step`."""
    values = [row[key] for row in steps if step - GAIN_WINDOW < row["step"] <= step and row.get(key) is not None]
    return round(fmean(values), 4) if values else None


def alarms(config: RunConfig, steps: list[Row]) -> dict[str, int]:
    """Return the step at which each alarm was first raised."""
    watch = Alarms(config.alarms, num_ids=768, prompts_per_step=config.learner.prompts_per_step)
    first: dict[str, int] = {}
    for row in steps:
        for name in watch.update(row):
            first.setdefault(name, row["step"])
    return first


def anchor_cost(config: RunConfig, steps: list[Row]) -> Row | None:
    """Compare steps with the anchor with those around them that have none, in the same run.

    `ratio` is the time of a mean step, one of `anchor_every` with the anchor, over that of a step without.
    """
    every = config.algorithm.anchor_every
    if not config.algorithm.anchor_weight:
        return None
    cost: Row = {}
    for name, key in (("learner", "time/learn_s"), ("step", "time/step_s")):
        times: list[list[float]] = [[], []]
        for row in steps[GAIN_WINDOW if len(steps) > 2 * GAIN_WINDOW else 1 :]:
            times[row["step"] % every == 0].append(row[key])
        if not all(times):
            return None  # too few steps to have both kinds
        without, with_anchor = median(times[False]), median(times[True])
        ratio = (with_anchor + (every - 1) * without) / (every * without)
        cost[name] = {"without_s": round(without, 4), "with_s": round(with_anchor, 4), "ratio": round(ratio, 4)}
    return cost


@torch.no_grad()
def teachers(config: RunConfig, checkpoints: Path) -> dict[int, float]:
    """Return step -> share of held-out statements that the teacher of its checkpoint proves with feedback."""
    torch.manual_seed(config.run.seed)
    rows = make_world()["test"][: config.eval.limit]
    shares = {}
    for step, folder in list_checkpoints(checkpoints).items():
        model, renderer = load_model(model_folder(folder))
        with open_store(learner_folder(folder), read_state(folder).num_shards) as store:
            for name, parameter in model.named_parameters():
                parameter.copy_(store.read(f"teacher/{name}", 0, parameter.numel()).view_as(parameter))
        attempts = attempt_all(model, renderer, rows, hint=lambda r: worked_example(r.formal_statement, r.proof[3:]))
        shares[step] = round(sum(attempt.solved for attempt in attempts) / len(attempts), 3)
    return shares


def verdict(rows: list[Row]) -> Row:
    """Condense all runs: what collapsed, and what the anchor cost."""
    by_setting = {name: [row for row in rows if row["setting"] == name] for name in SETTINGS}
    costs = [row["anchor"] for row in by_setting["ema_anchor"] if row["anchor"]]
    result: Row = {
        "collapsed": {name: any(row["collapsed"] for row in found) for name, found in by_setting.items() if found},
        "collapsed_seeds": {
            name: [row["seed"] for row in found if row["collapsed"]] for name, found in by_setting.items() if found
        },
        "last_pass_rate": {
            name: [row["student"][max(row["student"], key=int)] for row in found]
            for name, found in by_setting.items()
            if found
        },
    }
    if costs:
        result["anchor_time_ratio"] = {
            name: round(max(cost[name]["ratio"] for cost in costs), 4) for name in ("learner", "step")
        }
    return result


def main() -> None:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("--seeds", default="0,1,2", help="comma-separated")
    options.add_argument("--settings", default=",".join(DEFAULT), help=f"of {', '.join(SETTINGS)}")
    options.add_argument("--steps", type=int, default=0, help=f"gradient steps; {STEPS}, with --quick {QUICK_STEPS}")
    options.add_argument("--results", type=Path, help="JSON file that collects the rows of parts")
    options.add_argument("--lr", type=float, default=SIZES["learner.lr"], help="peak learning rate")
    given = options.parse_args()
    SIZES["learner.lr"] = given.lr
    seeds = [0] if given.quick else [int(seed) for seed in given.seeds.split(",")]
    steps = given.steps or (QUICK_STEPS if given.quick else STEPS)
    anyio.run(run, given.quick, given.settings.split(","), seeds, steps, given.results)


if __name__ == "__main__":
    main()
