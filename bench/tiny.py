"""Does it learn? Feedback Distillation, its control with empty feedback, GRPO, and GRPO over Feedback Distillation.

`python -m bench.tiny` runs the four tiny configurations as they are shipped (about half an hour on 2 cores);
`--quick` runs a few steps of each on fewer statements, to show that the pieces fit, not that they learn.
"""

from __future__ import annotations

import sys
from typing import Any

import anyio

from bench.common import arguments, emit
from bench.experiments import Outcome, configure, experiment, one_engine

QUICK: dict[str, Any] = {
    "run.max_steps": 2,
    "learner.prompts_per_step": 8,
    "learner.warmup_steps": 0,
    "eval.every_steps": 0,
    "admission.max_staleness": 1,
}
SUITE = "eval/test/pass@1"


async def run(quick: bool) -> None:
    """Run the four experiments and print the figures."""
    sizes = QUICK if quick else {}
    fd = configure("configs/tiny_fd.toml", sizes)
    async with one_engine(fd) as (engine, _, folder):

        async def one(name: str, config: str, **sets: Any) -> Outcome:
            say(f"{name} ...")
            values = sizes | {key.replace("__", "."): value for key, value in sets.items()}
            if quick and "grpo" in config:
                values |= {"rollout.samples_per_prompt": 2}
            outcome = await experiment(configure(config, values), folder / name, engine)
            say(f"{name}: {outcome.first(SUITE):.3f} -> {outcome.last(SUITE):.3f} in {outcome.train_s:.0f} s")
            return outcome

        runs = {"fd": await one("fd", "configs/tiny_fd.toml")}
        runs["control"] = await one("control", "configs/tiny_fd.toml", feedback__type="constant", feedback__text="")
        runs["grpo"] = await one("grpo", "configs/tiny_grpo.toml")
        runs["grpo_over_fd"] = await one(
            "grpo_over_fd", "configs/tiny_grpo_over_fd.toml", model__init_from=str(folder / "fd")
        )
    emit(
        {
            "fd_start": runs["fd"].first(SUITE),
            "fd_end": runs["fd"].last(SUITE),
            "control_end": runs["control"].last(SUITE),
            "grpo_end": runs["grpo"].last(SUITE),
            "grpo_over_fd_end": runs["grpo_over_fd"].last(SUITE),
            "train_s": runs["fd"].train_s,
            "table": {name: summary(outcome) for name, outcome in runs.items()},
        }
    )


def summary(outcome: Outcome) -> dict[str, float]:
    """Return one row of the README's table."""
    return {
        "start": outcome.first(SUITE),
        "end": outcome.last(SUITE),
        "best": outcome.highest(SUITE),
        "policy_entropy_start": outcome.first("policy/entropy"),
        "policy_entropy_end": outcome.last("policy/entropy"),
        "attempts": outcome.total("train/attempts"),
        "train_s": outcome.train_s,
        "probe_max_abs": outcome.highest("push/probe_max_abs"),
        "staleness_max": outcome.highest("staleness/max"),
    }


def say(text: str) -> None:
    """Report progress on stderr; stdout ends with the JSON object."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    anyio.run(run, arguments(__doc__).quick)
