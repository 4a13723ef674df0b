"""Row weights against their definition, sample by sample."""

from __future__ import annotations

import math

import pytest
import torch

from fd_async.algorithms.importance import Importance, RowWeights, RunningWeights, effective_share
from tests.unit.algorithms.cases import assert_near, gradients_of, literal_rows, loss_of, make_case, targets_of

LENGTHS = (4, 1, 6, 2)


def literal_importance(importance: Importance, cap: float, logp: list[float], behaviour: list[float]) -> list[float]:
    """One sample at a time, one product at a time."""
    result, start = [], 0
    for length in LENGTHS:
        product = 1.0
        for t in range(start, start + length):
            ratio = math.exp(logp[t] - behaviour[t])
            weight = {"none": 1.0, "token": ratio, "prefix": product}[importance]
            result.append(min(weight, cap) if cap else weight)
            product *= ratio
        start += length
    return result


@pytest.mark.parametrize("importance", ["none", "token", "prefix"])
@pytest.mark.parametrize("cap", [0.0, 1.3])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 13])
def test_weights_equal_their_definition_over_chunk_borders(
    importance: Importance, cap: float, chunk_tokens: int
) -> None:
    """Loss and gradients are the literal rows times factor and importance, wherever chunks cut the samples."""
    case = make_case()
    targets, generator = targets_of(case), torch.Generator().manual_seed(4)
    factor_T = torch.rand(13, generator=generator, dtype=torch.float64)
    plain = loss_of(case, targets, temperature=0.7)
    behaviour_T = plain.sampled_logprobs_T + 0.5 * torch.randn(13, generator=generator, dtype=torch.float64)
    weights = RowWeights(factor_T, importance, cap, behaviour_T, LENGTHS)
    result = loss_of(case, targets, chunk_tokens=chunk_tokens, temperature=0.7, weights=weights)
    expected = literal_importance(importance, cap, plain.sampled_logprobs_T.tolist(), behaviour_T.tolist())
    assert result.importance_T.tolist() == pytest.approx(expected, rel=1e-12)
    assert result.capped_T.tolist() == [float(cap > 0 and value == cap) for value in expected]
    literal = (torch.stack(literal_rows(case, 5, "truncated")) * factor_T * torch.tensor(expected).double()).sum()
    assert result.loss.item() == pytest.approx(literal.item(), rel=1e-6)
    exact = (torch.stack(literal_rows(case, 5, "truncated")) * factor_T * result.importance_T).sum()
    for mine, other in zip(gradients_of(case, result.loss), gradients_of(case, exact), strict=True):
        assert_near(mine, other, 1e-12)


def test_long_samples_neither_overflow_nor_vanish_into_nan() -> None:
    """Products over thousands of tokens stay in log space; without a cap they stop at the largest safe weight."""
    num = 5000
    for drift in (0.5, -0.5):
        for cap in (0.0, 2.0):
            weights = RowWeights(None, "prefix", cap, torch.full((num,), -3.0 - drift), (num,))
            taken = RunningWeights(weights, num).take(slice(0, num), torch.full((num,), -3.0))
            assert taken.weight_C.float().isfinite().all()
            assert taken.importance_C[0] == 1.0
            assert taken.importance_C[1].item() == pytest.approx(min(math.exp(drift), cap or 9.0), rel=1e-6)


def test_missing_or_wrong_inputs_are_refused() -> None:
    """Lengths and log-probs must describe every row."""
    with pytest.raises(ValueError, match="log-prob of every row"):
        RunningWeights(RowWeights(importance="token"), 3)
    with pytest.raises(ValueError, match="add up to 2, not to 3"):
        RunningWeights(RowWeights(None, "prefix", 2.0, torch.zeros(3), (1, 1)), 3)


def test_effective_share_is_one_for_equal_weights_and_small_for_one_heavy_row() -> None:
    """Kish's formula."""
    assert effective_share(10.0, 10.0, 10) == 1.0
    assert effective_share(100.0, 100.0**2, 10) == pytest.approx(0.1)
    assert effective_share(0.0, 0.0, 0) == 1.0
