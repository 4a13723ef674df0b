"""Feedback Distillation: the student's cross-entropy to the teacher's top-K (paper section 3), in four variants.

S is the teacher's support, p its probabilities of the full softmax, m = sum_S p; q the student's full softmax,
q_S = sum_S q. Loss of a row, and its gradient with respect to the student's logits:

    truncated          - sum_S p log q                          m q - p            (the paper's; p = 0 outside S)
    renormalised       - sum_S (p / m) log q                    q - p / m
    both_renormalised  - sum_S (p / m) log (q / q_S)            q / q_S - p / m on S, 0 outside
    tail_bucket        - sum_S p log q - (1-m) log (1-q_S)      q - p on S, q (q_T - p_T) / q_T outside

where p_T = 1 - m and q_T = 1 - q_S come from log-sum-exps of the logits outside S, never from differences. All are
cross-entropies of the full softmax: never clamped, no entropy subtracted. A support holds an id once; entries whose
log-prob is -inf are padding. Suffixes: _T rows (sampled tokens), _H hidden, _K top-K, _V vocabulary, _C rows of a
chunk.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fd_async.algorithms import rowwise
from fd_async.algorithms.importance import RowWeights, RunningWeights
from fd_async.algorithms.lm_head import Head, HeadGradients, gradient_dtype, projected_chunks, wide_dtype
from fd_async.algorithms.targets import TeacherTargets, teacher_top_k, top_k_overlap

__all__ = ["Loss", "StudentLoss", "TeacherTargets", "student_cross_entropy", "teacher_top_k", "top_k_overlap"]

Loss = Literal["truncated", "renormalised", "both_renormalised", "tail_bucket"]


class StudentLoss(NamedTuple):
    """`loss` is the weighted sum over rows and differentiable; the rest is without gradient."""

    loss: Tensor
    loss_T: Tensor
    """Of every row, before its weight."""
    entropy_T: Tensor
    mass_T: Tensor
    """The student's probability on the teacher's support."""
    sampled_logprobs_T: Tensor
    """Of the sampled token, at the sampling temperature."""
    logprobs_T: Tensor
    """Of the sampled token, at temperature 1, as the teacher's are."""
    importance_T: Tensor
    """Importance of every row; 1 without importance weights."""
    capped_T: Tensor
    """1 where the cap held the importance down."""
    cross_entropy_T: Tensor
    """- sum_S p log q, whatever the variant; plus `TeacherTargets.negative_entropy_T` it estimates the KL."""


class _Support(NamedTuple):
    """The teacher's side of a chunk, float64; padding has probability 0."""

    ids_CK: Tensor
    valid_CK: Tensor
    p_CK: Tensor
    mass_C1: Tensor
    tail_C1: Tensor
    """Probability outside the support."""


class _Student(NamedTuple):
    """The student's side of a chunk, float64."""

    logits_CK: Tensor
    """-inf at padding."""
    outside: rowwise.RowStatistics
    """Of the logits outside the support."""
    inside_C1: Tensor
    """Log-sum-exp on the support."""
    total_C1: Tensor
    """Log-sum-exp of all logits."""


def _support(targets: TeacherTargets, rows: slice) -> _Support:
    """Read a chunk's targets; padding points to the row's first id, with nothing on it."""
    ids_CK, logprobs_CK = targets.ids_TK[rows], targets.logprobs_TK[rows].double()
    valid_CK = logprobs_CK > -torch.inf
    p_CK = logprobs_CK.exp()
    tail_C1 = targets.log_tail_T[rows, None].double().exp()
    return _Support(torch.where(valid_CK, ids_CK, ids_CK[:, :1]), valid_CK, p_CK, p_CK.sum(-1, keepdim=True), tail_C1)


def _losses(loss: Loss, support: _Support, student: _Student) -> Tensor:
    """Return the loss of every row [C]."""
    reference_C1 = student.inside_C1 if loss == "both_renormalised" else student.total_C1
    logq_CK = torch.where(support.valid_CK, student.logits_CK - reference_C1, 0.0)
    loss_C1 = -(support.p_CK * logq_CK).sum(-1, keepdim=True)
    if loss in ("renormalised", "both_renormalised"):
        loss_C1 = loss_C1 / support.mass_C1
    if loss == "tail_bucket":
        log_tail_C1 = student.outside.logsumexp_C[:, None] - student.total_C1
        loss_C1 = loss_C1 - torch.where(support.tail_C1 > 0, support.tail_C1 * log_tail_C1, 0.0)
    return loss_C1[:, 0]


def _logit_gradients(loss: Loss, support: _Support, student: _Student) -> tuple[Tensor, Tensor]:
    """Return gradients on the support [C, K], and the gradient outside [C, 1] as a multiple of its own softmax."""
    reference_C1 = student.inside_C1 if loss == "both_renormalised" else student.total_C1
    q_CK = (student.logits_CK - reference_C1).exp()
    q_tail_C1 = (student.outside.logsumexp_C[:, None] - student.total_C1).exp()
    if loss == "truncated":
        return support.mass_C1 * q_CK - support.p_CK, support.mass_C1 * q_tail_C1
    if loss == "tail_bucket":
        return q_CK - support.p_CK, q_tail_C1 - support.tail_C1
    outside_C1 = q_tail_C1 if loss == "renormalised" else torch.zeros_like(q_tail_C1)
    return q_CK - support.p_CK / support.mass_C1, outside_C1


class _CrossEntropy(torch.autograd.Function):
    """Forms the gradients chunk by chunk while the logits exist, so that backward only scales them, in place."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        head: Head,
        sampled_ids_T: Tensor,
        targets: TeacherTargets,
        loss: Loss,
        chunk_tokens: int,
        temperature: float,
        weights: RowWeights | None,
        needs_grad: tuple[bool, bool],
    ) -> tuple[Tensor, ...]:
        running = RunningWeights(weights, len(sampled_ids_T))
        columns_9T = hidden_TH.new_zeros(9, len(sampled_ids_T), dtype=torch.float64)
        gradients = None
        if any(needs_grad):
            gradients = HeadGradients(hidden_TH, weight_VH, needs_hidden=needs_grad[0], needs_weight=needs_grad[1])
        for rows, products_CV in projected_chunks(hidden_TH, head, chunk_tokens):
            support = _support(targets, rows)
            products_CK = products_CV.gather(1, support.ids_CK)
            sampled_C = head.logits(products_CV.gather(1, sampled_ids_T[rows, None]))[:, 0]
            products_CV.scatter_(1, support.ids_CK, rowwise.MASKED)
            student, diagnostics = _read(head, products_CV, products_CK, support, sampled_C, temperature)
            chunk_weights = running.take(rows, diagnostics[2])
            loss_C = _losses(loss, support, student)
            plain_C = loss_C if loss == "truncated" else _losses("truncated", support, student)
            columns_9T[:, rows] = torch.stack(
                [loss_C * chunk_weights.weight_C, loss_C, *diagnostics, *chunk_weights[1:], plain_C]
            )
            if gradients is not None:
                inside_CK, outside_C1 = _logit_gradients(loss, support, student)
                weight_C1 = chunk_weights.weight_C[:, None]
                grad_CV = _overwrite(products_CV, head, support, student, inside_CK * weight_C1, outside_C1 * weight_C1)
                gradients.add(rows, grad_CV)
        ctx.gradients = gradients
        columns = columns_9T.to(wide_dtype(weight_VH))
        ctx.mark_non_differentiable(*(diagnostics := columns[1:].unbind()))
        return (columns_9T[0].sum().to(columns.dtype), *diagnostics)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.gradients is None:
            raise RuntimeError("the distillation loss keeps its gradients for one backward pass only")
        collected, ctx.gradients = ctx.gradients, None
        return (*collected.take(grad_outputs[0]), *(None,) * 8)


def _read(
    head: Head, products_CV: Tensor, products_CK: Tensor, support: _Support, sampled_C: Tensor, temperature: float
) -> tuple[_Student, tuple[Tensor, ...]]:
    """Join support and the rest to softmax statistics; also return entropy, mass and sampled log-probs at two heats."""
    outside = rowwise.statistics(products_CV, scale=head.scale, softcap=head.softcap, temperature=temperature)
    logits_CK = head.logits(products_CK).masked_fill(~support.valid_CK, -torch.inf)
    inside = rowwise.part_of(logits_CK)
    whole = rowwise.join(inside, outside.part)
    tempered_C = torch.logaddexp((logits_CK / temperature).logsumexp(-1), outside.tempered_logsumexp_C)
    student = _Student(logits_CK, outside, inside.logsumexp_C[:, None], whole.logsumexp_C[:, None])
    share_C = (inside.logsumexp_C - whole.logsumexp_C).exp()
    return student, (whole.entropy_C, share_C, sampled_C / temperature - tempered_C, sampled_C - whole.logsumexp_C)


def _overwrite(
    products_CV: Tensor, head: Head, support: _Support, student: _Student, inside_CK: Tensor, outside_C1: Tensor
) -> Tensor:
    """Turn a chunk's products, masked on the support, into their gradient."""
    outside = student.outside
    # exp(logit - max) / sum exp(logit - max) is the softmax outside the support; nothing is left when K = V.
    normaliser_C = (outside.max_C.double() - outside.logsumexp_C).exp()
    factor_C = torch.where(outside.logsumexp_C > -torch.inf, outside_C1[:, 0] * normaliser_C, 0.0)
    grad_CV = rowwise.softmax_gradient_(
        products_CV,
        outside.max_C,
        factor_C,
        scale=head.scale,
        softcap=head.softcap,
        dtype=gradient_dtype(head.weight_VH),
    )
    slope_CK = head.slope(student.logits_CK.masked_fill(~support.valid_CK, 0.0))
    inside_CK = torch.where(support.valid_CK, inside_CK * slope_CK, 0.0)
    return grad_CV.scatter_add_(1, support.ids_CK, inside_CK.to(grad_CV.dtype))


def student_cross_entropy(
    hidden_TH: Tensor,
    head: Head,
    sampled_ids_T: Tensor,
    targets: TeacherTargets,
    *,
    loss: Loss = "truncated",
    chunk_tokens: int,
    temperature: float = 1.0,
    weights: RowWeights | None = None,
) -> StudentLoss:
    """Sum the student's cross-entropy to the teacher's targets over all rows.

    Backward runs once: it scales the gradients that the forward pass made, in place.

    Args:
        hidden_TH: the student's last hidden states [T, H]; row t predicts `sampled_ids_T[t]`.
        head: weight [V, H] and what turns products into logits.
        sampled_ids_T: the tokens that the student sampled [T]; for diagnostics and importance weights.
        targets: the teacher's top-K of the same rows.
        loss: the variant, see the module.
        chunk_tokens: rows of logits that exist at once; 0 chooses.
        temperature: of sampling, for `sampled_logprobs_T` and importance; the loss is at temperature 1.
        weights: what the rows count; None: 1 each.
    """
    if loss not in get_args(Loss):
        raise ValueError(f"algorithm.loss = {loss!r}: one of {', '.join(get_args(Loss))}")
    enabled = torch.is_grad_enabled()
    needs_grad = (enabled and hidden_TH.requires_grad, enabled and head.weight_VH.requires_grad)
    return StudentLoss(
        *_CrossEntropy.apply(
            hidden_TH,
            head.weight_VH,
            head,
            sampled_ids_T,
            targets,
            loss,
            chunk_tokens,
            temperature,
            weights,
            needs_grad,
        )
    )
