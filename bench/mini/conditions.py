"""What is run: conditions as overlays of the tiny configurations, their sizes, and how long they should take.

All conditions of Feedback Distillation take the same learning rate, without decay, which would hide a collapse, and all
of GRPO that of `configs/tiny_grpo.toml`. Feedback Distillation, GRPO and the two-stage runs see the same number of
attempts. Seeds count from 1: seed 0 was used to choose the sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FD, GRPO = "configs/tiny_fd.toml", "configs/tiny_grpo.toml"
TUTOR = "tutor"
"""Stands for `feedback.type = "anthropic"` with the address of the tutor."""
SHORT = "1. Use `omega` as the whole proof, and keep the theorem unchanged."
LONG = "1. Use `exact ⟨h.1.1, h.1.2, h.2⟩` as the whole proof, and keep the theorem unchanged."
"""The model follows these two; "Be concise" means nothing to it. With them in the prompt it writes 67 and 97 tokens an
attempt, without 82 (96 statements, `examples.tiny.measure` with minilean's output and room for 288 tokens)."""
PASS_AT = (1, 2, 4, 8, 16)
MATCHED = 0.05
"""Two checkpoints have the same pass@1 when they differ by no more."""
STATEMENT_SEED = 6
"""Of the training statements, which are the same for all runs; each run takes them in an order of its own."""
START_S = 14.0
"""Learner's start, first push, end of a run."""
ENGINE_START_S = 20.0


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    statements: int = 6400
    """For training: more than any run uses."""
    prompts: int = 32
    """Attempts of a step of Feedback Distillation."""
    fd_steps: int = 192
    ema_steps: int = 128
    first_stage_steps: int = 96
    constant_steps: int = 40
    grpo_prompts: int = 16
    grpo_samples: int = 8
    grpo_steps: int = 48
    second_stage_steps: int = 24
    eval_every: int = 48
    eval_statements: int = 64
    eval_samples: int = 2
    checkpoint_every: int = 6
    """Of the runs of which pass@k is compared: fine enough to find the same pass@1."""
    scaling_statements: int = 128
    self_attempts: int = 8
    only: tuple[str, ...] = ()
    """Names of the conditions that are run; empty runs all."""

    @property
    def group_attempts(self) -> int:
        """Attempts of a step of GRPO."""
        return self.grpo_prompts * self.grpo_samples


QUICK = Sizes(
    statements=96, prompts=4, fd_steps=2, eval_every=0, eval_statements=4, eval_samples=1,
    checkpoint_every=0, scaling_statements=0, self_attempts=2, only=("fd",),
)  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """One row of the plan: a configuration that is run with every seed."""

    name: str
    label: str
    config: str
    sets: Mapping[str, Any] = field(default_factory=dict)
    after: tuple[str, int] | None = None
    """(condition, step) whose checkpoint it starts from."""
    attempts: int = 0
    evaluated: int = 0
    """Attempts of evaluations."""

    @property
    def expected_s(self) -> float:
        """Seconds on two idle cores, from `configs/tiny_*.toml`: 6,400 attempts in 150 s, 7,680 in 165 s.

        An attempt of a batch of 32 with the tutor took 1.3 times as long as one of 64, both on a busy machine.
        """
        each_s = 0.0305 if self.config == FD else 0.0215
        return START_S + each_s * self.attempts + 0.016 * self.evaluated

    def init_from(self, out: Path, seed: int) -> Path | None:
        """Return the checkpoint that it starts from."""
        if self.after is None:
            return None
        return run_dir(out, self.after[0], seed) / "checkpoints" / f"step_{self.after[1]:06d}"


def run_dir(out: Path, condition: str, seed: int) -> Path:
    """Return the folder of one run."""
    return out / "runs" / f"{condition}-{seed}"


def conditions(sizes: Sizes) -> list[Condition]:
    """Return what is run for every seed, in order: a second stage comes after its first."""
    every = [
        _distil(sizes, "fd", "FD, tutor, EMA 0.9, anchor", sizes.fd_steps, keep=True),
        _grpo(sizes, "grpo", "GRPO", sizes.grpo_steps, keep=True),
        _distil(sizes, "ground_truth", "FD, ground truth", sizes.first_stage_steps, feedback="ground_truth"),
        _distil(sizes, "lean_output", "FD, Lean output", sizes.first_stage_steps, feedback="lean_output"),
        *[
            _grpo(sizes, f"grpo_over_{first}", f"GRPO over {label}", sizes.second_stage_steps, first=first)
            for first, label in (("fd", "FD"), ("ground_truth", "ground truth"), ("lean_output", "Lean output"))
        ],
        *[
            _teacher(sizes, name, label, retention, anchor)
            for name, label, retention, anchor in (
                ("ema_frozen", "FD, frozen teacher, no anchor", 1.0, 0.0),
                ("ema_0.9", "FD, EMA 0.9, no anchor", 0.9, 0.0),
                ("ema_0.5", "FD, EMA 0.5, no anchor", 0.5, 0.0),
                ("ema_0.5_anchor", "FD, EMA 0.5, anchor", 0.5, 1.0),
            )
        ],
        _constant(sizes, "constant_short", "constant feedback, short recipe", SHORT),
        _constant(sizes, "constant_long", "constant feedback, long recipe", LONG),
    ]
    return [condition for condition in every if not sizes.only or condition.name in sizes.only]


def _distil(
    sizes: Sizes, name: str, label: str, steps: int, *, feedback: str = TUTOR, keep: bool = False, **sets: Any
) -> Condition:
    values = {
        "feedback.type": feedback,
        "feedback.max_feedback_tokens": 192,
        "learner.prompts_per_step": sizes.prompts,
        "learner.lr": 7e-4,
        "learner.decay": "none",
        **_common(sizes, steps, sizes.checkpoint_every if keep else sizes.eval_every),
    }
    values |= {key.replace("__", "."): value for key, value in sets.items()}
    return Condition(name, label, FD, values, None, steps * sizes.prompts, _evaluated(sizes, values, steps))


def _grpo(sizes: Sizes, name: str, label: str, steps: int, *, first: str = "", keep: bool = False) -> Condition:
    values = {
        "rollout.samples_per_prompt": sizes.grpo_samples,
        "learner.prompts_per_step": sizes.grpo_prompts,
        **_common(sizes, steps, sizes.checkpoint_every if keep else sizes.eval_every),
    }
    after = (first, sizes.first_stage_steps) if first else None
    return Condition(name, label, GRPO, values, after, steps * sizes.group_attempts, _evaluated(sizes, values, steps))


def _teacher(sizes: Sizes, name: str, label: str, retention: float, anchor: float) -> Condition:
    return _distil(
        sizes, name, label, sizes.ema_steps, algorithm__ema_retention=retention, algorithm__anchor_weight=anchor,
        eval__at_end=False, eval__every_steps=0,
    )  # fmt: skip


def _constant(sizes: Sizes, name: str, label: str, text: str) -> Condition:
    """The paper's setting: a frozen teacher, and nothing beside the distillation.

    In step, or the first batch would hold the attempts that end first, which are short.
    """
    return _distil(
        sizes, name, label, sizes.constant_steps, feedback="constant", feedback__text=text,
        algorithm__ema_retention=1.0, algorithm__anchor_weight=0.0, eval__at_end=False, eval__every_steps=0,
        rollout__max_response_tokens=288, run__mode="sync",
    )  # fmt: skip


def _common(sizes: Sizes, steps: int, checkpoint_every: int) -> dict[str, Any]:
    return {
        "run.max_steps": steps,
        "policy.max_model_len": 1024,  # the paper's tutor prompt has 664 of the tiny model's tokens
        "eval.at_start": False,
        "eval.every_steps": sizes.eval_every,
        "eval.limit": sizes.eval_statements,
        "eval.samples": sizes.eval_samples,
        "eval.at_end": sizes.eval_every > 0,
        "checkpoint.every_steps": checkpoint_every,
        "checkpoint.keep_last": 64,
        "telemetry.trace": False,
    }


def _evaluated(sizes: Sizes, values: Mapping[str, Any], steps: int) -> int:
    every = values["eval.every_steps"]
    between = (steps - 1) // every * sizes.eval_statements if every else 0
    return (between + (256 if values["eval.at_end"] else 0)) * sizes.eval_samples


def scaling(sizes: Sizes, name: str, after: tuple[str, int], data: Path) -> Condition:
    """Return a run of no steps that only evaluates a checkpoint, for pass@k."""
    values = {
        "run.max_steps": 0,
        "policy.max_model_len": 1024,
        "data.eval": str(data),
        "eval.at_start": True,
        "eval.at_end": False,
        "eval.samples": max(PASS_AT),
        "eval.k": list(PASS_AT),
        "telemetry.trace": False,
    }
    return Condition(name, name, GRPO, values, after, 0, sizes.scaling_statements * max(PASS_AT))


def plan_text(sizes: Sizes, seeds: int) -> str:
    """Write the plan with the expected minutes on two idle cores."""
    lines = ["Plan, expected minutes on two idle cores:"]
    total = ENGINE_START_S
    for condition in conditions(sizes):
        start = f", from step {condition.after[1]} of {condition.after[0]}" if condition.after else ""
        size = f"{condition.attempts:6,} attempts{start:36}"
        lines.append(f"  {condition.name:24} {size} {condition.expected_s / 60:4.1f} × {seeds}")
        total += seeds * condition.expected_s
    if sizes.scaling_statements:
        each = 3 * (START_S + 0.016 * sizes.scaling_statements * max(PASS_AT))
        lines.append(f"  {'pass@k at matched pass@1':24} {'2 to 4 checkpoints':51} {each / 60:4.1f} × {seeds}")
        total += seeds * each
    return "\n".join([*lines, f"  {'in all':24} {'':51} {total / 60:4.0f}"])
