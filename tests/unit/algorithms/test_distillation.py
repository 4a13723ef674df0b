"""The distillation loss against its formula, written out slowly in float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fd_async.algorithms.distillation import StudentLoss, TeacherTargets, student_cross_entropy, teacher_top_k

ROWS, HIDDEN, VOCAB = 13, 6, 29


class Case(NamedTuple):
    """Random hidden states and heads of a teacher and a student."""

    teacher_TH: Tensor
    teacher_VH: Tensor
    student_TH: Tensor
    student_VH: Tensor
    sampled_T: Tensor


def make_case(dtype: torch.dtype = torch.float64, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int) -> Tensor:
        return torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64).to(dtype)

    sampled_T = torch.randint(VOCAB, (ROWS,), generator=generator)
    student_TH, student_VH = matrix(ROWS).requires_grad_(), matrix(VOCAB).requires_grad_()
    return Case(matrix(ROWS), matrix(VOCAB), student_TH, student_VH, sampled_T)


def targets_of(case: Case, top_k: int = 5, chunk_tokens: int = 4) -> TeacherTargets:
    return teacher_top_k(case.teacher_TH, case.teacher_VH, case.sampled_T, top_k=top_k, chunk_tokens=chunk_tokens)


def loss_of(case: Case, targets: TeacherTargets, chunk_tokens: int = 4, temperature: float = 1.0) -> StudentLoss:
    return student_cross_entropy(
        case.student_TH,
        case.student_VH,
        case.sampled_T,
        targets,
        chunk_tokens=chunk_tokens,
        temperature=temperature,
    )


def literal_loss(case: Case, top_k: int) -> Tensor:
    """-sum_t sum_{a in top-K} p(a) log q(a), one row and one token at a time, float64."""
    total = torch.zeros((), dtype=torch.float64)
    for t in range(ROWS):
        teacher_logits_V = case.teacher_VH.double() @ case.teacher_TH[t].double()
        student_logits_V = case.student_VH.double() @ case.student_TH[t].double()
        p_V = teacher_logits_V.exp() / teacher_logits_V.exp().sum()
        q_V = student_logits_V.exp() / student_logits_V.exp().sum()
        for a in p_V.argsort(descending=True)[:top_k]:
            total = total - p_V[a] * q_V[a].log()
    return total


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_loss_and_gradients_equal_the_literal_formula(dtype: torch.dtype, tolerance: float) -> None:
    """Forward and gradients agree with a transcription of the formula in float64."""
    case = make_case(dtype)
    loss = loss_of(case, targets_of(case)).loss
    literal = literal_loss(case, 5)
    assert abs(loss.item() - literal.item()) <= tolerance * literal.item()
    ours = torch.autograd.grad(loss, (case.student_TH, case.student_VH))
    theirs = torch.autograd.grad(literal, (case.student_TH, case.student_VH))
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.double() - other.double()).norm() <= tolerance * other.double().norm()


def test_gradient_passes_finite_differences() -> None:
    """Central differences along random directions agree with the hand-written backward."""
    case = make_case()
    targets = targets_of(case)
    gradients = torch.autograd.grad(loss_of(case, targets).loss, (case.student_TH, case.student_VH))
    generator, size = torch.Generator().manual_seed(9), 1e-5
    for _ in range(5):
        directions = [torch.randn(g.shape, generator=generator, dtype=torch.float64) for g in gradients]
        moved = [
            loss_of(
                case._replace(
                    student_TH=case.student_TH.detach() + sign * size * directions[0],
                    student_VH=case.student_VH.detach() + sign * size * directions[1],
                ),
                targets,
            ).loss.item()
            for sign in (1, -1)
        ]
        slope = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
        assert (moved[0] - moved[1]) / (2 * size) == pytest.approx(slope, rel=1e-7, abs=1e-7)


def test_logit_gradient_is_mass_times_q_minus_p() -> None:
    """With an identity head the hidden gradient is the logit gradient m * q - p of the formula."""
    generator = torch.Generator().manual_seed(3)
    logits_TV = torch.randn(4, VOCAB, generator=generator, dtype=torch.float64).requires_grad_()
    teacher_TV = torch.randn(4, VOCAB, generator=generator, dtype=torch.float64)
    eye_VV, sampled_T = torch.eye(VOCAB, dtype=torch.float64), torch.arange(4)
    targets = teacher_top_k(teacher_TV, eye_VV, sampled_T, top_k=3, chunk_tokens=2)
    student_cross_entropy(logits_TV, eye_VV, sampled_T, targets, chunk_tokens=2).loss.backward()
    p_TV = torch.zeros_like(teacher_TV).scatter(1, targets.ids_TK, targets.logprobs_TK.exp())
    expected_TV = targets.mass_T[:, None] * logits_TV.detach().softmax(-1) - p_TV
    assert logits_TV.grad is not None
    torch.testing.assert_close(logits_TV.grad, expected_TV)


def test_whole_vocabulary_gives_the_full_cross_entropy() -> None:
    """K = V (or more) equals torch's cross-entropy with soft targets, and the mass is one."""
    case = make_case()
    targets = targets_of(case, top_k=VOCAB + 7)
    full = torch.nn.functional.cross_entropy(
        case.student_TH @ case.student_VH.T, (case.teacher_TH @ case.teacher_VH.T).softmax(-1), reduction="sum"
    )
    torch.testing.assert_close(loss_of(case, targets).loss, full)
    torch.testing.assert_close(targets.mass_T, torch.ones(ROWS, dtype=torch.float64))


def test_equal_student_has_no_gradient_over_the_whole_vocabulary() -> None:
    """The student that equals the teacher is a stationary point when nothing is truncated."""
    case = make_case()
    same = case._replace(teacher_TH=case.student_TH.detach(), teacher_VH=case.student_VH.detach())
    loss = loss_of(same, targets_of(same, top_k=VOCAB)).loss
    gradients = torch.autograd.grad(loss, (case.student_TH, case.student_VH))
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-12


@pytest.mark.parametrize("chunk_tokens", [1, 5, 64])
def test_chunks_do_not_change_the_result(chunk_tokens: int) -> None:
    """Loss, targets and gradients in float32 are those of one chunk."""
    case = make_case(torch.float32)
    whole, cut = targets_of(case, chunk_tokens=1000), targets_of(case, chunk_tokens=chunk_tokens)
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    results = [loss_of(case, whole, chunk_tokens=size) for size in (1000, chunk_tokens)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(result.loss, (case.student_TH, case.student_VH)) for result in results]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_diagnostics_equal_their_definitions() -> None:
    """Masses, entropies and sampled log-probs are those of the full softmax."""
    case = make_case()
    targets = targets_of(case)
    loss = loss_of(case, targets, temperature=0.7)
    logits_TV = (case.student_TH @ case.student_VH.T).detach()
    logq_TV = logits_TV.log_softmax(-1)
    p_TV = (case.teacher_TH @ case.teacher_VH.T).softmax(-1)
    rows = torch.arange(ROWS)
    torch.testing.assert_close(targets.entropy_T, -(p_TV * p_TV.log()).sum(-1))
    torch.testing.assert_close(targets.sampled_logprobs_T, p_TV.log()[rows, case.sampled_T])
    torch.testing.assert_close(targets.mass_T, p_TV.topk(5).values.sum(-1))
    torch.testing.assert_close(loss.entropy_T, -(logq_TV.exp() * logq_TV).sum(-1))
    torch.testing.assert_close(loss.mass_T, logq_TV.exp().gather(1, targets.ids_TK).sum(-1))
    torch.testing.assert_close(loss.logprobs_T, logq_TV[rows, case.sampled_T])
    torch.testing.assert_close(loss.sampled_logprobs_T, (logits_TV / 0.7).log_softmax(-1)[rows, case.sampled_T])


def test_no_rows_give_zero_loss_and_zero_gradients() -> None:
    """A micro-batch without sampled tokens takes part in backward and changes nothing."""
    case = make_case(torch.float32)
    empty = case._replace(teacher_TH=case.teacher_TH[:0], sampled_T=case.sampled_T[:0])
    hidden_TH = case.student_TH[:0]
    targets = targets_of(empty)
    loss = student_cross_entropy(hidden_TH, case.student_VH, empty.sampled_T, targets, chunk_tokens=4).loss
    loss.backward()
    assert loss.item() == 0.0
    assert case.student_VH.grad is not None
    assert not case.student_VH.grad.any()
    assert not case.student_TH.grad.any()


def test_bfloat16_inputs_are_computed_in_float32() -> None:
    """A bfloat16 model loses only the rounding of its own numbers, not that of the softmax."""
    case = make_case(torch.bfloat16)
    loss = loss_of(case, targets_of(case)).loss
    assert loss.dtype == torch.float32
    assert abs(loss.item() - literal_loss(case, 5).item()) <= 1e-5 * loss.item()
    assert torch.autograd.grad(loss, case.student_TH)[0].dtype == torch.bfloat16
