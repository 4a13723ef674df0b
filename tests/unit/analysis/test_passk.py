"""pass@k against counting every choice, and intervals against simulated suites whose truth is known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fd_async.analysis.passk import estimate_pass_at_k, interval_of_mean, pass_at_k, wilson_interval

Draw = Callable[[np.random.Generator, int], np.ndarray]
WORLDS: dict[str, Draw] = {
    "all hard": lambda rng, size: np.full(size, 0.02),
    "all alike": lambda rng, size: np.full(size, 0.5),
    "mild": lambda rng, size: rng.beta(3, 3, size),
    "easy or hard": lambda rng, size: rng.beta(0.2, 0.8, size),
    "few easy": lambda rng, size: rng.beta(0.05, 1, size),
    "few hard": lambda rng, size: rng.beta(1, 0.05, size),
    "known or not": lambda rng, size: (rng.random(size) < 0.5) * 1.0,
    "seldom, then often": lambda rng, size: (rng.random(size) < 0.03) * 0.6,
}
"""How likely a model is to solve a statement, drawn for each statement."""


def test_pass_at_k_equals_the_share_of_all_choices_of_k() -> None:
    """Every n up to 8, every number of correct samples and every k, compared with counting every subset."""
    for n in range(1, 9):
        for c in range(n + 1):
            samples = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                choices = list(itertools.combinations(samples, k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices), abs=1e-15)


@given(st.integers(1, 300), st.data())
def test_pass_at_k_rises_with_k_and_starts_at_the_mean(n: int, data: st.DataObject) -> None:
    """pass@1 is the plain share; more samples never hurt."""
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert 0 <= pass_at_k(n, c, 1) <= pass_at_k(n, c, k) + 1e-12 <= 1 + 1e-12


def test_pass_at_k_needs_k_samples() -> None:
    """Too few samples are an error, not a guess."""
    for n, c, k in [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)]:
        with pytest.raises(ValueError, match="not defined"):
            pass_at_k(n, c, k)


def test_pass_at_k_is_unbiased() -> None:
    """Its mean over all outcomes of n samples is 1 - (1 - p)^k exactly, by the binomial distribution."""
    n, p = 7, 0.3
    for k in range(1, n + 1):
        mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1))
        assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_the_mean_leaves_out_statements_with_too_few_verdicts() -> None:
    """A statement whose attempts were lost to infrastructure is not counted as failed."""
    found = estimate_pass_at_k([(4, 4), (4, 0), (1, 0)], 2)
    assert found is not None
    assert found.value == 0.5
    assert (found.low, found.high) == wilson_interval(1, 2, z=1.959964)
    assert estimate_pass_at_k([(1, 1)], 2) is None
    assert estimate_pass_at_k([], 1) is None


def test_wilson_matches_a_known_value() -> None:
    """Newcombe 1998, table I: 15 of 148 gives 0.0624 to 0.1605."""
    low, high = wilson_interval(15, 148, z=1.959964)
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@given(st.integers(1, 1000), st.data())
def test_wilson_holds_the_share_and_stays_inside_0_and_1(n: int, data: st.DataObject) -> None:
    """Also at 0 and n correct."""
    c = data.draw(st.integers(0, n))
    low, high = wilson_interval(c, n)
    assert 0 <= low <= c / n <= high <= 1
    assert not math.isclose(low, high)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_the_interval_holds_the_mean_and_never_shrinks_to_a_point(values: list[float]) -> None:
    """Whatever the values: also all 0, all 1, all equal, a single one."""
    low, high = interval_of_mean(values)
    mean = math.fsum(values) / len(values)
    assert 0 <= low <= mean + 1e-12
    assert mean - 1e-12 <= high <= 1
    assert high - low > 1e-4


def test_one_sample_per_statement_gives_wilsons_interval() -> None:
    """Then a statement is a coin, and so is a suite that is solved always or never, whatever the samples."""
    for correct in range(13):
        coins = [1.0] * correct + [0.0] * (12 - correct)
        assert interval_of_mean(coins) == pytest.approx(wilson_interval(correct, 12, z=1.959964), abs=1e-12)


def test_more_samples_per_statement_narrow_the_interval_towards_the_spread_of_statements() -> None:
    """32 samples of statements that are all alike say more than one sample each; statements that differ set a floor."""
    once, alike, differing = [1.0, 0.0] * 50, [0.4, 0.6] * 50, [0.0, 1.0] * 50
    widths = [high - low for low, high in map(interval_of_mean, (once, alike, differing))]
    assert widths[1] < widths[0] / 2
    assert widths[2] == widths[0]


@pytest.mark.parametrize(
    ("statements", "samples", "k", "floor"),
    [(20, 1, 1, 0.92), (20, 32, 1, 0.92), (20, 32, 8, 0.92), (64, 4, 4, 0.93), (64, 32, 8, 0.93), (244, 32, 1, 0.935)],
)
def test_the_interval_covers_the_truth_as_often_as_it_says(statements: int, samples: int, k: int, floor: float) -> None:
    """95 % nominal: in no world under the floor, over all worlds between 94 and 99.5 %; 1,000 suites each, seeded."""
    rng = np.random.default_rng([statements, samples, k])
    values = np.array([pass_at_k(samples, c, k) for c in range(samples + 1)])
    shares = {}
    for world, draw in WORLDS.items():
        truth = float(np.mean(1 - (1 - draw(rng, 400_000)) ** k))
        suites = values[rng.binomial(samples, draw(rng, 1000 * statements))].reshape(1000, statements)
        found = [interval_of_mean(suite) for suite in suites.tolist()]
        shares[world] = sum(low - 1e-9 <= truth <= high + 1e-9 for low, high in found) / 1000
    assert min(shares.values()) >= floor, shares
    assert 0.94 <= sum(shares.values()) / len(shares) <= 0.995, shares
