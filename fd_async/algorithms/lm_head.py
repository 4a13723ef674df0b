"""Log-probs from hidden states, a chunk of rows at a time, so that logits of all rows never exist together.

Rows are positions whose next token matters. Suffixes: _T rows, _H hidden, _V vocabulary, _C rows of one chunk.
All arithmetic after the projection is at least float32, whatever the dtype of the model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class TokenLogprobs(NamedTuple):
    """Log-probs of given tokens (differentiable) and the entropy of their distributions (not)."""

    logprobs_T: Tensor
    entropy_T: Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged when it is already as wide."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def matmul_float32(left: Tensor, right: Tensor) -> Tensor:
    """Multiply two matrices and keep the float32 accumulator of the product instead of rounding it."""
    if left.is_cuda and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return at_least_float32(left) @ at_least_float32(right)


def logits_of(hidden_CH: Tensor, head_VH: Tensor) -> Tensor:
    """Project one chunk of hidden states to logits [C, V], at least float32."""
    return matmul_float32(hidden_CH, head_VH.T)


def chunks(num_rows: int, chunk_tokens: int) -> list[slice]:
    """Cut [0, num_rows) into slices of at most `chunk_tokens` rows; 0 takes 4 % of the rows, at least 64."""
    chunk_tokens = chunk_tokens or max(64, num_rows // 25)
    return [slice(start, min(start + chunk_tokens, num_rows)) for start in range(0, num_rows, chunk_tokens)]


class HeadGradients:
    """Collects gradients of hidden states and lm_head from chunks of logit gradients.

    The sum over chunks is kept in float32; a logit gradient is rounded to the model's dtype only to multiply.
    """

    def __init__(self, hidden_TH: Tensor, head_VH: Tensor) -> None:
        self._hidden_TH, self._head_VH = hidden_TH, head_VH
        self._hidden_grad_TH = torch.zeros_like(hidden_TH)
        self._head_grad_VH = at_least_float32(torch.zeros_like(head_VH))

    def add(self, rows: slice, logit_grad_CV: Tensor) -> None:
        """Push the gradient of one chunk's logits through the projection."""
        logit_grad_CV = logit_grad_CV.to(self._head_VH.dtype)
        self._hidden_grad_TH[rows] = matmul_float32(logit_grad_CV, self._head_VH).to(self._hidden_TH.dtype)
        self._head_grad_VH += matmul_float32(logit_grad_CV.T, self._hidden_TH[rows])

    def take(self) -> tuple[Tensor, Tensor]:
        """Return gradients of (hidden_TH, head_VH) in their own dtypes."""
        return self._hidden_grad_TH, self._head_grad_VH.to(self._head_VH.dtype)


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(hidden @ head.T / temperature)[token]; the backward pass computes the logits again."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, head_VH: Tensor, ids_T: Tensor, temperature: float, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies = [], []
        for rows in chunks(len(ids_T), chunk_tokens):
            logp_CV = (logits_of(hidden_TH[rows], head_VH) / temperature).log_softmax(-1)
            logprobs.append(logp_CV.gather(1, ids_T[rows, None])[:, 0])
            entropies.append(-(logp_CV.exp() * logp_CV).sum(-1))
        ctx.save_for_backward(hidden_TH, head_VH, ids_T)
        ctx.temperature, ctx.chunk_tokens = temperature, chunk_tokens
        empty = at_least_float32(hidden_TH.new_zeros(0))
        entropy_T = torch.cat([empty, *entropies])
        ctx.mark_non_differentiable(entropy_T)
        return torch.cat([empty, *logprobs]), entropy_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_TH, head_VH, ids_T = ctx.saved_tensors
        collected = HeadGradients(hidden_TH, head_VH)
        for rows in chunks(len(ids_T), ctx.chunk_tokens):
            grad_C1 = grads[0][rows, None] / ctx.temperature
            q_CV = (logits_of(hidden_TH[rows], head_VH) / ctx.temperature).softmax(-1)
            logit_grad_CV = q_CV.mul_(-grad_C1).scatter_add_(1, ids_T[rows, None], grad_C1)
            collected.add(rows, logit_grad_CV)
        return (*collected.take(), None, None, None)


def token_logprobs(
    hidden_TH: Tensor, head_VH: Tensor, ids_T: Tensor, *, temperature: float, chunk_tokens: int
) -> TokenLogprobs:
    """Compute the log-prob of `ids_T[t]` under the softmax of row t.

    Args:
        hidden_TH: last hidden states [T, H]; row t predicts `ids_T[t]`.
        head_VH: lm_head weight [V, H].
        ids_T: token ids [T].
        temperature: divides the logits, as the engine did when it sampled.
        chunk_tokens: rows of logits that exist at once.

    Returns:
        Natural logs [T], differentiable, and entropies [T] in nats, not differentiable.
    """
    return TokenLogprobs(*_TokenLogprobs.apply(hidden_TH, head_VH, ids_T, temperature, chunk_tokens))
