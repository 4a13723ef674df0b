"""One gradient step, on a random tiny model and a plain optimizer."""

from __future__ import annotations

import copy
import math
from itertools import combinations
from typing import Any, get_args

import msgspec
import pytest
import torch

from fd_async.algorithms.distillation import Loss
from fd_async.errors import AlignmentError, NonFiniteLoss
from fd_async.learner.feedback_distillation import FeedbackDistillation
from fd_async.learner.grpo import Grpo
from fd_async.learner.token_scores import NUM_CHOICES, NUM_PLACES
from fd_async.learner.trainer import Trainer, learning_rate
from fd_async.types import StepReport, TrainingSample
from tests.fakes.plain_engine import PlainEngine, shadow_of
from tests.fakes.tiny_policy import tiny_config, tiny_policy, tiny_samples

DEVICE = torch.device("cpu")


class Bench:
    """Student, a teacher with other weights, and a trainer over them."""

    def __init__(self, teacher_seed: int = 1, **tables: dict[str, Any]) -> None:
        self.config = tiny_config(**tables)
        self.engine = PlainEngine(tiny_policy(0).train())
        self.teacher_policy = tiny_policy(teacher_seed).eval().requires_grad_(False)
        self.shadow = shadow_of(self.teacher_policy)
        is_fd = self.config.algorithm.type == "fd"
        self.objective = (FeedbackDistillation if is_fd else Grpo)(self.config, self.shadow)
        self.trainer = Trainer(self.config, self.engine, self.objective, world_size=1)

    def step(self, samples: list[TrainingSample], step: int = 1) -> StepReport:
        names = [sample.rollout_id for sample in samples]
        return self.trainer.step(samples, step=step, score_ids=names[:2], gain_ids=names, anchor_ids=names)

    @property
    def average(self) -> dict[str, torch.Tensor]:
        """The teacher's weights, flat and live."""
        return {name: fragment.values for name, fragment in self.shadow.fragments.items()}

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.engine.policy.named_parameters()}


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in sorted(tensors)])


def literal_fd_loss(bench: Bench, samples: list[TrainingSample], student_prompt: str = "prompt_ids") -> torch.Tensor:
    """Sum of -p log q over the teacher's top-K, one sequence at a time through the whole model; float64 logits."""
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        rows = []
        for policy, prompt in (
            (bench.teacher_policy, sample.teacher_prompt_ids),
            (bench.engine.policy, getattr(sample, student_prompt)),
        ):
            logits_LV = policy.lm(input_ids=torch.tensor([prompt + sample.completion_ids])).logits[0].double()
            rows.append(logits_LV[len(prompt) - 1 : -1].log_softmax(-1))
        for logp_V, logq_V, sampled in zip(*rows, sample.sampled_mask, strict=True):
            if sampled:
                top = logp_V.topk(min(bench.config.algorithm.top_k, len(logp_V)))
                total = total - (top.values.exp().detach() * logq_V[top.indices]).sum()
    return total


def test_step_equals_the_literal_formula_over_single_sequences() -> None:
    """Loss and gradients of a padded, chunked batch are those of separate sequences and a hand-made shift."""
    bench, samples = Bench(learner={"lm_head_chunk_tokens": 7}), tiny_samples(6)
    tokens = sum(sum(sample.sampled_mask) for sample in samples)
    literal = literal_fd_loss(bench, samples) / tokens
    parameters = dict(bench.engine.policy.named_parameters())
    expected = dict(zip(parameters, torch.autograd.grad(literal, parameters.values()), strict=True))
    report = bench.step(samples)
    assert report.metrics["loss"] == pytest.approx(literal.item(), rel=1e-5)
    assert report.metrics["tokens/trained"] == tokens
    for name, gradient in expected.items():
        torch.testing.assert_close(bench.engine.gradients[name], gradient, rtol=1e-3, atol=1e-6)


def test_anchor_matches_the_student_under_the_teachers_prompt() -> None:
    """On its step the anchor adds its weight times the same loss under prompt + feedback."""
    settings = {"anchor_weight": 0.5, "anchor_every": 2}
    bench, samples = Bench(algorithm=settings), tiny_samples(4)
    tokens = sum(sum(sample.sampled_mask) for sample in samples)
    loss = literal_fd_loss(bench, samples) + 0.5 * literal_fd_loss(bench, samples, "teacher_prompt_ids")
    anchor = literal_fd_loss(bench, samples, "teacher_prompt_ids").item() / tokens
    head = bench.engine.policy.output_weight
    (expected,) = torch.autograd.grad(loss / tokens, head)
    report = bench.step(samples, step=2)
    assert report.metrics["anchor/loss"] == pytest.approx(anchor, rel=1e-5)
    torch.testing.assert_close(bench.engine.gradients["lm.model.embed_tokens.weight"], expected, rtol=1e-3, atol=1e-6)
    assert "anchor/loss" not in Bench(algorithm=settings).step(samples, step=3).metrics


def test_a_share_of_the_samples_stands_for_all_of_them() -> None:
    """Two of four for a share of 0.3: the anchor weighs them so that the mean over all choices is the whole."""
    samples = tiny_samples(4)
    whole = Bench(algorithm={"anchor_weight": 0.5, "anchor_every": 1}).step(samples).metrics["anchor/loss"]
    parts = []
    for taken in combinations([sample.rollout_id for sample in samples], 2):
        bench = Bench(algorithm={"anchor_weight": 0.5, "anchor_every": 1, "anchor_share": 0.3})
        parts.append(bench.trainer.step(samples, step=1, anchor_ids=taken).metrics["anchor/loss"])
    assert sum(parts) / len(parts) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    "algorithm",
    [
        {"type": "fd"},
        {"type": "grpo"},
        {"type": "fd", "importance": "prefix", "normalisation": "sequence_mean"},
        {"type": "grpo", "normalisation": "sequence_mean"},
    ],
    ids=str,
)
def test_micro_batches_do_not_change_the_step(algorithm: dict[str, Any]) -> None:
    """Weights after a step agree for one sequence at a time, some, and all at once."""
    results = []
    for tokens in (1, 60, 4000):
        bench = Bench(algorithm=algorithm | {"anchor_weight": 0.2}, learner={"micro_batch_tokens": tokens})
        report = bench.step(tiny_samples(8), step=5)
        vectors = (flat(bench.weights), flat(bench.engine.gradients))
        results.append((vectors, report.metrics))
    for vectors, metrics in results[1:]:
        for vector, expected in zip(vectors, results[0][0], strict=True):
            assert (vector - expected).norm() <= 1e-6 * expected.norm()
        for name, value in results[0][1].items():
            if not name.startswith("time/"):
                assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("algorithm", ["fd", "grpo"])
def test_tool_tokens_are_attended_and_never_learned(algorithm: str) -> None:
    """Whether a tool token is likely changes nothing by itself: only rows of sampled tokens carry gradient."""
    (sample,) = tiny_samples(1)
    last = len(sample.completion_ids) - 1
    mask = [position != last for position in range(last + 1)]
    gradients = []
    for token in (5, 6):
        changed = msgspec.structs.replace(
            sample, completion_ids=[*sample.completion_ids[:last], token], sampled_mask=mask
        )
        bench = Bench(algorithm={"type": algorithm})
        bench.step([changed])
        gradients.append(bench.engine.gradients)
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
    middle = msgspec.structs.replace(
        sample, completion_ids=[(sample.completion_ids[0] + 1) % 64, *sample.completion_ids[1:]]
    )
    middle = msgspec.structs.replace(middle, sampled_mask=[False, *mask[1:]])
    bench = Bench(algorithm={"type": algorithm})
    bench.step([middle])
    assert not torch.equal(
        bench.engine.gradients["lm.model.embed_tokens.weight"], gradients[0]["lm.model.embed_tokens.weight"]
    )


def test_token_deltas_align_with_the_completion() -> None:
    """log p_teacher - log p_student per completion token, zero at tool tokens."""
    bench, samples = Bench(), tiny_samples(4)
    expected = {}
    for sample in samples[:2]:
        scores = []
        for policy, prompt in (
            (bench.teacher_policy, sample.teacher_prompt_ids),
            (bench.engine.policy, sample.prompt_ids),
        ):
            ids = torch.tensor([prompt + sample.completion_ids])
            with torch.no_grad():
                logp_LV = policy.lm(input_ids=ids).logits[0].log_softmax(-1)
            scores.append([logp_LV[len(prompt) + t - 1, token].item() for t, token in enumerate(sample.completion_ids)])
        expected[sample.rollout_id] = [
            (teacher - student) * sampled
            for teacher, student, sampled in zip(*scores, sample.sampled_mask, strict=True)
        ]
    deltas = bench.step(samples).token_deltas
    assert deltas.keys() == expected.keys()
    for name, values in expected.items():
        assert deltas[name] == pytest.approx(values, abs=1e-4)


def test_the_teachers_own_choices_stand_beside_the_tokens_on_which_the_two_differ_most() -> None:
    """Its likeliest tokens and their probabilities, in the place of the completion; for the scored attempts alone."""
    bench, samples = Bench(), tiny_samples(4)
    report = bench.step(samples)
    assert report.teacher_choices.keys() == report.token_deltas.keys() == {s.rollout_id for s in samples[:2]}
    for sample in samples[:2]:
        ids = torch.tensor([sample.teacher_prompt_ids + sample.completion_ids])
        with torch.no_grad():
            p_LV = bench.teacher_policy.lm(input_ids=ids).logits[0].softmax(-1)
        deltas, choices = report.token_deltas[sample.rollout_id], report.teacher_choices[sample.rollout_id]
        sampled = [place for place, counts in enumerate(sample.sampled_mask) if counts]
        assert set(choices) == set(sorted(sampled, key=lambda place: -abs(deltas[place]))[:NUM_PLACES])
        for place, found in choices.items():
            expected = p_LV[len(sample.teacher_prompt_ids) + place - 1].topk(NUM_CHOICES)
            assert [token for token, _ in found] == expected.indices.tolist()
            assert [share for _, share in found] == pytest.approx(expected.values.tolist(), abs=1e-5)


def test_feedback_gain_is_zero_without_feedback_and_positive_with_it() -> None:
    """The gain compares the teacher's targets with and without the hint in its prompt."""
    samples = tiny_samples(4)
    silent = [msgspec.structs.replace(sample, teacher_prompt_ids=sample.prompt_ids) for sample in samples]
    assert Bench().step(silent).metrics["teacher/feedback_gain"] == pytest.approx(0.0, abs=1e-6)
    whole = {"top_k": 64}
    assert Bench(algorithm=whole).step(samples).metrics["teacher/feedback_gain"] > 0.0


def test_the_distance_to_the_teacher_does_not_depend_on_the_loss() -> None:
    """Every variant reports the same sum over the top K of p log (p / q), taken back from its own loss."""
    samples = tiny_samples(4)
    plain, *others = (
        Bench(algorithm={"loss": loss}).step(samples).metrics["policy/teacher_kl"] for loss in get_args(Loss)
    )
    assert plain > 0.1
    assert others == pytest.approx([plain] * 3, rel=1e-5)


def test_mismatch_is_zero_when_the_engine_agrees() -> None:
    """k3 between equal log-probs vanishes; a constant offset d gives exp(d) - d - 1."""
    bench, samples = Bench(), tiny_samples(3)
    exact = []
    for sample in samples:
        with torch.no_grad():
            ids = torch.tensor([sample.prompt_ids + sample.completion_ids])
            logp_LV = bench.engine.policy.lm(input_ids=ids).logits[0].log_softmax(-1)
        start = len(sample.prompt_ids) - 1
        logprobs = [logp_LV[start + t, token].item() for t, token in enumerate(sample.completion_ids)]
        exact.append(msgspec.structs.replace(sample, logprobs=logprobs))
    offset = [msgspec.structs.replace(s, logprobs=[value - 0.1 for value in s.logprobs]) for s in exact]
    assert Bench().step(exact).metrics["policy/mismatch_kl"] == pytest.approx(0.0, abs=1e-8)
    metrics = Bench().step(offset).metrics
    assert metrics["policy/mismatch_kl"] == pytest.approx(math.exp(0.1) - 0.1 - 1, rel=1e-3)
    assert metrics["policy/mismatch_kl_fresh"] == pytest.approx(math.exp(0.1) - 0.1 - 1, rel=1e-3)


def test_teacher_moves_on_its_step_alone() -> None:
    """EMA 0.9 every third step, from the student as it is after the update."""
    bench, samples = Bench(algorithm={"ema_every": 3, "ema_retention": 0.9}), tiny_samples(3)
    start = copy.deepcopy(bench.average)
    bench.step(samples, step=2)
    assert all(torch.equal(start[name], mu) for name, mu in bench.average.items())
    bench.step(samples, step=3)
    student = bench.weights
    for name, mu in bench.average.items():
        torch.testing.assert_close(mu, 0.9 * start[name] + 0.1 * student[f"lm.{name}"].view(-1))
    assert bench.objective.progress["updates"] == 1


def test_the_student_gets_its_own_weights_back() -> None:
    """After the teacher's phase the module holds the student's tensors, not copies of either."""
    bench, samples = Bench(), tiny_samples(3)
    before = {name: p.data_ptr() for name, p in bench.engine.policy.named_parameters()}
    bench.step(samples)
    assert before == {name: p.data_ptr() for name, p in bench.engine.policy.named_parameters()}


def test_the_teacher_waits_while_feedback_moves_it_too_little() -> None:
    """Below `ema_min_gain` an update is held back and counted; above it goes ahead."""
    samples = tiny_samples(3)
    held = Bench(algorithm={"ema_every": 1, "ema_min_gain": 1e3})
    start = copy.deepcopy(held.average)
    metrics = held.step(samples).metrics
    assert (metrics["teacher/updates_held"], metrics["teacher/updates"], metrics["teacher/age_steps"]) == (1, 0, 1)
    assert all(torch.equal(start[name], mu) for name, mu in held.average.items())
    free = Bench(algorithm={"ema_every": 1, "ema_min_gain": 1e-9, "top_k": 64}).step(samples).metrics
    assert (free["teacher/updates_held"], free["teacher/updates"], free["teacher/age_steps"]) == (0, 1, 0)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    """The error names the step; weights, teacher and pending gradients are as before."""
    bench, samples = Bench(), tiny_samples(3)
    healthy = bench.average["model.norm.weight"].clone()
    bench.average["model.norm.weight"].fill_(float("nan"))
    before = bench.weights
    with pytest.raises(NonFiniteLoss, match="step 5"):
        bench.step(samples, step=5)
    assert all(torch.equal(before[name], tensor) for name, tensor in bench.weights.items())
    assert all(p.grad is None for p in bench.engine.policy.parameters())
    bench.average["model.norm.weight"].copy_(healthy)
    assert math.isfinite(bench.step(samples, step=5).metrics["loss"])


def test_a_gain_that_is_not_finite_does_not_enter_its_mean() -> None:
    """The mean is kept in the checkpoint, where no such number can be written."""
    bench, samples = Bench(), tiny_samples(3)
    bench.step(samples)
    before = bench.objective.progress["gain"]
    sums = dict.fromkeys(bench.objective.totals, 1.0)
    bench.objective.after(2, bench.engine, sums | {"gain": float("nan")})
    assert bench.objective.progress["gain"] == before


def test_a_sample_that_is_there_twice_is_refused() -> None:
    """Targets are kept by rollout, so one of the two would learn from the other's."""
    first, second, third = tiny_samples(3)
    twin = msgspec.structs.replace(third, rollout_id=first.rollout_id)
    with pytest.raises(AlignmentError, match=f"{first.rollout_id} is in the batch twice"):
        Bench().step([first, second, twin])


def test_sequence_sum_divides_by_sequences() -> None:
    """The same sums over another global count."""
    samples = tiny_samples(5)
    tokens = sum(sum(sample.sampled_mask) for sample in samples)
    by_token = Bench().step(samples).metrics["loss"]
    by_sequence = Bench(algorithm={"normalisation": "sequence_sum"}).step(samples).metrics["loss"]
    assert by_sequence == pytest.approx(by_token * tokens / 5, rel=1e-5)


def test_grpo_step_equals_the_literal_formula() -> None:
    """Clip, cap and KL on log-probs of single sequences, averaged over all sampled tokens."""
    bench, samples = Bench(algorithm={"type": "grpo", "kl_weight": 0.05}), tiny_samples(5)
    reference = tiny_policy(1)
    total, tokens = torch.zeros(()), 0
    for sample in samples:
        ids = torch.tensor([sample.prompt_ids + sample.completion_ids])
        start = len(sample.prompt_ids) - 1
        ours, theirs = (p.lm(input_ids=ids).logits[0].log_softmax(-1) for p in (bench.engine.policy, reference))
        for t, token in enumerate(sample.completion_ids):
            if sample.sampled_mask[t]:
                logp, ref = ours[start + t, token], theirs[start + t, token].detach()
                ratio = (logp - sample.logprobs[t]).exp()
                free = ratio * sample.advantage
                if ratio > 2.0:
                    free = 2.0 * (logp - logp.detach()).exp() * sample.advantage
                held = ratio.clamp(0.8, 1.2) * sample.advantage
                total = total - torch.minimum(free, held) + 0.05 * ((ref - logp).exp() - (ref - logp) - 1)
                tokens += 1
    (expected,) = torch.autograd.grad(total / tokens, bench.engine.policy.output_weight)
    report = bench.step(samples)
    assert report.metrics["loss"] == pytest.approx(total.item() / tokens, rel=1e-4)
    torch.testing.assert_close(bench.engine.gradients["lm.model.embed_tokens.weight"], expected, rtol=1e-3, atol=1e-6)
    assert report.metrics["grpo/kl"] > 0.0


def test_a_batch_without_tokens_is_refused() -> None:
    """There is nothing to divide by."""
    with pytest.raises(AlignmentError, match="no sampled token"):
        Bench().step([])


def test_warm_up_is_linear_then_constant() -> None:
    """Step 1 of 4 gets a quarter; after the warm-up the rate stays."""
    assert [learning_rate(step, 8.0, 4) for step in (1, 2, 4, 9)] == [2.0, 4.0, 8.0, 8.0]
    assert learning_rate(1, 8.0, 0) == 8.0


def test_cosine_decay_ends_just_above_zero() -> None:
    """It starts at the peak after warm-up, halves in the middle, and the last step still learns."""
    rates = [learning_rate(step, 8.0, 2, decay_steps=9) for step in range(1, 10)]
    assert rates[:2] == [4.0, 8.0]
    assert rates[5] == pytest.approx(4.0)
    assert 0 < rates[-1] < 0.5
    assert rates[1:] == sorted(rates[1:], reverse=True)
