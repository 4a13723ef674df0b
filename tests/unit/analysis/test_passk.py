"""pass@k and Wilson's interval."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_async.analysis.passk import mean_pass_at_k, pass_at_k, wilson_interval


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 2), (7, 3, 7), (4, 3, 2)])
def test_pass_at_k_equals_the_share_of_all_choices_of_k(n: int, c: int, k: int) -> None:
    """Compared with counting every subset."""
    samples = [True] * c + [False] * (n - c)
    choices = list(itertools.combinations(samples, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(chosen) for chosen in choices) / len(choices))


@settings(deadline=None)
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


def test_the_mean_leaves_out_statements_with_too_few_verdicts() -> None:
    """A statement whose attempts were lost to infrastructure is not counted as failed."""
    assert mean_pass_at_k([(4, 4), (4, 0), (1, 0)], 2) == 0.5
    assert mean_pass_at_k([(1, 1)], 2) is None
    assert mean_pass_at_k([], 1) is None


def test_wilson_matches_a_known_value() -> None:
    """Newcombe 1998, table I: 15 of 148 gives 0.0624 to 0.1605."""
    low, high = wilson_interval(15, 148, z=1.959964)
    assert (round(low, 4), round(high, 4)) == (0.0624, 0.1605)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@settings(deadline=None)
@given(st.integers(1, 1000), st.data())
def test_wilson_holds_the_share_and_stays_inside_0_and_1(n: int, data: st.DataObject) -> None:
    """Also at 0 and n correct."""
    c = data.draw(st.integers(0, n))
    low, high = wilson_interval(c, n)
    assert 0 <= low <= c / n + 1e-12
    assert c / n - 1e-12 <= high <= 1
    assert not math.isclose(low, high)
