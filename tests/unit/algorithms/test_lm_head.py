"""Differentiable log-probs of tokens, chunk by chunk, and the pieces that share their memory."""

from __future__ import annotations

import pytest
import torch

from fd_async.algorithms.chunking import chunk_rows
from fd_async.algorithms.lm_head import Head, logits_of, round_in_place, token_logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, 0.0), (0.5, 0.0), (1.7, 2.5)])
def test_token_logprobs_and_gradients_equal_autograd(temperature: float, scale: float, softcap: float) -> None:
    """Values, entropies and gradients under uneven upstream weights equal the plain formula."""
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(9, 4, generator=generator, dtype=torch.float64).requires_grad_()
    weight_VH = torch.randn(17, 4, generator=generator, dtype=torch.float64).requires_grad_()
    head = Head(weight_VH, scale, softcap)
    ids_T = torch.randint(17, (9,), generator=generator)
    weights_T = torch.randn(9, generator=generator, dtype=torch.float64)
    ours = token_logprobs(hidden_TH, head, ids_T, temperature=temperature, chunk_tokens=4)
    logits_TV = scale * (hidden_TH @ weight_VH.T)
    if softcap:
        logits_TV = softcap * torch.tanh(logits_TV / softcap)
    torch.testing.assert_close(logits_of(hidden_TH.detach(), head), logits_TV.detach())
    logp_TV = (logits_TV / temperature).log_softmax(-1)
    torch.testing.assert_close(ours.logprobs_T, logp_TV.gather(1, ids_T[:, None])[:, 0])
    torch.testing.assert_close(ours.entropy_T, -(logp_TV.exp() * logp_TV).sum(-1).detach())
    mine = torch.autograd.grad((ours.logprobs_T * weights_T).sum(), (hidden_TH, weight_VH), retain_graph=True)
    other = torch.autograd.grad((logp_TV.gather(1, ids_T[:, None])[:, 0] * weights_T).sum(), (hidden_TH, weight_VH))
    again = torch.autograd.grad((ours.logprobs_T * weights_T).sum(), (hidden_TH, weight_VH))
    for one, two, three in zip(mine, other, again, strict=True):
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(one, three)


def test_sure_tokens_keep_their_small_gradient() -> None:
    """Where a token has almost all probability its log-prob and gradient are not lost to rounding."""
    logits_1V = torch.tensor([[40.0, 30.0, 29.0]], requires_grad=True)
    result = token_logprobs(logits_1V, Head(torch.eye(3)), torch.tensor([0]), temperature=1.0, chunk_tokens=0)
    (gradient_1V,) = torch.autograd.grad(result.logprobs_T.sum(), logits_1V)
    exact_V = torch.tensor([40.0, 30.0, 29.0], dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(result.logprobs_T[0].double(), exact_V[0].log(), rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient_1V[0].double(), torch.tensor([1.0, 0, 0]) - exact_V, rtol=1e-6, atol=0)


def test_token_logprobs_of_no_rows_are_empty_and_differentiable() -> None:
    """A rank without samples can still run backward."""
    hidden_TH, weight_VH = torch.zeros(0, 4).requires_grad_(), torch.randn(17, 4).requires_grad_()
    result = token_logprobs(
        hidden_TH, Head(weight_VH), torch.zeros(0, dtype=torch.long), temperature=1.0, chunk_tokens=4
    )
    result.logprobs_T.sum().backward()
    assert result.entropy_T.shape == (0,)
    assert weight_VH.grad is not None
    assert not weight_VH.grad.any()


def test_rows_at_once_are_a_share_with_a_floor() -> None:
    """3.5 % of the rows in steps of 32, at least 64 and 4 MiB; a given number is taken as it is."""
    assert chunk_rows(8192, 0, 151_936) == 256
    assert chunk_rows(512, 0, 151_936) == 64
    assert chunk_rows(4096, 0, 600) == 4 * 2**20 // 2400
    assert chunk_rows(8192, 100, 151_936) == 100


def test_rounding_in_place_equals_rounding() -> None:
    """The narrow tensor lies in the wide one's memory and holds the same numbers as a copy would."""
    wide = torch.randn(3001, 1500)
    rounded = wide.to(torch.bfloat16)
    memory = wide.data_ptr()
    narrow = round_in_place(wide, torch.bfloat16)
    assert narrow.data_ptr() == memory
    assert torch.equal(narrow, rounded)
