"""Feedback Distillation: the teacher's top-K targets and the student's truncated cross-entropy (paper section 3).

    loss = - sum_t  sum_{a in top-K of teacher}  p_teacher(a | x + feedback, y_<t)  log p_student(a | x, y_<t)

The support and its probabilities belong to the teacher; they are neither renormalised nor clamped, and the
student's log-probs are those of its full softmax. With m the teacher's mass on the support and q the student's
softmax, the gradient with respect to the student's logits is m * q - p on the support and m * q outside.
Suffixes: _T rows (sampled tokens), _H hidden, _K top-K, _V vocabulary, _C rows of one chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fd_async.algorithms.lm_head import HeadGradients, at_least_float32, chunks, logits_of


class TeacherTargets(NamedTuple):
    """What the student needs of the teacher; rows are sampled tokens."""

    ids_TK: Tensor
    logprobs_TK: Tensor
    """Of the full softmax, at least float32."""
    mass_T: Tensor
    """Probability on the top-K, exact."""
    entropy_T: Tensor
    """Nats, over the whole vocabulary."""
    sampled_logprobs_T: Tensor
    """Of the token that the student sampled."""

    @property
    def negative_entropy_T(self) -> Tensor:
        """Sum over the top-K of p log p: what the teacher expects of its own targets."""
        return (self.logprobs_TK.exp() * self.logprobs_TK).sum(-1)


class StudentLoss(NamedTuple):
    """`loss` is a sum over rows and differentiable; the rest is diagnostics without gradient."""

    loss: Tensor
    entropy_T: Tensor
    mass_T: Tensor
    """The student's probability on the teacher's top-K."""
    sampled_logprobs_T: Tensor
    """Of the sampled token, at the sampling temperature."""
    logprobs_T: Tensor
    """Of the sampled token, at temperature 1, as the teacher's are."""


@torch.no_grad()
def teacher_top_k(
    hidden_TH: Tensor, head_VH: Tensor, sampled_ids_T: Tensor, *, top_k: int, chunk_tokens: int
) -> TeacherTargets:
    """Take the teacher's top-K log-probs of every row.

    Args:
        hidden_TH: the teacher's last hidden states [T, H]; row t predicts `sampled_ids_T[t]`.
        head_VH: lm_head weight [V, H].
        sampled_ids_T: the tokens that the student sampled [T].
        top_k: size of the support; more than V takes the whole vocabulary.
        chunk_tokens: rows of logits that exist at once.
    """
    top_k = min(top_k, len(head_VH))
    parts: list[tuple[Tensor, ...]] = []
    for rows in chunks(len(sampled_ids_T), chunk_tokens):
        logp_CV = logits_of(hidden_TH[rows], head_VH).log_softmax(-1)
        logp_CK, ids_CK = logp_CV.topk(top_k, dim=-1)
        sampled_C = logp_CV.gather(1, sampled_ids_T[rows, None])[:, 0]
        entropy_C = -(logp_CV.exp() * logp_CV).sum(-1)
        parts.append((ids_CK, logp_CK, logp_CK.exp().sum(-1), entropy_C, sampled_C))
    if not parts:
        empty = at_least_float32(hidden_TH.new_zeros(0))
        return TeacherTargets(
            sampled_ids_T.new_zeros(0, top_k), empty.new_zeros(0, top_k), empty, empty.clone(), empty.clone()
        )
    return TeacherTargets(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


class _TruncatedCrossEntropy(torch.autograd.Function):
    """Forms the gradients chunk by chunk while the logits exist, so that backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        head_VH: Tensor,
        ids_TK: Tensor,
        probs_TK: Tensor,
        sampled_ids_T: Tensor,
        temperature: float,
        chunk_tokens: int,
        with_grad: bool,
    ) -> tuple[Tensor, ...]:
        empty = at_least_float32(hidden_TH.new_zeros(0))
        parts = [(empty, empty, empty, empty, empty)]
        gradients = HeadGradients(hidden_TH, head_VH) if with_grad else None
        for rows in chunks(len(ids_TK), chunk_tokens):
            logits_CV, sampled_C1 = logits_of(hidden_TH[rows], head_VH), sampled_ids_T[rows, None]
            logq_CV = logits_CV.log_softmax(-1)
            q_CV = logq_CV.exp()
            logq_CK, p_CK = logq_CV.gather(1, ids_TK[rows]), probs_TK[rows]
            logprob_C = tempered_C = logq_CV.gather(1, sampled_C1)[:, 0]
            if temperature != 1.0:
                tempered_C = (logits_CV / temperature).log_softmax(-1).gather(1, sampled_C1)[:, 0]
            entropy_C = -(q_CV * logq_CV).sum(-1)
            parts.append((-(p_CK * logq_CK).sum(-1), entropy_C, logq_CK.exp().sum(-1), tempered_C, logprob_C))
            if gradients is not None:
                gradients.add(rows, q_CV.mul_(p_CK.sum(-1, keepdim=True)).scatter_add_(1, ids_TK[rows], -p_CK))
        if gradients is not None:
            ctx.save_for_backward(*gradients.take())
        loss_T, *diagnostics = (torch.cat(columns) for columns in zip(*parts, strict=True))
        ctx.mark_non_differentiable(*diagnostics)
        return (loss_T.sum(), *diagnostics)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad_TH, head_grad_VH = ctx.saved_tensors
        scale = grads[0]
        return (hidden_grad_TH * scale.to(hidden_grad_TH.dtype), head_grad_VH * scale.to(head_grad_VH.dtype)) + (
            None,
        ) * 6


def student_cross_entropy(
    hidden_TH: Tensor,
    head_VH: Tensor,
    sampled_ids_T: Tensor,
    targets: TeacherTargets,
    *,
    chunk_tokens: int,
    temperature: float = 1.0,
) -> StudentLoss:
    """Sum the truncated cross-entropy of the student to the teacher's targets over all rows.

    Args:
        hidden_TH: the student's last hidden states [T, H]; row t predicts `sampled_ids_T[t]`.
        head_VH: lm_head weight [V, H].
        sampled_ids_T: the tokens that the student sampled [T]; for diagnostics only.
        targets: the teacher's top-K of the same rows.
        chunk_tokens: rows of logits that exist at once.
        temperature: of sampling, for `sampled_logprobs_T` alone; the loss is at temperature 1.
    """
    with_grad = torch.is_grad_enabled() and (hidden_TH.requires_grad or head_VH.requires_grad)
    return StudentLoss(
        *_TruncatedCrossEntropy.apply(
            hidden_TH,
            head_VH,
            targets.ids_TK,
            targets.logprobs_TK.exp(),
            sampled_ids_T,
            temperature,
            chunk_tokens,
            with_grad,
        )
    )
