"""Group advantages and the clipped policy loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fd_async.algorithms.advantages import group_advantages, is_flat
from fd_async.algorithms.grpo import KlEstimator, PolicyLoss, clipped_policy_loss, kl_estimate, kl_k3
from fd_async.algorithms.importance import sequence_weights


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


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators_have_the_expected_value_and_gradient_that_are_stated(estimator: KlEstimator) -> None:
    """Over a whole vocabulary: k1 and k3 estimate KL(p || r); as losses k1 pulls nowhere, k2 along KL(p || r), k3
    along KL(r || p)."""
    generator = torch.Generator().manual_seed(1)
    logits_V = torch.randn(40, generator=generator, dtype=torch.float64).requires_grad_()
    reference_V = torch.randn(40, generator=generator, dtype=torch.float64).log_softmax(-1)
    logp_V = logits_V.log_softmax(-1)
    p_V = logp_V.detach().exp()
    estimate = (p_V * kl_estimate(logp_V, reference_V, estimator)).sum()
    (gradient_V,) = torch.autograd.grad(estimate, logits_V, retain_graph=True)
    reverse = (logp_V.exp() * (logp_V - reference_V)).sum()
    forward = (reference_V.exp() * (reference_V - logp_V)).sum()
    if estimator != "k2":
        torch.testing.assert_close(estimate, reverse)
    expected = {"k2": reverse, "k3": forward}
    expected_V = torch.zeros_like(logits_V)
    if estimator in expected:
        (expected_V,) = torch.autograd.grad(expected[estimator], logits_V)
    torch.testing.assert_close(gradient_V, expected_V)


def test_an_unknown_estimator_is_refused() -> None:
    """The message names the key and the choices."""
    with pytest.raises(ValueError, match=r"algorithm\.kl_estimator"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]


def test_sequence_mean_gives_every_sequence_the_same_say() -> None:
    """With 1 / length per token, loss and gradient are the sum over sequences of their own means."""
    lengths, generator = [1, 4, 2], torch.Generator().manual_seed(2)
    logprobs_T = -torch.rand(7, generator=generator, dtype=torch.float64)
    behaviour_T, advantages_T = logprobs_T - 0.05, torch.randn(7, generator=generator, dtype=torch.float64)
    settings: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.2, "importance_cap": 2.0, "kl_weight": 0.1}
    leaf_T = logprobs_T.clone().requires_grad_()
    weights_T = sequence_weights(lengths)
    whole = clipped_policy_loss(
        leaf_T, behaviour_T, advantages_T, reference_T=behaviour_T, weights_T=weights_T, **settings
    ).loss
    parts = [
        clipped_policy_loss(lp, b, a, reference_T=b, **settings).loss.item() / len(lp)
        for lp, b, a in zip(*(x.split(lengths) for x in (logprobs_T, behaviour_T, advantages_T)), strict=True)
    ]
    assert whole.item() == pytest.approx(sum(parts), rel=1e-6)
    assert weights_T.tolist() == pytest.approx([1, 0.25, 0.25, 0.25, 0.25, 0.5, 0.5])
