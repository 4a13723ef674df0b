"""Differentiable log-probs of tokens, chunk by chunk."""

from __future__ import annotations

import pytest
import torch

from fd_async.algorithms.lm_head import token_logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_token_logprobs_and_gradients_equal_autograd(temperature: float) -> None:
    """Values, entropies and gradients under uneven upstream weights equal the plain formula."""
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(9, 4, generator=generator, dtype=torch.float64).requires_grad_()
    head_VH = torch.randn(17, 4, generator=generator, dtype=torch.float64).requires_grad_()
    ids_T = torch.randint(17, (9,), generator=generator)
    weights_T = torch.randn(9, generator=generator, dtype=torch.float64)
    ours = token_logprobs(hidden_TH, head_VH, ids_T, temperature=temperature, chunk_tokens=4)
    logp_TV = (hidden_TH @ head_VH.T / temperature).log_softmax(-1)
    torch.testing.assert_close(ours.logprobs_T, logp_TV.gather(1, ids_T[:, None])[:, 0])
    torch.testing.assert_close(ours.entropy_T, -(logp_TV.exp() * logp_TV).sum(-1).detach())
    mine = torch.autograd.grad((ours.logprobs_T * weights_T).sum(), (hidden_TH, head_VH))
    other = torch.autograd.grad((logp_TV.gather(1, ids_T[:, None])[:, 0] * weights_T).sum(), (hidden_TH, head_VH))
    for one, two in zip(mine, other, strict=True):
        torch.testing.assert_close(one, two)


def test_token_logprobs_of_no_rows_are_empty_and_differentiable() -> None:
    """A rank without samples can still run backward."""
    hidden_TH, head_VH = torch.zeros(0, 4).requires_grad_(), torch.randn(17, 4).requires_grad_()
    result = token_logprobs(hidden_TH, head_VH, torch.zeros(0, dtype=torch.long), temperature=1.0, chunk_tokens=4)
    result.logprobs_T.sum().backward()
    assert result.entropy_T.shape == (0,)
    assert head_VH.grad is not None
    assert not head_VH.grad.any()
