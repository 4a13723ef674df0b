"""What the anchor costs and saves, and whether constant feedback is internalised: curves with known answers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.fakes.mini_runs import SEEDS, run, verdict

FLAT = [0.4] * 6
CLAIMS = {
    "slows": ("The anchor slows nothing", "mean accuracy, with the anchor minus without, plus 0.03"),
    "lessens": ("The anchor lessens", "best minus last accuracy, without minus with it"),
}


def judged(which: str, runs: dict[str, Any]) -> tuple[bool | None, dict[str, Any]]:
    """Return what a claim about the anchor comes to, and the comparison that decided it."""
    words, name = CLAIMS[which]
    claim = verdict(words, runs)
    return claim["holds"], claim["figures"][name]


def pair(first: str, one: list[float], second: str, other: list[float]) -> dict[str, Any]:
    """Make the runs of two conditions; all rates of both sides lie a little higher for later seeds."""
    return {
        name: {seed: run([rate + 0.01 * seed for rate in rates]) for seed in SEEDS}
        for name, rates in ((first, one), (second, other))
    }


@pytest.mark.parametrize(
    ("gap", "expected"), [(0.0, True), (-0.029, True), (-0.031, False), (-0.1, False), (0.1, True)]
)
def test_the_anchor_may_cost_three_points_and_no_more(gap: float, expected: bool) -> None:
    """The mean over all steps of EMA 0.9 with it, minus that without it, plus the margin."""
    holds, figures = judged("slows", pair("fd", [0.4 + gap] * 6, "ema_0.9", FLAT))
    assert holds is expected
    assert figures["mean"] == pytest.approx(gap + 0.03)
    assert figures["finding"] == ("shown" if expected else "contradicted")


def test_the_cost_of_the_anchor_is_that_of_the_sweeps_steps_alone() -> None:
    """The main run is longer than the sweep; what it does later counts nothing."""
    late = pair("fd", [*FLAT, 0.0, 0.0], "ema_0.9", FLAT)
    assert judged("slows", late)[1]["mean"] == pytest.approx(0.03)
    assert judged("slows", pair("fd", FLAT[:3], "ema_0.9", FLAT))[0] is None  # shorter than the sweep


def test_a_cost_that_seeds_do_not_agree_on_is_not_shown() -> None:
    """Mean above 0, interval on both sides of it."""
    runs = pair("fd", FLAT, "ema_0.9", FLAT)
    runs["fd"] = {seed: run([0.4 + gap] * 6) for seed, gap in zip(SEEDS, (-0.1, 0.0, 0.13), strict=True)}
    holds, figures = judged("slows", runs)
    assert (holds, figures["finding"]) == (False, "not shown")
    assert figures["mean"] > 0


@pytest.mark.parametrize(
    ("without", "anchored", "mean", "expected"),
    [
        ([0.2, 0.5, 0.6, 0.4, 0.2, 0.1], [0.2, 0.5, 0.6, 0.6, 0.6, 0.55], 0.45, True),
        ([0.2, 0.5, 0.6, 0.6, 0.6, 0.55], [0.2, 0.5, 0.6, 0.4, 0.2, 0.1], -0.45, False),
        (FLAT, FLAT, 0.0, False),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 0.0, False),  # worse, but it fell from nothing
    ],
)
def test_the_anchor_must_save_what_is_lost_from_the_best(
    without: list[float], anchored: list[float], mean: float, expected: bool
) -> None:
    """Not accuracy as such: best minus last, without minus with it."""
    holds, figures = judged("lessens", pair("ema_0.5", without, "ema_0.5_anchor", anchored))
    assert holds is expected
    assert figures["mean"] == pytest.approx(mean)


@pytest.mark.parametrize(("which", "first", "second"), [("slows", "fd", "ema_0.9"),
                                                         ("lessens", "ema_0.5", "ema_0.5_anchor")])  # fmt: skip
def test_seeds_of_the_anchor_are_paired_and_one_pair_is_too_few(which: str, first: str, second: str) -> None:
    """Seeds that one side lacks are left out; with one left the claim is open, whatever the figure."""
    runs = pair(first, [0.5, 0.5, 0.5, 0.4, 0.3, 0.2], second, [0.3] * 6)
    del runs[second][2]
    holds, figures = judged(which, runs)
    assert (holds, list(figures["per_seed"])) == (True, ["1", "3"])
    del runs[first][3]
    holds, figures = judged(which, runs)
    assert (holds, list(figures["per_seed"]), figures["finding"]) == (None, ["1"], "not measured")
    assert "needed: 2" in figures["reason"]
    assert judged(which, {first: runs[first]})[0] is None


def constant(ratio: float, short: float, long: float, *, spread: float = 0.0) -> dict[str, Any]:
    """Make runs of constant feedback whose KL and length end at these multiples of where they start."""
    return {
        f"constant_{word}": {
            seed: run(
                [0.1] * 3, kl=[0.1, 0.05, 0.1 * (ratio + spread * (seed - 2))], lengths=[80.0, 80.0, 80.0 * times]
            )
            for seed in SEEDS
        }
        for word, times in (("short", short), ("long", long))
    }


def kl_of(claim: dict[str, Any], word: str) -> dict[str, Any]:
    """Return the comparison of the KL."""
    return claim["figures"][f"{word} recipe: 0.1 minus KL at the end over KL at the start"]


@pytest.mark.parametrize(("ratio", "expected"), [(0.0, True), (0.09, True), (0.11, False), (1.0, False), (3.0, False)])
def test_internalised_means_a_kl_below_a_tenth_of_its_start(ratio: float, expected: bool) -> None:
    """Both lengths go as told, so that the KL alone decides."""
    claim = verdict("internalised", constant(ratio, 0.8, 1.2))
    assert claim["holds"] is expected
    assert [kl_of(claim, word)["mean"] for word in ("short", "long")] == [pytest.approx(0.1 - ratio)] * 2


def test_a_kl_that_only_some_seeds_lose_is_not_internalised() -> None:
    """0.04, 0.09 and 0.14 of the start: the mean is below a tenth, and not surely so."""
    claim = verdict("internalised", constant(0.09, 0.8, 1.2, spread=0.05))
    assert claim["holds"] is False
    assert kl_of(claim, "short")["finding"] == "not shown"


@pytest.mark.parametrize(("short", "long", "expected"), [(0.8, 1.2, True), (1.2, 1.2, False), (0.8, 0.8, False),
                                                          (1.0, 1.2, False)])  # fmt: skip
def test_lengths_go_as_told(short: float, long: float, expected: bool) -> None:
    """As the log of end over start, with the sign turned for the short recipe."""
    claim = verdict("internalised", constant(0.01, short, long))
    assert claim["holds"] is expected
    for word, times, sign in (("short", short, -1), ("long", long, 1)):
        figures = claim["figures"][f"{word} recipe: log of length at the end over start, sign as told"]
        assert figures["mean"] == pytest.approx(sign * math.log(times), abs=1e-4)


def test_the_kl_of_one_recipe_or_one_seed_says_nothing() -> None:
    """A recipe that was not run leaves the claim open; so do runs too short for a start and an end."""
    runs = constant(0.01, 0.8, 1.2)
    assert verdict("internalised", {"constant_short": runs["constant_short"]})["holds"] is None
    one = {name: {1: found[1]} for name, found in runs.items()}
    assert verdict("internalised", one)["holds"] is None
    short = {name: {seed: rows[:12] for seed, rows in found.items()} for name, found in runs.items()}
    assert verdict("internalised", short)["holds"] is None
    bad = constant(0.5, 0.8, 1.2)
    assert verdict("internalised", {"constant_short": bad["constant_short"]})["holds"] is False  # fails already
