"""The paper's claims, each with the comparisons that decide it. All criteria stand here; none looks at a second figure.

A claim holds when each of its comparisons is above 0 over the seeds (`comparing`), fails when one is not, and is null
when it cannot be measured in miniature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.mini.comparing import Difference, holds
from bench.mini.conditions import MATCHED
from bench.mini.curves import (
    attempts_until,
    drop,
    entropy_at,
    mean_over,
    start_and_end,
    trained,
    windows,
    written_tokens,
)

Row = Mapping[str, Any]
Runs = Mapping[str, Mapping[int, Sequence[Row]]]
"""Rows by condition and seed; a run that is not there has no entry."""
Scalings = Mapping[int, Mapping[str, Any]]
"""By seed, what `running.scaling_results` returns."""
Measure = Callable[[Sequence[Row]], float | None]

LEVELS = [0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7]
"""Accuracies at which entropies are compared, those that both runs cross."""
INTERNALISED = 0.1
"""KL(teacher ‖ student) is near zero below this share of its start."""
EARLY_SHARE = 1 / 3
"""Of the steps of the EMA sweep."""
SUITE = "eval/test/pass@1"
_NAMES = {"fd": "FD", "grpo": "GRPO", "ema_0.9": "FD without the anchor", "ground_truth": "FD with ground truth"}
_OUT_OF_REACH = [
    {"claim": claim, "holds": None, "figures": {"reason": reason}}
    for claim, reason in (
        ("GRPO does not reach GRPO over FD at another learning rate (appendix C.1)",
         "GRPO is run at one rate; 1e-3 was no better in a trial of 24 steps"),
        ("FD uses new lemmas and tactics sooner (figure 3)", "a tiny statement has one short proof, and no library"),
        ("Tools improve performance (appendix A.2)", "the tiny model has seen no dialogue without tools"),
        ("A more structured prompt for feedback is stabler (appendix C.3)", "the tutor does not read its instructions"),
        ("Critiques suppress words of doubt less than ground truth does (appendix C.4)",
         "the tiny model does not think aloud"),
    )
]  # fmt: skip
"""Claims of the paper that a model this small cannot bear on."""


def claims(runs: Runs, scalings: Scalings, answers: Mapping[str, Any] | None, ema_steps: int) -> list[dict[str, Any]]:
    """Judge every claim.

    Args:
        runs: rows of what was run.
        scalings: pass@k of two checkpoints.
        answers: what the tiny model wrote when it was asked for feedback.
        ema_steps: gradient steps of the EMA sweep.
    """
    made = [
        _claim("FD is more sample-efficient than GRPO, per attempt", [_per_attempt(runs, "fd")], **_reaching(runs)),
        _claim("FD is more sample-efficient than GRPO, per gradient step", [_per_step(runs, "fd")]),
        _claim("FD keeps a higher policy entropy than GRPO throughout training", [_entropy(runs, "fd", "grpo")]),
        _claim("All three without our anchor, as the paper trains: FD learns more from the same attempts, and from the"
               " same steps, at a higher entropy",
               [_per_attempt(runs, "ema_0.9"), _per_step(runs, "ema_0.9"), _entropy(runs, "ema_0.9", "grpo")]),
        _claim("FD has a higher entropy than GRPO also at the same accuracy (ours, not the paper's)",
               [_entropy_at_accuracy(runs, "fd", "grpo")]),
        _claim("FD has the better pass@k at the same pass@1", _scaling(scalings), pairs=scalings),
        _claim("GRPO over FD is best of all", _second_stage(runs), final_pass_at_1=_finals(runs)),
        _claim("Tutor and ground truth are better initialisations for GRPO than Lean output", _sources(runs)),
        _claim("A tutor keeps a higher entropy than ground truth", [_entropy(runs, "fd", "ground_truth")]),
        _claim("A tutor keeps a higher entropy than ground truth also at the same accuracy (ours)",
               [_entropy_at_accuracy(runs, "fd", "ground_truth")]),
        *_ema(runs, ema_steps),
        _claim("Constant feedback is internalised: KL near zero, length as told", _constant(runs)),
    ]  # fmt: skip
    return [*made, *_self_feedback(answers), *_OUT_OF_REACH]


def _claim(claim: str, differences: list[Difference], **more: Any) -> dict[str, Any]:
    return {
        "claim": claim,
        "holds": holds(differences),
        "figures": {difference.name: difference.figures() for difference in differences} | more,
    }


def paired(runs: Runs, name: str, first: str, second: str, measure: Measure) -> Difference:
    """Compare two conditions: the measure of the first minus that of the second, by seed."""
    return Difference(name, _by_seed(runs, first, second, lambda one, other: _minus(measure(one), measure(other))))


def _by_seed(
    runs: Runs, first: str, second: str, measure: Callable[[Sequence[Row], Sequence[Row]], float | None]
) -> dict[int, float]:
    one, other = runs.get(first, {}), runs.get(second, {})
    values = {seed: measure(one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())}
    return {seed: value for seed, value in values.items() if value is not None}


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _total(rows: Sequence[Row]) -> int:
    return sum(row["train/attempts"] for row in trained(rows))


def _shared(runs: Runs, first: str, second: str, key: str) -> dict[int, float]:
    """Compare a column averaged over the attempts that both had."""

    def measure(one: Sequence[Row], other: Sequence[Row]) -> float | None:
        shared = min(_total(one), _total(other))
        return _minus(mean_over(one, key, attempts=shared), mean_over(other, key, attempts=shared))

    return _by_seed(runs, first, second, measure)


def _per_attempt(runs: Runs, first: str) -> Difference:
    name = f"mean accuracy over the same attempts, {_NAMES[first]} minus GRPO"
    return Difference(name, _shared(runs, first, "grpo", "train/pass_rate"))


def _reaching(runs: Runs, level: float = 0.3) -> dict[str, Any]:
    reached = {
        name: {str(seed): attempts_until(rows, level) for seed, rows in runs.get(name, {}).items()}
        for name in ("fd", "grpo")
    }
    return {f"attempts until accuracy {level}, for information": reached}


def _per_step(runs: Runs, first: str) -> Difference:
    """Accuracy averaged over the steps that both took; a step of GRPO has more attempts, as in the paper."""

    def measure(fd: Sequence[Row], grpo: Sequence[Row]) -> float | None:
        shared = min(len(trained(fd)), len(trained(grpo)))
        return _minus(mean_over(fd, steps=shared), mean_over(grpo, steps=shared))

    name = f"mean accuracy over the same steps, {_NAMES[first]} minus GRPO"
    return Difference(name, _by_seed(runs, first, "grpo", measure))


def _entropy(runs: Runs, first: str, second: str) -> Difference:
    """What the paper plots, but over the same attempts: a step of GRPO has more of them."""
    name = f"mean policy entropy over the same attempts, {_NAMES[first]} minus {_NAMES[second]}, nats per token"
    return Difference(name, _shared(runs, first, second, "policy/entropy"))


def _entropy_at_accuracy(runs: Runs, first: str, second: str) -> Difference:
    """The run that learns faster is further on, and entropy falls as accuracy rises."""

    def measure(one: Sequence[Row], other: Sequence[Row]) -> float | None:
        pairs = [(entropy_at(one, level), entropy_at(other, level)) for level in LEVELS]
        gaps = [a - b for a, b in pairs if a is not None and b is not None]
        return sum(gaps) / len(gaps) if gaps else None

    name = f"policy entropy at the same accuracy, {_NAMES[first]} minus {_NAMES[second]}, nats per token"
    return Difference(name, _by_seed(runs, first, second, measure), "no accuracy that both cross")


def _scaling(scalings: Scalings) -> list[Difference]:
    """Both count: a checkpoint with a lower pass@1 has more to gain, one with a higher begins ahead."""
    ends, gains = {}, {}
    for seed, found in scalings.items():
        fd, grpo = found["fd"], found["grpo"]
        last = max(fd)
        if abs(fd[1] - grpo[1]) <= MATCHED:
            ends[seed] = fd[last] - grpo[last]
            gains[seed] = ends[seed] - (fd[1] - grpo[1])
    reason = f"too few pairs with pass@1 within {MATCHED}"
    return [
        Difference("pass@16, FD minus GRPO", ends, reason),
        Difference("gain from pass@1 to pass@16, FD minus GRPO", gains, reason),
    ]


def _final(rows: Sequence[Row]) -> float | None:
    return next((row[SUITE] for row in reversed(rows) if row.get(SUITE) is not None), None)


def _finals(runs: Runs) -> dict[str, dict[str, float | None]]:
    names = ("fd", "grpo", "grpo_over_fd", "grpo_over_ground_truth", "grpo_over_lean_output")
    return {name: {str(seed): _final(rows) for seed, rows in runs.get(name, {}).items()} for name in names}


def _second_stage(runs: Runs) -> list[Difference]:
    """Held-out pass@1 after the same number of attempts in all."""
    return [
        paired(runs, f"final pass@1, GRPO over FD minus {label}", "grpo_over_fd", other, _final)
        for other, label in (("grpo", "GRPO"), ("fd", "FD"))
    ]


def _sources(runs: Runs) -> list[Difference]:
    other = "grpo_over_lean_output"
    return [
        paired(runs, f"final pass@1, GRPO over {label} minus GRPO over Lean output", one, other, _final)
        for one, label in (("grpo_over_fd", "tutor"), ("grpo_over_ground_truth", "ground truth"))
    ]  # fmt: skip


def _ema(runs: Runs, steps: int) -> list[dict[str, Any]]:
    """Retention 0.5, 0.9 and 1 (frozen), every five steps, without and with the anchor."""
    early_steps = max(1, round(steps * EARLY_SHARE))

    def early(rows: Sequence[Row]) -> float | None:
        return mean_over(rows, steps=early_steps)

    def whole(rows: Sequence[Row]) -> float | None:
        return mean_over(rows, steps=steps)

    def fall(rows: Sequence[Row]) -> float | None:
        return drop(rows, until_step=steps)

    def end(rows: Sequence[Row]) -> float | None:
        ends = windows(rows, until_step=steps)
        return ends[-1].values["train/pass_rate"] if ends else None

    lasts = {
        name: {str(seed): _rounded(end(rows)) for seed, rows in runs.get(name, {}).items()}
        for name in ("ema_0.5", "ema_0.9", "ema_frozen", "ema_0.5_anchor", "fd")
    }
    return [
        _claim("An aggressive EMA learns faster early",
               [paired(runs, f"mean accuracy of the first {early_steps} steps, 0.5 minus frozen",
                       "ema_0.5", "ema_frozen", early)]),
        _claim("An aggressive EMA collapses more",
               [paired(runs, "best minus last accuracy, 0.5 minus frozen", "ema_0.5", "ema_frozen", fall),
                paired(runs, "best minus last accuracy, 0.5 minus 0.9", "ema_0.5", "ema_0.9", fall)],
               **{f"accuracy at step {steps}": lasts}),
        _claim("A frozen teacher is slower than EMA 0.9",
               [paired(runs, f"mean accuracy of {steps} steps, 0.9 minus frozen", "ema_0.9", "ema_frozen", whole)]),
        _claim("The anchor lessens the collapse of an aggressive EMA (ours, not the paper's)",
               [paired(runs, "best minus last accuracy, without minus with it", "ema_0.5", "ema_0.5_anchor", fall)]),
        _claim("The anchor slows nothing: EMA 0.9 learns no slower with it (ours, margin 0.03)",
               [_no_slower(runs, "fd", "ema_0.9", whole)]),
    ]  # fmt: skip


def _no_slower(runs: Runs, with_anchor: str, without: str, measure: Measure, margin: float = 0.03) -> Difference:
    plain = paired(runs, f"mean accuracy, with the anchor minus without, plus {margin}", with_anchor, without, measure)
    return Difference(plain.name, {seed: value + margin for seed, value in plain.per_seed.items()}, plain.reason)


def _constant(runs: Runs) -> list[Difference]:
    """Start: two steps for the KL, three for the length (in warm-up, hardly trained); end: the last ten."""
    made = []
    for name, word, sign in (("constant_short", "short", -1), ("constant_long", "long", 1)):
        rest: dict[int, float] = {}
        moved: dict[int, float] = {}
        for seed, rows in runs.get(name, {}).items():
            kl = start_and_end([row["policy/teacher_kl"] for row in trained(rows)], 2, 10)
            length = start_and_end(written_tokens(rows), 3, 10)
            if kl is not None and length is not None:
                rest[seed] = INTERNALISED - kl[1] / kl[0]
                moved[seed] = sign * math.log(length[1] / length[0])
        made.append(Difference(f"{word} recipe: {INTERNALISED} minus KL at the end over KL at the start", rest))
        made.append(Difference(f"{word} recipe: log of length at the end over start, sign as told", moved))
    return made


def _self_feedback(answers: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Null: a model that was pre-trained on its dialogues alone writes no feedback."""
    figures = {"asked": dict(answers) if answers else None, "reason": self_reason(answers)}
    titles = ("Self-FD learns from its own feedback", "GRPO over Self-FD is better than GRPO alone")
    return [{"claim": title, "holds": None, "figures": figures} for title in titles]


def self_reason(answers: Mapping[str, Any] | None) -> str:
    """Say why Self-FD is not measured."""
    if not answers:
        return "not asked"
    return (
        f"the tiny model knows only its dialogues: {answers['usable']} of {answers['attempts']} questions got a usable"
        " answer from a frozen copy of it"
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
