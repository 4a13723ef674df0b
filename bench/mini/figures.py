"""The figures of the page: which runs, which axes, what the caption says.

A condition looks the same in every figure. One hue is one source of feedback or one retention; a second stage of GRPO
is dashed in the hue of its first, and a teacher without our anchor is dotted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from bench.mini.claims import Runs, Scalings
from bench.mini.conditions import MATCHED, Sizes
from bench.mini.curves import WINDOW, trained, windows, written_tokens
from fd_async.viewer.figures.curves import Curve
from fd_async.viewer.figures.drawing import COLOURS, Axes

_DASHED, _DOTTED = len(COLOURS), 2 * len(COLOURS)
LOOKS = {
    "fd": 0,
    "grpo_over_fd": 0 + _DASHED,
    "ema_0.9": 0 + _DOTTED,
    "grpo": 1,
    "ema_0.5_anchor": 2,
    "ema_0.5": 2 + _DOTTED,
    "ground_truth": 3,
    "grpo_over_ground_truth": 3 + _DASHED,
    "lean_output": 5,
    "grpo_over_lean_output": 5 + _DASHED,
    "ema_frozen": 6 + _DOTTED,
    "constant_short": 4,
    "constant_long": 7,
}
"""Place of each condition in `drawing`'s colours, dashes and marks."""
METHODS = {"fd": "FD, tutor", "grpo": "GRPO", "grpo_over_fd": "GRPO over FD, tutor"}
SOURCES = {
    "fd": "FD, tutor",
    "ground_truth": "FD, ground truth",
    "lean_output": "FD, Lean output",
    "grpo_over_fd": "GRPO over FD, tutor",
    "grpo_over_ground_truth": "GRPO over FD, ground truth",
    "grpo_over_lean_output": "GRPO over FD, Lean output",
}
TEACHERS = {
    "ema_0.5": "EMA 0.5",
    "ema_0.9": "EMA 0.9",
    "ema_frozen": "frozen teacher",
    "ema_0.5_anchor": "EMA 0.5, anchor",
    "fd": "EMA 0.9, anchor (FD, tutor)",
}
CONSTANT = {"constant_short": "short recipe", "constant_long": "long recipe"}
ACCURACY, ENTROPY, KL, LENGTH = "train/pass_rate", "policy/entropy", "policy/teacher_kl", "train/response_tokens"
_WINDOWS = f"Points are means over {WINDOW} attempts or a little more."


@dataclass(frozen=True)
class Picture:
    """One figure of the page."""

    name: str
    """Of its file."""
    title: str
    names: Mapping[str, str]
    """Conditions and what the legend calls them."""
    axes: list[Axes]
    caption: str

    @property
    def note(self) -> str:
        """Say what the bands are, where there are any."""
        has_bands = any(curve.low for axes in self.axes for curve in axes.curves)
        return "Lines: means over seeds. Bands: lowest to highest seed." if has_bands else ""

    def legend(self) -> list[tuple[str, int]]:
        """Return the labels that are drawn, with their look."""
        drawn: dict[int, int] = {}
        for curve in (curve for axes in self.axes for curve in axes.curves):
            drawn[curve.colour] = max(curve.num_runs, drawn.get(curve.colour, 0))
        seeds = {place: f"{num} seed{'s' * (num > 1)}" for place, num in drawn.items()}
        return [
            (f"{label}, {seeds[LOOKS[name]]}", LOOKS[name])
            for name, label in self.names.items()
            if LOOKS[name] in seeds
        ]


def pictures(sizes: Sizes, runs: Runs, scalings: Scalings) -> list[Picture]:
    """Return every figure, also those without a curve."""
    matched = matched_pairs(scalings)
    return [
        Picture("methods", "Feedback Distillation, GRPO, and GRPO over Feedback Distillation", METHODS, [
            _axes(sizes, runs, METHODS, "Accuracy per attempt", "share", ACCURACY),
            _axes(sizes, runs, METHODS, "Accuracy per step", "share", ACCURACY, per_step=True),
            _axes(sizes, runs, METHODS, "Policy entropy", "nats per token", ENTROPY),
            _scaling_axes(matched),
        ], f"{_WINDOWS} A second stage begins where its first ended. A step of GRPO has {sizes.group_attempts}"
           f" attempts, one of Feedback Distillation {sizes.prompts}. {_pairs_text(scalings, matched)}"),
        Picture("sources", "Sources of feedback, and GRPO over each", SOURCES, [
            _axes(sizes, runs, SOURCES, "Accuracy", "share", ACCURACY),
            _axes(sizes, runs, SOURCES, "Policy entropy", "nats per token", ENTROPY),
        ], f"{_WINDOWS} Dashed: GRPO, from step {sizes.first_stage_steps} of the first stage in the same colour."),
        Picture("teachers", "Retention of the teacher's average (EMA), with and without the anchor", TEACHERS, [
            _axes(sizes, runs, TEACHERS, "Accuracy", "share", ACCURACY),
            _axes(sizes, runs, TEACHERS, "Policy entropy, logarithmic", "nats per token", ENTROPY, is_logarithmic=True),
        ], f"{_WINDOWS} Dotted: without the anchor, as in the paper. The sweep has {sizes.ema_steps} steps, and the"
           " claims look no further."),
        Picture("constant", "Constant feedback under a frozen teacher", CONSTANT, [
            _step_axes(runs, "Tokens written per attempt", "tokens", written_tokens),
            _step_axes(runs, "Response with Lean's messages", "tokens",
                       lambda rows: [row[LENGTH] for row in trained(rows)]),
            _step_axes(runs, "KL of teacher and student", "nats per token",
                       lambda rows: [row[KL] for row in trained(rows)]),
        ], f"Every step of {sizes.prompts} attempts, not averaged. The claim counts the tokens that the model writes. A"
           " whole response also holds what Lean says to it, which can grow while the model writes less."),
    ]  # fmt: skip


def matched_pairs(scalings: Scalings) -> dict[int, Mapping[str, Any]]:
    """Return the pairs that the claim counts: pass@1 within `MATCHED`."""
    return {seed: pair for seed, pair in scalings.items() if abs(pair["fd"][1] - pair["grpo"][1]) <= MATCHED}


def _pairs_text(scalings: Scalings, matched: Mapping[int, Any]) -> str:
    if not scalings:
        return "pass@k is not measured yet."
    drawn = ", ".join(map(str, matched)) or "none"
    left_out = ", ".join(str(seed) for seed in scalings if seed not in matched)
    text = f"pass@k: pairs of checkpoints of one seed whose pass@1 differs by {100 * MATCHED:g} points at most; seeds"
    return f"{text} drawn: {drawn}{f'; left out, since no pair is so near: {left_out}' if left_out else ''}."


def _axes(
    sizes: Sizes,
    runs: Runs,
    names: Mapping[str, str],
    title: str,
    unit: str,
    key: str,
    *,
    per_step: bool = False,
    is_logarithmic: bool = False,
) -> Axes:
    """Draw a column against the attempts (or steps) from the first model on, averaged in the windows of the claims."""
    curves = []
    for name, label in names.items():
        ends = [windows(rows) for rows in runs.get(name, {}).values()]
        shared = min((len(one) for one in ends), default=0)
        if not shared:
            continue
        steps = sizes.first_stage_steps if name.startswith("grpo_over_") else 0
        x = [steps + end.step if per_step else steps * sizes.prompts + end.attempts for end in ends[0][:shared]]
        curves.append(_curve(label, name, x, [[end.values[key] for end in one[:shared]] for one in ends]))
    return Axes(
        title=title, x_name="gradient step" if per_step else "attempts", unit=unit, curves=curves, note="no run yet",
        is_logarithmic=is_logarithmic,
    )  # fmt: skip


def _step_axes(runs: Runs, title: str, unit: str, values: Callable[[Sequence[Any]], Sequence[float]]) -> Axes:
    curves = []
    for name, label in CONSTANT.items():
        seeds = [values(rows) for rows in runs.get(name, {}).values()]
        shared = min((len(one) for one in seeds), default=0)
        if shared:
            curves.append(_curve(label, name, list(range(1, shared + 1)), [one[:shared] for one in seeds]))
    return Axes(title=title, x_name="gradient step", unit=unit, curves=curves, note="no run yet")


def _scaling_axes(matched: Scalings) -> Axes:
    curves = []
    for name in ("fd", "grpo"):
        seeds = [found[name] for found in matched.values()]
        if seeds:
            k = sorted(seeds[0])
            curves.append(_curve(METHODS[name], name, k, [[found[n] for n in k] for found in seeds]))
    return Axes(
        title="Held-out pass@k at the same pass@1", x_name="k, samples per statement", unit="share", curves=curves,
        note=f"no pair with pass@1\nwithin {100 * MATCHED:g} points", is_doubling=True,
    )  # fmt: skip


def _curve(label: str, name: str, x: list[int], seeds: Sequence[Sequence[float]]) -> Curve:
    columns = list(zip(*seeds, strict=True))
    return Curve(
        label=label, colour=LOOKS[name], x=x, y=[fmean(column) for column in columns],
        low=[min(column) for column in columns] if len(seeds) > 1 else None,
        high=[max(column) for column in columns] if len(seeds) > 1 else None, num_runs=len(seeds),
    )  # fmt: skip
