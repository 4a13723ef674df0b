"""The clipped policy loss of GRPO with the engine's log-probs as the behaviour policy.

There is one gradient step per batch, so the ratio compares the learner with the engine that sampled:
r = exp(logp - behaviour). It covers staleness and the numerical gap between engine and learner at once.
Suffix: _T sampled tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    """`loss` is a sum over tokens and differentiable; the rest is diagnostics without gradient."""

    loss: Tensor
    kl_T: Tensor
    """k3 estimate of KL(policy || reference); zeros without a reference."""
    clipped_T: Tensor
    """True where the clip removed the gradient of the policy term."""
    capped_T: Tensor
    """True where the importance cap held the ratio down."""


def kl_k3(logprobs_T: Tensor, other_logprobs_T: Tensor) -> Tensor:
    """Estimate KL(p || other) per token from tokens sampled of p: exp(d) - d - 1 with d = other - p, never negative.

    Source: Schulman, "Approximating KL divergence", estimator k3. `expm1` keeps small d exact.
    """
    difference_T = other_logprobs_T - logprobs_T
    return difference_T.expm1() - difference_T


def clipped_policy_loss(
    logprobs_T: Tensor,
    behaviour_T: Tensor,
    advantages_T: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    importance_cap: float,
    reference_T: Tensor | None = None,
    kl_weight: float = 0.0,
) -> PolicyLoss:
    """Sum -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl_weight * k3 over tokens (DeepSeekMath, eq. 3).

    With `importance_cap` > 0 the unclipped term uses min(r, importance_cap), whose gradient keeps the truncated
    weight. It bites where the clip does not: negative advantage and a ratio far above 1.

    Args:
        logprobs_T: of the learner, differentiable, at the sampling temperature.
        behaviour_T: of the engine that sampled the tokens.
        advantages_T: group advantage of each token's rollout.
        reference_T: of the frozen reference; needed when `kl_weight` > 0.
    """
    ratio_T = (logprobs_T - behaviour_T).exp()
    weight_T = ratio_T.detach()
    capped_T = weight_T > importance_cap if importance_cap > 0 else torch.zeros_like(weight_T, dtype=torch.bool)
    weight_T = weight_T.masked_fill(capped_T, importance_cap)
    truncated_T = weight_T * (logprobs_T - logprobs_T.detach()).exp()
    free_T = truncated_T * advantages_T
    held_T = ratio_T.clamp(1 - clip_low, 1 + clip_high) * advantages_T
    loss_T = -torch.minimum(free_T, held_T)
    kl_T = torch.zeros_like(loss_T)
    if reference_T is not None:
        kl_T = kl_k3(logprobs_T, reference_T)
        loss_T = loss_T + kl_weight * kl_T
    clipped_T = (held_T < free_T).detach()
    return PolicyLoss(loss_T.sum(), kl_T.detach(), clipped_T, capped_T & ~clipped_T)
