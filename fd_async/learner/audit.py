"""Checks of the learner's own arithmetic before it trains. A failure refuses to start."""

from __future__ import annotations

import torch
from torch import Tensor

from fd_async.algorithms.distillation import TeacherTargets, student_cross_entropy, teacher_top_k
from fd_async.algorithms.lm_head import logits_of
from fd_async.errors import SelfAuditFailed
from fd_async.learner.batching import MicroBatch
from fd_async.learner.model import Policy
from fd_async.types import TrainingSample

_ROW_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Nats; padding and batch size change the order of sums, never more."""


def check_loss_gradient() -> None:
    """Compare the fused loss and its gradients with a literal transcription under autograd, float64.

    Raises:
        SelfAuditFailed: they differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(7, 5, generator=generator, dtype=torch.float64).requires_grad_()
    head_VH = torch.randn(11, 5, generator=generator, dtype=torch.float64).requires_grad_()
    teacher_TV = torch.randn(7, 11, generator=generator, dtype=torch.float64).log_softmax(-1)
    logprobs_TK, ids_TK = teacher_TV.topk(3, dim=-1)
    zeros_T = torch.zeros(7, dtype=torch.float64)
    targets = TeacherTargets(ids_TK, logprobs_TK, zeros_T, zeros_T, zeros_T)
    ours = student_cross_entropy(hidden_TH, head_VH, ids_TK[:, 0], targets, chunk_tokens=3).loss
    literal = -(logprobs_TK.exp() * (hidden_TH @ head_VH.T).log_softmax(-1).gather(1, ids_TK)).sum()
    pairs = [(ours, literal)]
    pairs += zip(
        torch.autograd.grad(ours, (hidden_TH, head_VH)),
        torch.autograd.grad(literal, (hidden_TH, head_VH)),
        strict=True,
    )
    for mine, theirs in pairs:
        if not torch.allclose(mine, theirs, rtol=1e-9, atol=1e-9):
            raise SelfAuditFailed("the distillation loss or its gradient disagrees with autograd on a small case")


def synthetic_samples(vocab_size: int) -> list[TrainingSample]:
    """Three sequences of different lengths, tool output inside, the teacher's prompt equal to the student's."""
    generator = torch.Generator().manual_seed(1)
    samples = []
    for index, (prompt, completion) in enumerate(((5, 9), (11, 4), (3, 17))):
        ids = torch.randint(vocab_size, (prompt + completion,), generator=generator).tolist()
        samples.append(
            TrainingSample(
                rollout_id=f"audit-{index}",
                prompt_ids=ids[:prompt],
                completion_ids=ids[prompt:],
                sampled_mask=[position % 4 != 2 for position in range(completion)],
                logprobs=[0.0] * completion,
                teacher_prompt_ids=ids[:prompt],
            )
        )
    return samples


@torch.no_grad()
def check_rows(policy: Policy, chunk_tokens: int) -> None:
    """Compare log-probs of a padded batch with each sequence alone, shifted by hand.

    Raises:
        SelfAuditFailed: the shift by one, the mask, the padding or the positions are wrong for this model.
    """
    head_VH = policy.head_VH
    batch = MicroBatch(synthetic_samples(len(head_VH)), policy.device)
    rows = batch.student()
    batched_T = policy(
        rows, lambda h_TH, w_VH: teacher_top_k(h_TH, w_VH, rows.sampled_ids_T, top_k=1, chunk_tokens=chunk_tokens)
    ).sampled_logprobs_T
    alone: list[Tensor] = []
    for sample in batch.samples:
        ids = torch.tensor([sample.prompt_ids + sample.completion_ids], device=policy.device)
        hidden_LH = policy.lm.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]  # type: ignore[operator]
        logp_LV = logits_of(hidden_LH, head_VH).log_softmax(-1)
        for offset, (token, sampled) in enumerate(zip(sample.completion_ids, sample.sampled_mask, strict=True)):
            if sampled:
                alone.append(logp_LV[len(sample.prompt_ids) + offset - 1, token])
    worst = float((batched_T - torch.stack(alone)).abs().max())
    if not worst <= _ROW_TOLERANCE[head_VH.dtype]:
        raise SelfAuditFailed(
            f"log-probs of a padded batch differ from single sequences by {worst:.2e} nats; "
            "this model's positions or padding are not handled"
        )


@torch.no_grad()
def check_teacher_equals_student(student: Policy, teacher: Policy, top_k: int, chunk_tokens: int) -> None:
    """With equal weights and no feedback the teacher's targets must be the student's own log-probs.

    Raises:
        SelfAuditFailed: teacher and student compute different distributions.
    """
    batch = MicroBatch(synthetic_samples(len(student.head_VH)), student.device)

    def targets_of(policy: Policy) -> TeacherTargets:
        rows = batch.teacher() if policy is teacher else batch.student()
        return policy(
            rows, lambda h, w: teacher_top_k(h, w, rows.sampled_ids_T, top_k=top_k, chunk_tokens=chunk_tokens)
        )

    ours, theirs = targets_of(student), targets_of(teacher)
    worst = float((ours.sampled_logprobs_T - theirs.sampled_logprobs_T).abs().max())
    if not worst <= 1e-6:
        raise SelfAuditFailed(f"teacher and student differ by {worst:.2e} nats with equal weights and no feedback")
