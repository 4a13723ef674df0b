"""The clipped policy loss of GRPO with the engine's log-probs as the behaviour policy.

There is one gradient step per batch, so the ratio compares the learner with the engine that sampled:
r = exp(logp - behaviour). It covers staleness and the numerical gap between engine and learner at once.

Normalisation is the caller's divisor and `weights_T`: `token_mean` (sum / all tokens), `sequence_sum`
(sum / sequences), `sequence_mean` (sum / sequences with `importance.sequence_weights`).
Suffix: _T sampled tokens.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]


class PolicyLoss(NamedTuple):
    """`loss` is a weighted sum over tokens and differentiable; the rest is diagnostics without gradient."""

    loss: Tensor
    kl_T: Tensor
    """Estimate of KL(policy || reference); zeros without a reference."""
    clipped_T: Tensor
    """True where the clip removed the gradient of the policy term."""
    capped_T: Tensor
    """True where the importance cap held the ratio down."""


def kl_k3(logprobs_T: Tensor, other_logprobs_T: Tensor) -> Tensor:
    """Estimate KL(p || other) per token from tokens sampled of p: exp(d) - d - 1 with d = other - p, never negative.

    Source: Schulman, "Approximating KL divergence", estimator k3. `expm1` keeps small d exact.
    """
    return kl_estimate(logprobs_T, other_logprobs_T, "k3")


def kl_estimate(logprobs_T: Tensor, other_logprobs_T: Tensor, estimator: KlEstimator = "k3") -> Tensor:
    """Estimate KL(p || other) per token from tokens sampled of p (Schulman, "Approximating KL divergence").

    With d = log p - log other, and s = grad log p of the sampled token, whose mean under p is zero:

        estimator              value                     gradient of the value as a loss, and its mean under p
        k1 = d                 unbiased, either sign     s: zero, so that it holds nothing back
        k2 = d^2 / 2           biased, never negative    d s: exactly grad KL(p || other)
        k3 = exp(-d) - 1 + d   unbiased, never negative  (1 - exp(-d)) s: grad KL(other || p); both agree at small d
    """
    d_T = logprobs_T - other_logprobs_T
    if estimator == "k1":
        return d_T
    if estimator == "k2":
        return d_T.square() / 2
    if estimator == "k3":
        return (-d_T).expm1() + d_T
    raise ValueError(f"algorithm.kl_estimator = {estimator!r}: one of k1, k2, k3")


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
    kl_estimator: KlEstimator = "k3",
    weights_T: Tensor | None = None,
) -> PolicyLoss:
    """Sum -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl_weight * KL over tokens (DeepSeekMath, eq. 3).

    With `importance_cap` > 0 the unclipped term uses min(r, importance_cap), whose gradient keeps the truncated
    weight. It bites where the clip does not: negative advantage and a ratio far above 1.

    Args:
        logprobs_T: of the learner, differentiable, at the sampling temperature.
        behaviour_T: of the engine that sampled the tokens.
        advantages_T: group advantage of each token's rollout.
        reference_T: of the frozen reference; needed when `kl_weight` > 0.
        kl_estimator: see `kl_estimate`.
        weights_T: what every token counts; None: 1.
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
        kl_T = kl_estimate(logprobs_T, reference_T, kl_estimator)
        loss_T = loss_T + kl_weight * kl_T
    if weights_T is not None:
        loss_T = loss_T * weights_T
    clipped_T = (held_T < free_T).detach()
    return PolicyLoss(loss_T.sum(), kl_T.detach(), clipped_T, capped_T & ~clipped_T)
