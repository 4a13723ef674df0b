"""Checks of the learner's own arithmetic before it trains. A failure refuses to start.

    vocabulary   the teacher's K and the tokenizer's ids are rows of the output matrix; tied matrices are one
    gradient     the configured loss and its gradients against a literal transcription under autograd
    rows         shift, mask, padding and packing against each sequence alone
    teacher      with equal weights and no feedback it is the student, and the student is back afterwards

The teacher's top K never leaves the learner, so vLLM's `max_logprobs` does not bound it. All checks that run the
model are collective: every rank computes the same synthetic sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fd_async.algorithms.distillation import TeacherTargets, student_cross_entropy, teacher_top_k
from fd_async.algorithms.importance import RowWeights
from fd_async.algorithms.lm_head import Head, logits_of, token_logprobs
from fd_async.config.schema import RunConfig
from fd_async.errors import SelfAuditFailed
from fd_async.learner.batching import MicroBatch, Rows
from fd_async.learner.model import Policy
from fd_async.learner.objectives import TrainingEngine
from fd_async.learner.shadow import Shadow
from fd_async.types import TrainingSample

_ROW_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Nats; padding and batch size change the order of sums, never more."""
_GRADIENT_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def run(config: RunConfig, engine: TrainingEngine, shadow: Shadow | None) -> None:
    """Make all checks, on a learner that has neither trained nor resumed. Collective.

    Args:
        shadow: the EMA teacher, or GRPO's reference if it has one.

    Raises:
        SelfAuditFailed: one of them failed; says which.
    """
    policy, chunk_tokens = engine.policy, config.learner.lm_head_chunk_tokens
    check_tied(policy)
    head = look_at_head(engine)
    top_k = config.algorithm.top_k if config.algorithm.type == "fd" else 1
    check_vocabulary(head, policy.num_ids, top_k)
    for dtype in (torch.float64, torch.float32) if policy.device.type == "cuda" else (torch.float64,):
        check_loss_gradient(config, head.scale, head.softcap, dtype=dtype, device=policy.device)
    check_rows(engine, len(head.weight_VH), chunk_tokens, packed=False)
    if config.learner.packing and not policy.why_padded:
        check_rows(engine, len(head.weight_VH), chunk_tokens, packed=True)
    if shadow is not None:
        check_teacher_equals_student(engine, shadow, len(head.weight_VH), top_k, chunk_tokens)


@torch.no_grad()
def look_at_head(engine: TrainingEngine) -> Head:
    """Return the head as the objectives see it, with an empty matrix of the right shape."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=engine.policy.device)
    return engine(
        Rows(ids, ids, ids[0], ids[0]),
        lambda hidden_TH, head: head._replace(weight_VH=torch.empty_like(head.weight_VH, device="meta")),
    )


def check_tied(policy: Policy) -> None:
    """Compare `tie_word_embeddings` with what the module holds.

    Raises:
        SelfAuditFailed: tied matrices are two, or untied ones are one.
    """
    lm: Any = policy.lm
    says = bool(lm.config.get_text_config().tie_word_embeddings)
    is_one = lm.get_input_embeddings().weight is lm.get_output_embeddings().weight
    if says != is_one:
        words = "one parameter" if is_one else "two parameters"
        raise SelfAuditFailed(
            f"the model's config.json says tie_word_embeddings = {str(says).lower()}, but input and output embeddings "
            f"are {words}: the weights that are trained and served would differ"
        )


def check_vocabulary(head: Head, num_ids: int, top_k: int) -> None:
    """Compare the output matrix with the tokenizer and with K.

    Raises:
        SelfAuditFailed: an id or the support does not fit.
    """
    rows = len(head.weight_VH)
    if num_ids > rows:
        raise SelfAuditFailed(f"the tokenizer knows {num_ids} ids, the model's output matrix has {rows} rows")
    if top_k > head.known_ids:
        raise SelfAuditFailed(
            f"algorithm.top_k = {top_k}, but model and tokenizer know {head.known_ids} tokens; lower it"
        )


def check_loss_gradient(
    config: RunConfig,
    scale: float = 1.0,
    softcap: float = 0.0,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> None:
    """Compare the configured loss and its gradients with a literal transcription under autograd.

    Raises:
        SelfAuditFailed: they differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    hidden_TH, weight_VH = noise(7, 5).requires_grad_(), noise(11, 5).requires_grad_()
    sampled_T = torch.randint(11, (7,), generator=generator).to(device)
    teacher_TV, behaviour_T, factor_T = noise(7, 11).log_softmax(-1), noise(7) - 2.0, noise(7).abs()
    head, temperature = Head(weight_VH, scale, softcap), config.rollout.temperature
    logits_TV = scale * (hidden_TH @ weight_VH.T)
    if softcap:
        logits_TV = softcap * torch.tanh(logits_TV / softcap)
    sampled_logp_T = (logits_TV / temperature).log_softmax(-1).gather(1, sampled_T[:, None])[:, 0]
    if config.algorithm.type == "grpo":
        ours_T = token_logprobs(hidden_TH, head, sampled_T, temperature=temperature, chunk_tokens=3).logprobs_T
        ours, literal = (ours_T * factor_T).sum(), (sampled_logp_T * factor_T).sum()
    else:
        weights = RowWeights(
            factor_T, config.algorithm.importance, config.algorithm.importance_cap, behaviour_T, (4, 3)
        )
        logprobs_TK, ids_TK = teacher_TV.topk(3, dim=-1)
        log_tail_T = teacher_TV.scatter(1, ids_TK, -torch.inf).logsumexp(-1)
        unused_T = torch.zeros_like(log_tail_T)
        targets = TeacherTargets(ids_TK, logprobs_TK, logprobs_TK.exp().sum(-1), unused_T, unused_T, log_tail_T)
        ours = student_cross_entropy(
            hidden_TH,
            head,
            sampled_T,
            targets,
            loss=config.algorithm.loss,
            chunk_tokens=3,
            temperature=temperature,
            weights=weights,
        ).loss
        loss_T = _literal_loss(config.algorithm.loss, logits_TV.log_softmax(-1).gather(1, ids_TK), logprobs_TK.exp())
        literal = (loss_T * factor_T * _literal_importance(weights, sampled_logp_T.detach() - behaviour_T)).sum()
    inputs = (hidden_TH, weight_VH)
    pairs = [
        (ours, literal),
        *zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(literal, inputs), strict=True),
    ]
    tolerance = _GRADIENT_TOLERANCE[dtype]
    if not all(torch.allclose(mine, theirs, rtol=tolerance, atol=tolerance) for mine, theirs in pairs):
        raise SelfAuditFailed(
            f"the {config.algorithm.type} loss or its gradient disagrees with autograd on a small case "
            f"(algorithm.loss = {config.algorithm.loss!r}, algorithm.importance = {config.algorithm.importance!r})"
        )


def _literal_loss(loss: str, logq_TK: Tensor, p_TK: Tensor) -> Tensor:
    """Write the four variants down as in the docstring of `algorithms.distillation`."""
    match loss:
        case "truncated":
            return -(p_TK * logq_TK).sum(-1)
        case "renormalised":
            return -(p_TK / p_TK.sum(-1, keepdim=True) * logq_TK).sum(-1)
        case "both_renormalised":
            return -(p_TK / p_TK.sum(-1, keepdim=True) * logq_TK.log_softmax(-1)).sum(-1)
    return -(p_TK * logq_TK).sum(-1) - (1 - p_TK.sum(-1)) * torch.log1p(-logq_TK.exp().sum(-1))


def _literal_importance(weights: RowWeights, log_ratio_T: Tensor) -> Tensor:
    """Weigh each row by its own ratio, or by the product of those before it in its sample."""
    if weights.importance == "none":
        return torch.ones_like(log_ratio_T)
    if weights.importance == "prefix":
        log_ratio_T = torch.cat([part.cumsum(0) - part for part in log_ratio_T.split(list(weights.lengths))])
    ratio_T = log_ratio_T.exp()
    return ratio_T.clamp(max=weights.cap) if weights.cap else ratio_T


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
def check_rows(engine: TrainingEngine, vocab_size: int, chunk_tokens: int, *, packed: bool) -> None:
    """Compare log-probs of a padded or packed batch with each sequence alone, shifted and masked by hand.

    Raises:
        SelfAuditFailed: the shift by one, the mask, the padding, the borders or the positions are wrong for this model.
    """
    device = engine.policy.device
    batch = MicroBatch(synthetic_samples(vocab_size), device, packed)
    rows = batch.student()
    together_T = engine(rows, _targets(rows, 1, chunk_tokens)).sampled_logprobs_T
    alone: list[Tensor] = []
    for sample in batch.samples:
        ids_L = torch.tensor(sample.prompt_ids + sample.completion_ids, device=device)
        every_L = torch.arange(len(ids_L), device=device)
        logits_LV = engine(Rows(ids_L[None], every_L[None], every_L, ids_L), logits_of)
        logp_LV = logits_LV.log_softmax(-1)
        for offset, (token, sampled) in enumerate(zip(sample.completion_ids, sample.sampled_mask, strict=True)):
            if sampled:
                alone.append(logp_LV[len(sample.prompt_ids) + offset - 1, token])
    words = "packed" if packed else "padded"
    if len(together_T) != len(alone):
        raise SelfAuditFailed(f"a {words} batch scores {len(together_T)} tokens, its masks say {len(alone)}")
    worst = float((together_T - torch.stack(alone)).abs().max())
    if not worst <= _ROW_TOLERANCE[engine.policy.output_weight.dtype]:
        remedy = "set learner.packing = false" if packed else "this model's positions or padding are not handled"
        raise SelfAuditFailed(
            f"log-probs of a {words} batch differ from single sequences by {worst:.2e} nats; {remedy}"
        )


@torch.no_grad()
def check_teacher_equals_student(
    engine: TrainingEngine, shadow: Shadow, vocab_size: int, top_k: int, chunk_tokens: int
) -> None:
    """Compare the teacher's targets without feedback with the student's own, and with the student's afterwards.

    Raises:
        SelfAuditFailed: teacher and student compute different distributions, or the teacher left a trace.
    """
    batch = MicroBatch(synthetic_samples(vocab_size), engine.policy.device)
    own, teacher = batch.student(), batch.teacher()
    before = engine(own, _targets(own, top_k, chunk_tokens))
    with engine.wearing(shadow):
        theirs = engine(teacher, _targets(teacher, top_k, chunk_tokens))
    after = engine(own, _targets(own, top_k, chunk_tokens))
    worst = _worst(before, theirs)
    if not worst <= 1e-6:
        raise SelfAuditFailed(f"teacher and student differ by {worst:.2e} nats with equal weights and no feedback")
    worst = _worst(before, after)
    if not worst <= 1e-6:
        raise SelfAuditFailed(f"after a look at the teacher the student differs by {worst:.2e} nats from before")


def _targets(rows: Rows, top_k: int, chunk_tokens: int) -> Callable[[Tensor, Head], TeacherTargets]:
    return lambda hidden_TH, head: teacher_top_k(
        hidden_TH, head, rows.sampled_ids_T, top_k=top_k, chunk_tokens=chunk_tokens
    )


def _worst(one: TeacherTargets, other: TeacherTargets) -> float:
    """Return the largest difference in nats over support and sampled tokens."""
    if one.sampled_logprobs_T.shape != other.sampled_logprobs_T.shape:
        return float("inf")
    sampled = (one.sampled_logprobs_T - other.sampled_logprobs_T).abs().max()
    return float(torch.maximum(sampled, (one.logprobs_TK - other.logprobs_TK).abs().max()))
