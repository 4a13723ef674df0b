"""Small random cases and slow, literal transcriptions of the formulas, float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fd_async.algorithms.distillation import Loss, StudentLoss, TeacherTargets, student_cross_entropy, teacher_top_k
from fd_async.algorithms.importance import RowWeights
from fd_async.algorithms.lm_head import Head

LOSSES: tuple[Loss, ...] = ("truncated", "renormalised", "both_renormalised", "tail_bucket")
ROWS, HIDDEN, VOCAB = 13, 6, 29


class Case(NamedTuple):
    """Hidden states and heads of a teacher and a student."""

    teacher_TH: Tensor
    teacher: Head
    student_TH: Tensor
    student: Head
    sampled_T: Tensor

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        return self.student_TH, self.student.weight_VH


def make_case(
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    *,
    scale: float = 1.0,
    softcap: float = 0.0,
    num_ids: int = 0,
    rows: int = ROWS,
    vocab: int = VOCAB,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def matrix(count: int) -> Tensor:
        return torch.randn(count, HIDDEN, generator=generator, dtype=torch.float64).to(dtype)

    sampled_T = torch.randint(vocab, (rows,), generator=generator)
    heads = [Head(matrix(vocab), scale, softcap, num_ids) for _ in range(2)]
    student_TH = matrix(rows).requires_grad_()
    heads[1].weight_VH.requires_grad_()
    return Case(matrix(rows), heads[0], student_TH, heads[1], sampled_T)


def targets_of(case: Case, top_k: int = 5, chunk_tokens: int = 4) -> TeacherTargets:
    return teacher_top_k(case.teacher_TH, case.teacher, case.sampled_T, top_k=top_k, chunk_tokens=chunk_tokens)


def loss_of(
    case: Case,
    targets: TeacherTargets,
    loss: Loss = "truncated",
    *,
    chunk_tokens: int = 4,
    temperature: float = 1.0,
    weights: RowWeights | None = None,
) -> StudentLoss:
    return student_cross_entropy(
        case.student_TH,
        case.student,
        case.sampled_T,
        targets,
        loss=loss,
        chunk_tokens=chunk_tokens,
        temperature=temperature,
        weights=weights,
    )


def gradients_of(case: Case, loss: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, case.leaves)


def logits_of_row(hidden_H: Tensor, head: Head) -> Tensor:
    """softcap * tanh(scale * W h / softcap) of one row, under autograd."""
    logits_V = head.scale * (head.weight_VH.double() @ hidden_H.double())
    return head.softcap * torch.tanh(logits_V / head.softcap) if head.softcap else logits_V


def literal_rows(case: Case, top_k: int, loss: Loss) -> list[Tensor]:
    """Loss of every row, one row and one token at a time, without tricks."""
    rows = []
    for t in range(len(case.sampled_T)):
        p_V = logits_of_row(case.teacher_TH[t], case.teacher).softmax(-1)
        q_V = logits_of_row(case.student_TH[t], case.student).softmax(-1)
        known = p_V[: case.teacher.num_ids] if case.teacher.num_ids else p_V
        support = known.argsort(descending=True)[:top_k].tolist()
        rest = [a for a in range(len(p_V)) if a not in support]
        mass, q_mass = sum(p_V[a] for a in support), sum(q_V[a] for a in support)
        row = torch.zeros((), dtype=torch.float64)
        for a in support:
            if loss == "both_renormalised":
                row = row - p_V[a] / mass * (q_V[a] / q_mass).log()
            elif loss == "renormalised":
                row = row - p_V[a] / mass * q_V[a].log()
            else:
                row = row - p_V[a] * q_V[a].log()
        if loss == "tail_bucket" and rest:
            row = row - p_V[rest].sum() * q_V[rest].sum().log()
        rows.append(row)
    return rows


def assert_near(mine: Tensor, other: Tensor, tolerance: float) -> None:
    """Compare in the norm of the whole tensor."""
    assert mine.isfinite().all()
    assert (mine.double() - other.double()).norm() <= tolerance * other.double().norm()
