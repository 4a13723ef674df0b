"""The criteria of the claims, on made-up figures that must come out either way."""

from __future__ import annotations

from typing import Any

import pytest

from bench.mini.claims import claims, paired
from bench.mini.comparing import Difference, holds
from tests.fakes.mini_runs import FINAL, SEEDS, run, seeds, verdict

FAST, SLOW = [0.1, 0.3, 0.5, 0.6, 0.65, 0.7], [0.1, 0.12, 0.2, 0.25, 0.3, 0.35]


@pytest.mark.parametrize(("fd", "grpo", "expected"), [(FAST, SLOW, True), (SLOW, FAST, False)])
def test_sample_efficiency_is_the_area_under_the_curve(fd: list[float], grpo: list[float], expected: bool) -> None:
    """Per attempt and per step, either way."""
    runs = {"fd": seeds(run(fd)), "grpo": seeds(run(grpo, attempts=64), nudge=-0.003)}
    assert verdict("per attempt", runs)["holds"] is expected
    assert verdict("per gradient step", runs)["holds"] is expected


def test_efficiency_per_attempt_and_per_step_are_told_apart() -> None:
    """Five times the attempts of a step: as fast per step, slower per attempt."""
    runs = {"fd": seeds(run(FAST)), "grpo": seeds(run([rate for rate in FAST for _ in range(5)], attempts=160))}
    assert verdict("per attempt", runs)["holds"] is True
    assert verdict("per gradient step", runs)["holds"] is False


@pytest.mark.parametrize(("fd", "grpo", "expected"), [(0.08, 0.05, True), (0.05, 0.08, False)])
def test_entropy_is_compared_at_the_same_accuracy(fd: float, grpo: float, expected: bool) -> None:
    """Not at the same step: the run that learns faster is further on."""
    runs = {"fd": seeds(run(FAST, [fd] * 6)), "grpo": seeds(run(SLOW, [grpo] * 6, attempts=128))}
    assert verdict("higher entropy than GRPO also at the same accuracy", runs)["holds"] is expected
    assert verdict("higher policy entropy than GRPO throughout", runs)["holds"] is expected


def test_entropy_throughout_training_and_at_the_same_accuracy_are_told_apart() -> None:
    """A run that learns nothing keeps its entropy: higher all along, and lower where the other was as good."""
    falling = [0.09, 0.08, 0.07, 0.06, 0.05, 0.04]
    flat = [0.06, 0.059, 0.058, 0.057, 0.056, 0.055]
    runs = {"fd": seeds(run(SLOW, flat)), "grpo": seeds(run(FAST, falling))}
    assert verdict("higher entropy than GRPO also at the same accuracy", runs)["holds"] is False
    runs["grpo"] = seeds(run(FAST, [0.09, 0.08, 0.03, 0.02, 0.01, 0.01]))
    assert verdict("higher policy entropy than GRPO throughout", runs)["holds"] is True
    assert verdict("higher entropy than GRPO also at the same accuracy", runs)["holds"] is False


def test_the_papers_own_method_is_judged_without_the_anchor() -> None:
    """The main run has one, which is not the paper's."""
    runs = {"fd": seeds(run(FAST)), "ema_0.9": seeds(run(SLOW)), "grpo": seeds(run([0.3] * 6, 0.05), nudge=0.001)}
    assert verdict("per attempt", runs)["holds"] is True
    assert verdict("without our anchor", runs)["holds"] is False
    assert verdict("without our anchor", runs | {"ema_0.9": seeds(run(FAST))})["holds"] is True


def test_entropy_without_a_shared_accuracy_is_not_measured() -> None:
    """Null with the reason, not false."""
    runs = {"fd": seeds(run([0.5, 0.6, 0.7])), "grpo": seeds(run([0.1, 0.12, 0.13]))}
    claim = verdict("higher entropy than GRPO also at the same accuracy", runs)
    assert claim["holds"] is None
    assert "no accuracy that both cross" in str(claim["figures"])


@pytest.mark.parametrize(
    ("fd", "grpo", "expected"),
    [
        ({1: 0.40, 16: 0.80}, {1: 0.41, 16: 0.70}, True),
        ({1: 0.40, 16: 0.66}, {1: 0.41, 16: 0.70}, False),
        ({1: 0.36, 16: 0.69}, {1: 0.40, 16: 0.70}, False),  # a larger gain that only makes up for the start
        ({1: 0.50, 16: 0.90}, {1: 0.40, 16: 0.70}, None),  # no match
    ],
)
def test_scaling_needs_the_same_pass_at_1(fd: dict[int, float], grpo: dict[int, float], expected: bool | None) -> None:
    """Both pass@16 and the gain from pass@1 must be larger."""
    pairs = {
        seed: {"fd": {1: fd[1], 16: fd[16] + 0.002 * seed}, "grpo": grpo, "fd_step": 6, "grpo_step": 48}
        for seed in SEEDS
    }
    assert verdict("better pass@k", {}, pairs)["holds"] is expected


@pytest.mark.parametrize(
    ("fd", "grpo", "both", "expected"), [(0.7, 0.4, 0.8, True), (0.8, 0.4, 0.7, False), (0.5, 0.8, 0.7, False)]
)
def test_the_second_stage_must_beat_either_method(fd: float, grpo: float, both: float, expected: bool) -> None:
    """By held-out pass@1 at the end."""
    runs = {
        "fd": seeds(run(FAST, final=fd)), "grpo": seeds(run(SLOW, final=grpo), nudge=0.001),
        "grpo_over_fd": seeds(run(FAST, final=both), nudge=0.002),
    }  # fmt: skip
    assert verdict("GRPO over FD is best", runs)["holds"] is expected


@pytest.mark.parametrize(("lean", "expected"), [(0.4, True), (0.75, False)])
def test_both_sources_must_beat_lean_output(lean: float, expected: bool) -> None:
    """One of two is not enough."""
    runs = {
        "grpo_over_fd": seeds(run(FAST, final=0.7)), "grpo_over_ground_truth": seeds(run(FAST, final=0.8)),
        "grpo_over_lean_output": seeds(run(FAST, final=lean), nudge=0.001),
    }  # fmt: skip
    assert verdict("better initialisations", runs)["holds"] is expected


RISING, FALLING = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.2, 0.4, 0.5, 0.3, 0.1, 0.0]


def ema(aggressive: list[float], frozen: list[float], anchored: list[float]) -> dict[str, Any]:
    """Make the runs of the sweep."""
    return {
        "ema_0.5": seeds(run(aggressive), nudge=0.002), "ema_frozen": seeds(run(frozen), nudge=0.001),
        "ema_0.9": seeds(run([0.15, 0.3, 0.4, 0.5, 0.6, 0.65])), "ema_0.5_anchor": seeds(run(anchored)),
    }  # fmt: skip


def test_the_trade_off_of_the_ema_both_ways() -> None:
    """Early speed, collapse, slowness of a frozen teacher, and what the anchor saves."""
    there = ema(FALLING, RISING, RISING)
    away = ema(RISING, [0.3, 0.5, 0.6, 0.7, 0.4, 0.2], FALLING)
    for words in ("learns faster early", "collapses more", "frozen teacher is slower", "anchor lessens"):
        assert verdict(words, there)["holds"] is True, words
        assert verdict(words, away)["holds"] is False, words


@pytest.mark.parametrize(
    ("kl", "short", "long", "expected"),
    [
        ([0.1, 0.02, 0.003], [80, 70, 60], [80, 90, 95], True),
        ([0.1, 0.06, 0.05], [80, 70, 60], [80, 90, 95], False),
        ([0.1, 0.02, 0.003], [80, 81, 82], [80, 90, 95], False),
        ([0.1, 0.02, 0.003], [80, 70, 60], [80, 75, 70], False),
    ],
)
def test_constant_feedback_needs_kl_and_both_lengths(
    kl: list[float], short: list[float], long: list[float], expected: bool
) -> None:
    """KL below a tenth of its start, shorter with the short text, longer with the long one."""

    def three(lengths: list[float]) -> dict[int, Any]:
        return {
            seed: run([0.1] * 3, kl=[value * (1 + 0.01 * seed) for value in kl[:1]] + kl[1:],
                      lengths=[length + 0.1 * seed for length in lengths])
            for seed in SEEDS
        }  # fmt: skip

    runs = {"constant_short": three(short), "constant_long": three(long)}
    assert verdict("internalised", runs)["holds"] is expected


def test_self_feedback_is_never_claimed() -> None:
    """It says why, with what was asked."""
    answers = {"attempts": 8, "usable": 0}
    found = [claim for claim in claims({}, {}, answers, 60) if "Self-FD" in claim["claim"]]
    assert [claim["holds"] for claim in found] == [None, None]
    assert all("0 of 8" in claim["figures"]["reason"] for claim in found)


def test_nothing_holds_before_anything_ran() -> None:
    """Every claim is null, and says so."""
    assert {claim["holds"] for claim in claims({}, {}, None, 60)} == {None}


@pytest.mark.parametrize(
    ("values", "finding"),
    [
        ([0.10, 0.12, 0.11], "shown"),
        ([0.20, -0.15, 0.10], "not shown"),
        ([-0.10, -0.12, -0.11], "contradicted"),
        ([0.10], "not measured"),
        ([], "not measured"),
        ([0.0, 0.0, 0.0], "not shown"),
    ],
)
def test_a_difference_counts_by_its_interval_over_seeds(values: list[float], finding: str) -> None:
    """A mean above 0 is not enough, and one seed says nothing."""
    assert Difference("d", dict(enumerate(values))).finding == finding


def test_the_interval_is_students() -> None:
    """Mean 2, standard deviation 1, three seeds: 2.920 / √3 to either side."""
    difference = Difference("d", {1: 1.0, 2: 2.0, 3: 3.0})
    assert difference.half_width == pytest.approx(2.920 / 3**0.5)
    assert difference.figures()["interval"] == [pytest.approx(0.3141, abs=1e-4), pytest.approx(3.6859, abs=1e-4)]


def test_one_failed_comparison_outweighs_one_that_is_missing() -> None:
    """And without a failed one the claim is open."""
    good, bad, none = (Difference("d", dict(enumerate(v))) for v in ([1.0, 1.1], [-1.0, -1.1], []))
    good = Difference("d", {1: 1.0, 2: 1.01})
    assert holds([good]) is True
    assert holds([good, bad]) is False
    assert holds([bad, none]) is False
    assert holds([good, none]) is None
    assert holds([]) is None


def test_only_seeds_that_both_sides_have_are_paired() -> None:
    """A run that is not finished leaves its pair out."""
    runs = {"a": {1: run([0.5], final=0.5), 2: run([0.5], final=0.6)}, "b": {2: run([0.5], final=0.4)}}
    found = paired(runs, "d", "a", "b", lambda rows: rows[-1][FINAL])
    assert found.per_seed == {2: pytest.approx(0.2)}
