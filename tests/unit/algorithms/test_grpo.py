"""Group advantages and the clipped policy loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fd_async.algorithms.advantages import group_advantages, is_flat
from fd_async.algorithms.grpo import PolicyLoss, clipped_policy_loss, kl_k3


def loss_at(ratio: float, advantage: float, **changes: Any) -> tuple[PolicyLoss, Tensor]:
    """Return loss and gradient with respect to the log-prob of one token with this ratio."""
    behaviour_T = torch.tensor([-2.0], dtype=torch.float64)
    logprobs_T = (behaviour_T + math.log(ratio)).requires_grad_()
    settings: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.3, "importance_cap": 0.0} | changes
    result = clipped_policy_loss(logprobs_T, behaviour_T, torch.tensor([advantage], dtype=torch.float64), **settings)
    (gradient_T,) = torch.autograd.grad(result.loss, logprobs_T)
    return result, gradient_T


def test_advantages_with_and_without_standard_deviation() -> None:
    """Numbers by hand: rewards 1, 0, 0, 0 have mean 1/4 and sample deviation 1/2."""
    assert group_advantages([1, 0, 0, 0], divide_by_std=False) == [0.75, -0.25, -0.25, -0.25]
    assert group_advantages([1, 0, 0, 0], divide_by_std=True) == pytest.approx([1.5, -0.5, -0.5, -0.5])


@pytest.mark.parametrize("rewards", [[0.0, 0.0, 0.0], [1.0, 1.0], [0.3], [0.1, 0.1, 0.1]])
def test_flat_groups_get_exact_zeros(rewards: list[float]) -> None:
    """No division by zero and no rounding residue."""
    assert is_flat(rewards)
    assert group_advantages(rewards, divide_by_std=True) == [0.0] * len(rewards)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.2, 2.0, -2.4, -2.4),
        (1.5, 2.0, -2.6, 0.0),
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_clip_cases(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    """Inside, above and below the clip, for both signs of the advantage."""
    result, gradient_T = loss_at(ratio, advantage)
    assert result.loss.item() == pytest.approx(loss)
    assert gradient_T.item() == pytest.approx(gradient)
    assert bool(result.clipped_T) == (gradient == 0.0)


def test_importance_cap_bounds_what_the_clip_does_not() -> None:
    """A negative advantage at a large ratio is weighted by the cap, with gradient."""
    result, gradient_T = loss_at(10.0, -1.0, importance_cap=2.0)
    assert result.loss.item() == pytest.approx(2.0)
    assert gradient_T.item() == pytest.approx(2.0)
    assert result.capped_T.item()
    assert loss_at(10.0, -1.0)[1].item() == pytest.approx(10.0)


def test_importance_cap_is_silent_below_it() -> None:
    """Ratios under the cap give the uncapped loss and gradient."""
    for ratio in (0.5, 1.0, 1.9):
        for advantage in (-1.0, 1.0):
            capped, plain = loss_at(ratio, advantage, importance_cap=2.0), loss_at(ratio, advantage)
            assert capped[0].loss.item() == pytest.approx(plain[0].loss.item())
            assert capped[1].item() == pytest.approx(plain[1].item())


def test_kl_estimate_is_unbiased_and_never_negative() -> None:
    """The expectation of k3 under p over a whole vocabulary is KL(p || other)."""
    generator = torch.Generator().manual_seed(0)
    logp_V = torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(-1)
    other_V = torch.randn(50, generator=generator, dtype=torch.float64).log_softmax(-1)
    k3_V = kl_k3(logp_V, other_V)
    assert (k3_V >= 0).all()
    torch.testing.assert_close((logp_V.exp() * k3_V).sum(), (logp_V.exp() * (logp_V - other_V)).sum())


def test_kl_to_the_reference_pulls_back() -> None:
    """With zero advantage only the KL term acts: weight * (1 - reference / policy)."""
    behaviour_T = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    logprobs_T = behaviour_T.clone().requires_grad_()
    reference_T = torch.tensor([-1.0, -1.5], dtype=torch.float64)
    result = clipped_policy_loss(
        logprobs_T,
        behaviour_T,
        torch.zeros(2, dtype=torch.float64),
        clip_low=0.2,
        clip_high=0.2,
        importance_cap=2.0,
        reference_T=reference_T,
        kl_weight=0.1,
    )
    (gradient_T,) = torch.autograd.grad(result.loss, logprobs_T)
    assert gradient_T.tolist() == pytest.approx([0.0, 0.1 * (1 - math.exp(-0.5))])
    assert result.loss.item() == pytest.approx(0.1 * (math.exp(-0.5) + 0.5 - 1))
