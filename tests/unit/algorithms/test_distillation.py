"""The distillation loss in its four variants against its formulas, written out slowly in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fd_async.algorithms.distillation import Loss, student_cross_entropy, teacher_top_k
from fd_async.algorithms.importance import RowWeights
from fd_async.algorithms.lm_head import Head
from tests.unit.algorithms.cases import (
    HIDDEN,
    LOSSES,
    ROWS,
    VOCAB,
    Case,
    assert_near,
    gradients_of,
    literal_rows,
    loss_of,
    make_case,
    targets_of,
)

each_loss = pytest.mark.parametrize("loss", LOSSES)
heads = pytest.mark.parametrize(("scale", "softcap"), [(1.0, 0.0), (0.5, 0.0), (1.0, 3.0), (1.7, 2.5)])


@each_loss
@heads
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_loss_and_gradients_equal_the_literal_formula(
    loss: Loss, scale: float, softcap: float, dtype: torch.dtype, tolerance: float
) -> None:
    """Forward, every row's loss and both gradients agree with a transcription of the formula in float64."""
    case = make_case(dtype, scale=scale, softcap=softcap)
    result = loss_of(case, targets_of(case), loss)
    rows = torch.stack(literal_rows(case, 5, loss))
    assert abs(result.loss.item() - rows.sum().item()) <= tolerance * rows.sum().item()
    assert_near(result.loss_T, rows, tolerance)
    for mine, other in zip(gradients_of(case, result.loss), gradients_of(case, rows.sum()), strict=True):
        assert_near(mine, other, tolerance)


@each_loss
@heads
@pytest.mark.parametrize("importance", [None, "token", "prefix"])
def test_gradient_passes_finite_differences(loss: Loss, scale: float, softcap: float, importance: str | None) -> None:
    """Central differences along random directions agree with the hand-written backward, at fixed row weights."""
    case = make_case(scale=scale, softcap=softcap)
    targets, generator = targets_of(case), torch.Generator().manual_seed(9)
    factor_T = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    weights = RowWeights(factor_T)
    if importance:
        behaviour_T = -3 * torch.rand(ROWS, generator=generator, dtype=torch.float64)
        weights = RowWeights(factor_T, importance, 1.5, behaviour_T, (4, 9))  # type: ignore[arg-type]
    result = loss_of(case, targets, loss, weights=weights, temperature=0.8)
    fixed = RowWeights(factor_T * result.importance_T)
    gradients, size = gradients_of(case, result.loss), 1e-5
    for _ in range(2):
        directions = [torch.randn(g.shape, generator=generator, dtype=torch.float64) for g in gradients]
        moved = [
            loss_of(moved_by(case, [sign * size * d for d in directions]), targets, loss, weights=fixed).loss.item()
            for sign in (1, -1)
        ]
        slope = sum((g * d).sum().item() for g, d in zip(gradients, directions, strict=True))
        assert (moved[0] - moved[1]) / (2 * size) == pytest.approx(slope, rel=1e-7, abs=1e-7)


def moved_by(case: Case, steps: list[Tensor]) -> Case:
    weight_VH = case.student.weight_VH.detach() + steps[1]
    return case._replace(
        student_TH=case.student_TH.detach() + steps[0], student=case.student._replace(weight_VH=weight_VH)
    )


@each_loss
def test_logit_gradient_is_the_formula(loss: Loss) -> None:
    """With an identity head the hidden gradient is the logit gradient that the module states."""
    generator = torch.Generator().manual_seed(3)
    logits_TV = torch.randn(4, VOCAB, generator=generator, dtype=torch.float64).requires_grad_()
    teacher_TV = torch.randn(4, VOCAB, generator=generator, dtype=torch.float64)
    eye, sampled_T = Head(torch.eye(VOCAB, dtype=torch.float64)), torch.arange(4)
    targets = teacher_top_k(teacher_TV, eye, sampled_T, top_k=3, chunk_tokens=2)
    student_cross_entropy(logits_TV, eye, sampled_T, targets, loss=loss, chunk_tokens=2).loss.backward()
    inside_TV = torch.zeros_like(teacher_TV).scatter(1, targets.ids_TK, 1.0)
    p_TV, q_TV = teacher_TV.softmax(-1) * inside_TV, logits_TV.detach().softmax(-1)
    m_T1, q_S_T1 = p_TV.sum(-1, keepdim=True), (q_TV * inside_TV).sum(-1, keepdim=True)
    expected = {
        "truncated": m_T1 * q_TV - p_TV,
        "renormalised": q_TV - p_TV / m_T1,
        "both_renormalised": (q_TV / q_S_T1 - p_TV / m_T1) * inside_TV,
        "tail_bucket": torch.where(inside_TV > 0, q_TV - p_TV, q_TV * (m_T1 - q_S_T1) / (1 - q_S_T1)),
    }
    assert logits_TV.grad is not None
    torch.testing.assert_close(logits_TV.grad, expected[loss])


@each_loss
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_whole_vocabulary_gives_the_full_cross_entropy(loss: Loss, dtype: torch.dtype) -> None:
    """K = V (or more) equals torch's cross-entropy with soft targets, the tail is empty and nothing is NaN."""
    case = make_case(dtype)
    targets = targets_of(case, top_k=VOCAB + 7)
    p_TV = (case.teacher_TH @ case.teacher.weight_VH.T).softmax(-1)
    full = torch.nn.functional.cross_entropy(case.student_TH @ case.student.weight_VH.T, p_TV, reduction="sum")
    result = loss_of(case, targets, loss)
    torch.testing.assert_close(result.loss, full)
    for mine, other in zip(gradients_of(case, result.loss), gradients_of(case, full), strict=True):
        torch.testing.assert_close(mine, other)
    torch.testing.assert_close(targets.mass_T, torch.ones(ROWS, dtype=dtype))
    assert (targets.log_tail_T == -torch.inf).all()
    assert all(column.isfinite().all() for column in result)


def test_truncated_is_the_mass_times_renormalised_per_row() -> None:
    """A == m B, token by token."""
    case = make_case()
    targets = targets_of(case)
    truncated, renormalised = (loss_of(case, targets, loss).loss_T for loss in ("truncated", "renormalised"))
    torch.testing.assert_close(truncated, targets.mass_T * renormalised)


@each_loss
def test_equal_student_is_stationary_unless_the_tail_is_pulled(loss: Loss) -> None:
    """Teacher == student: gradient 0 for tail_bucket and both_renormalised, m q - p on all logits for truncated."""
    logits_TV = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    leaf_TV, eye = logits_TV.clone().requires_grad_(), Head(torch.eye(VOCAB, dtype=torch.float64))
    sampled_T = torch.zeros(ROWS, dtype=torch.long)
    targets = teacher_top_k(logits_TV, eye, sampled_T, top_k=4, chunk_tokens=3)
    result = student_cross_entropy(leaf_TV, eye, sampled_T, targets, loss=loss, chunk_tokens=3)
    (gradient_TV,) = torch.autograd.grad(result.loss, leaf_TV)
    q_TV, m_T1 = logits_TV.softmax(-1), targets.mass_T[:, None]
    p_TV = torch.zeros_like(q_TV).scatter(1, targets.ids_TK, targets.logprobs_TK.exp())
    pull_TV = {"truncated": m_T1 * q_TV - p_TV, "renormalised": q_TV - p_TV / m_T1}.get(loss, torch.zeros_like(q_TV))
    torch.testing.assert_close(gradient_TV, pull_TV, rtol=1e-9, atol=1e-12)


@each_loss
@pytest.mark.parametrize("chunk_tokens", [1, 5, 64, 0])
def test_chunks_do_not_change_the_result(loss: Loss, chunk_tokens: int) -> None:
    """Loss, targets, weights and gradients in float32 are those of one chunk."""
    case = make_case(torch.float32)
    whole, cut = targets_of(case, chunk_tokens=1000), targets_of(case, chunk_tokens=chunk_tokens)
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    weights = RowWeights(None, "prefix", 1.5, -3 * torch.rand(ROWS), (4, 9))
    results = [loss_of(case, whole, loss, chunk_tokens=size, weights=weights) for size in (1000, chunk_tokens)]
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    for one, other in zip(*(gradients_of(case, result.loss) for result in results), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@heads
def test_diagnostics_equal_their_definitions(scale: float, softcap: float) -> None:
    """Masses, entropies and sampled log-probs are those of the full softmax."""
    case = make_case(scale=scale, softcap=softcap)
    targets = targets_of(case)
    result = loss_of(case, targets, temperature=0.7)
    logits_TV, teacher_TV = (
        scale * (hidden_TH @ head.weight_VH.T).detach()
        for hidden_TH, head in ((case.student_TH, case.student), (case.teacher_TH, case.teacher))
    )
    if softcap:
        logits_TV, teacher_TV = (softcap * torch.tanh(x / softcap) for x in (logits_TV, teacher_TV))
    logq_TV, p_TV, rows = logits_TV.log_softmax(-1), teacher_TV.softmax(-1), torch.arange(ROWS)
    torch.testing.assert_close(targets.entropy_T, -(p_TV * p_TV.log()).sum(-1))
    torch.testing.assert_close(targets.sampled_logprobs_T, p_TV.log()[rows, case.sampled_T])
    torch.testing.assert_close(targets.mass_T, p_TV.topk(5).values.sum(-1))
    torch.testing.assert_close(targets.log_tail_T.exp(), 1 - targets.mass_T)
    torch.testing.assert_close(result.entropy_T, -(logq_TV.exp() * logq_TV).sum(-1))
    torch.testing.assert_close(result.mass_T, logq_TV.exp().gather(1, targets.ids_TK).sum(-1))
    torch.testing.assert_close(result.logprobs_T, logq_TV[rows, case.sampled_T])
    torch.testing.assert_close(result.sampled_logprobs_T, (logits_TV / 0.7).log_softmax(-1)[rows, case.sampled_T])


@each_loss
def test_no_rows_give_zero_loss_and_zero_gradients(loss: Loss) -> None:
    """A micro-batch without sampled tokens takes part in backward and changes nothing."""
    case = make_case(torch.float32)
    empty = case._replace(teacher_TH=case.teacher_TH[:0], student_TH=case.student_TH[:0], sampled_T=case.sampled_T[:0])
    result = loss_of(empty, targets_of(empty), loss, weights=RowWeights(None, "prefix", 2.0, torch.zeros(0), ()))
    result.loss.backward()
    assert result.loss.item() == 0.0
    assert case.student.weight_VH.grad is not None
    assert not case.student.weight_VH.grad.any()
    assert case.student_TH.grad is not None
    assert not case.student_TH.grad.any()


@each_loss
def test_bfloat16_inputs_are_computed_in_float32(loss: Loss) -> None:
    """A bfloat16 model loses only the rounding of its own numbers, not that of the softmax or of the sums."""
    case = make_case(torch.bfloat16, rows=200)
    result, literal = loss_of(case, targets_of(case), loss), torch.stack(literal_rows(case, 5, loss)).sum()
    assert result.loss.dtype == torch.float32
    assert abs(result.loss.item() - literal.item()) <= 1e-5 * literal.item()
    gradients = gradients_of(case, result.loss)
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16, torch.bfloat16]
    wide = make_case(torch.bfloat16, rows=200)
    wide = wide._replace(
        student_TH=wide.student_TH.detach().double().requires_grad_(),
        student=wide.student._replace(weight_VH=wide.student.weight_VH.detach().double().requires_grad_()),
    )
    exact = gradients_of(wide, torch.stack(literal_rows(wide, 5, loss)).sum())
    for mine, other in zip(gradients, exact, strict=True):
        assert ((mine.double() - other).abs() <= 2**-8 * other.abs() + 1e-5 * other.abs().max()).all()


@each_loss
def test_sure_teachers_and_students_make_no_nan(loss: Loss) -> None:
    """Masses within rounding of one, or of zero, keep loss and gradients finite, and a wrong sure student is taught."""
    eye, sampled_T = Head(torch.eye(VOCAB)), torch.zeros(4, dtype=torch.long)
    teacher_TV = torch.zeros(4, VOCAB)
    teacher_TV[:2, 0] = 200.0
    logits_TV = torch.zeros(4, VOCAB)
    logits_TV[0, 0] = logits_TV[1, 7] = logits_TV[2, 0] = logits_TV[3, 28] = 200.0
    logits_TV.requires_grad_()
    targets = teacher_top_k(teacher_TV, eye, sampled_T, top_k=3, chunk_tokens=2)
    result = student_cross_entropy(logits_TV, eye, sampled_T, targets, loss=loss, chunk_tokens=2)
    (gradient_TV,) = torch.autograd.grad(result.loss, logits_TV)
    assert all(column.isfinite().all() for column in result)
    assert gradient_TV.isfinite().all()
    if loss != "both_renormalised":
        torch.testing.assert_close(gradient_TV[1, [0, 7]], torch.tensor([-1.0, 1.0]))


@each_loss
def test_padding_of_the_support_teaches_nothing(loss: Loss) -> None:
    """Entries with log-prob -inf may repeat any id; loss and gradients are those without them."""
    case = make_case()
    targets = targets_of(case)
    padded = targets._replace(
        ids_TK=torch.cat([targets.ids_TK, targets.ids_TK[:, :1] * 0, targets.ids_TK[:, 1:2]], 1),
        logprobs_TK=torch.nn.functional.pad(targets.logprobs_TK, (0, 2), value=-torch.inf),
    )
    one, other = loss_of(case, targets, loss), loss_of(case, padded, loss)
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs)
    for mine, theirs in zip(gradients_of(case, one.loss), gradients_of(case, other.loss), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(padded.negative_entropy_T, targets.negative_entropy_T)


@each_loss
def test_padded_vocabularies_stay_in_the_softmax_but_not_in_the_support(loss: Loss) -> None:
    """Rows past `num_ids` count in every normaliser, as in the engine, and are never taught."""
    case = make_case(num_ids=11)
    targets = targets_of(case, top_k=5)
    assert int(targets.ids_TK.max()) < 11
    result, rows = loss_of(case, targets, loss), torch.stack(literal_rows(case, 5, loss))
    assert_near(result.loss_T, rows, 1e-12)
    for mine, other in zip(gradients_of(case, result.loss), gradients_of(case, rows.sum()), strict=True):
        assert_near(mine, other, 1e-12)
    assert targets_of(case, top_k=20).ids_TK.shape == (ROWS, 11)


def test_upstream_factor_scales_the_gradients_and_backward_runs_once() -> None:
    """loss * 0.25 has a quarter of the gradient; a second backward is refused, not silently wrong."""
    case = make_case()
    targets = targets_of(case)
    whole = gradients_of(case, loss_of(case, targets).loss)
    scaled = loss_of(case, targets).loss * 0.25
    for one, quarter in zip(whole, torch.autograd.grad(scaled, case.leaves, retain_graph=True), strict=True):
        torch.testing.assert_close(quarter, one * 0.25)
    with pytest.raises(RuntimeError, match="one backward pass"):
        torch.autograd.grad(scaled, case.leaves)


def test_only_wanted_gradients_are_made() -> None:
    """A frozen head, frozen hidden states or no_grad leave the other gradient right."""
    case = make_case()
    targets = targets_of(case)
    hidden_grad, head_grad = gradients_of(case, loss_of(case, targets).loss)
    frozen_head = case._replace(student=case.student._replace(weight_VH=case.student.weight_VH.detach()))
    torch.testing.assert_close(torch.autograd.grad(loss_of(frozen_head, targets).loss, case.student_TH)[0], hidden_grad)
    frozen_body = case._replace(student_TH=case.student_TH.detach())
    loss = loss_of(frozen_body, targets).loss
    torch.testing.assert_close(torch.autograd.grad(loss, case.student.weight_VH)[0], head_grad)
    with torch.no_grad():
        assert not loss_of(case, targets).loss.requires_grad


def test_an_unknown_variant_is_refused() -> None:
    """The message names the key and the choices."""
    case = make_case()
    with pytest.raises(ValueError, match=r"algorithm\.loss"):
        loss_of(case, targets_of(case), "reverse")  # type: ignore[arg-type]


def test_a_tied_head_collects_both_gradients() -> None:
    """The embedding's gradient is that through the body plus that of the head."""
    embedding_VH = torch.randn(VOCAB, HIDDEN, dtype=torch.float64).requires_grad_()
    case = make_case()
    gradients = []
    for fused in (True, False):
        tied = case._replace(student_TH=embedding_VH[case.sampled_T] * 2.0, student=Head(embedding_VH))
        loss = loss_of(tied, targets_of(tied)).loss if fused else torch.stack(literal_rows(tied, 5, "truncated")).sum()
        gradients.append(torch.autograd.grad(loss, embedding_VH)[0])
    assert_near(*gradients, 1e-12)
