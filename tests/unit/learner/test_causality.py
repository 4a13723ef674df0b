"""Feedback causality: what the teacher makes of true, shuffled and no feedback, measured without touching the step."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn

from fd_async.algorithms.lm_head import Head
from fd_async.learner.batching import Rows
from fd_async.learner.feedback_distillation import FeedbackDistillation
from fd_async.learner.model import Objective
from fd_async.learner.split import split_by_tokens
from fd_async.learner.trainer import Trainer
from fd_async.types import StepReport, TrainingSample
from tests.fakes.plain_engine import PlainEngine, shadow_of
from tests.fakes.tiny_policy import VOCAB, tiny_config, tiny_policy, tiny_samples

KEYS = ["kl_true", "kl_shuffled", "kl_empty", "gain_true", "gain_shuffled"]


class World:
    """A student, a teacher and what trains one after the other."""

    def __init__(self, student: Any = None, teacher: Any = None, **tables: dict[str, Any]) -> None:
        tables["algorithm"] = {"causality_every": 2} | tables.get("algorithm", {})
        config = tiny_config(**tables)
        self.student = student or tiny_policy(0).train()
        self.teacher = teacher or tiny_policy(1).eval()
        self.engine = CountingEngine(self.student)
        objective = FeedbackDistillation(config, shadow_of(self.teacher))
        self.trainer = Trainer(config, self.engine, objective, world_size=1)

    def step(self, samples: list[TrainingSample], step: int = 2) -> StepReport:
        return self.trainer.step(samples, step=step, gain_ids=[sample.rollout_id for sample in samples[:2]])

    @property
    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.student.parameters()]


class CountingEngine(PlainEngine):
    """Counts forward passes."""

    num_passes = 0

    def __call__(self, rows: Rows, objective: Objective) -> Any:
        self.num_passes += 1
        return super().__call__(rows, objective)


def measured(count: int, every: int = 2) -> list[TrainingSample]:
    """Return samples of which every n-th is measured, with a hint of its own as another's feedback."""
    rng = random.Random(7)
    return [
        msgspec.structs.replace(
            sample, shuffled_prompt_ids=[*sample.prompt_ids, *(rng.randrange(VOCAB) for _ in range(1 + index))]
        )
        if index % every == 0
        else sample
        for index, sample in enumerate(tiny_samples(count))
    ]


def causality(report: StepReport) -> dict[str, float]:
    return {key.removeprefix("causality/"): value for key, value in report.metrics.items() if "causality/" in key}


def literal(world: World, samples: list[TrainingSample], top_k: int) -> dict[str, float]:
    """Take every number from the full logits of single sequences."""
    sums, num = dict.fromkeys(KEYS, 0.0), 0

    def logp_TV(policy: Any, prompt: list[int], sample: TrainingSample) -> Tensor:
        with torch.no_grad():
            logits_LV = policy.lm(input_ids=torch.tensor([prompt + sample.completion_ids])).logits[0].double()
        return logits_LV[len(prompt) - 1 : -1].log_softmax(-1)[torch.tensor(sample.sampled_mask)]

    def distance(p_TV: Tensor, q_TV: Tensor) -> float:
        top = p_TV.topk(top_k)
        return float((top.values.exp() * (top.values - q_TV.gather(1, top.indices))).sum())

    for sample in samples:
        if sample.shuffled_prompt_ids is None:
            continue
        student = logp_TV(world.student, sample.prompt_ids, sample)
        true, shuffled, empty = (
            logp_TV(world.teacher, prompt, sample)
            for prompt in (sample.teacher_prompt_ids, sample.shuffled_prompt_ids, sample.prompt_ids)
        )
        num += len(student)
        for key, value in zip(
            KEYS,
            (
                distance(true, student),
                distance(shuffled, student),
                distance(empty, student),
                distance(true, empty),
                distance(shuffled, empty),
            ),
            strict=True,
        ):
            sums[key] += value
    return {key: value / num for key, value in sums.items()}


@pytest.mark.parametrize(
    "tables", [{}, {"learner": {"packing": False}}, {"algorithm": {"loss": "tail_bucket"}}], ids=str
)
def test_the_numbers_are_those_of_single_sequences(tables: dict[str, Any]) -> None:
    """Over the top K, whatever the loss and the layout, of the marked attempts alone."""
    world, samples = World(**tables), measured(6)
    expected = literal(world, samples, top_k=25)
    found = causality(world.step(samples))
    assert list(found) == KEYS
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert expected["kl_shuffled"] > 0.1


@pytest.mark.parametrize("tokens", [1, 60, 4000])
@pytest.mark.parametrize("packing", [True, False])
def test_the_step_is_the_same_to_the_bit(tokens: int, packing: bool) -> None:
    """Weights, gradients, teacher and every other metric, with and without the measurement."""
    settings = {"anchor_weight": 0.3, "anchor_every": 2, "ema_every": 2, "importance": "prefix"}
    learner = {"micro_batch_tokens": tokens, "packing": packing}
    plain, watching = (World(algorithm=settings | {"causality_every": every}, learner=learner) for every in (0, 2))
    reports = [world.step(measured(7)) for world in (plain, watching)]
    assert all(torch.equal(a, b) for a, b in zip(plain.weights, watching.weights, strict=True))
    gradients = plain.engine.gradients
    assert all(torch.equal(gradient, watching.engine.gradients[name]) for name, gradient in gradients.items())
    ours, theirs = (
        {key: value for key, value in report.metrics.items() if not key.startswith(("time/", "causality/"))}
        for report in reports
    )
    assert ours == theirs
    assert (len(causality(reports[0])), len(causality(reports[1]))) == (0, 5)


def test_micro_batches_do_not_change_the_numbers() -> None:
    """One sequence at a time, some, and all at once."""
    results = [causality(World(learner={"micro_batch_tokens": n}).step(measured(8))) for n in (1, 60, 4000)]
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-5, abs=1e-6)


def test_shares_of_several_ranks_add_up() -> None:
    """Sums and counts of the ranks' shares make the numbers of the whole; a rank may have none that is measured."""
    samples = measured(8, every=3)
    whole, parts = World(), []
    expected = causality(whole.step(samples))
    shares = [*split_by_tokens(samples, 2), [s for s in samples if s.shuffled_prompt_ids is None]]
    for share in shares[:2]:
        found = causality(World().step(share))
        tokens = sum(sum(s.sampled_mask) for s in share if s.shuffled_prompt_ids is not None)
        parts.append((found, tokens))
    total = sum(tokens for _, tokens in parts)
    for key, value in expected.items():
        mean = sum(found.get(key, 0.0) * tokens for found, tokens in parts) / total
        assert mean == pytest.approx(value, rel=1e-5)
    assert causality(World().step(shares[2])) == {}


def test_it_costs_nothing_on_other_steps() -> None:
    """As many forward passes as without; on its step two more for each micro-batch of the measured."""
    samples = measured(4)
    passes = {}
    for every, step in ((0, 2), (2, 3), (2, 2)):
        world = World(algorithm={"causality_every": every}, learner={"micro_batch_tokens": 1})
        report = world.step(samples, step=step)
        passes[every, step] = world.engine.num_passes
        assert bool(causality(report)) == ((every, step) == (2, 2))
    assert passes[2, 3] == passes[0, 2]
    assert passes[2, 2] == passes[0, 2] + 2 * 2


def test_without_feedback_and_with_equal_weights_everything_is_zero() -> None:
    """Law 9 in numbers."""
    world = World(teacher=tiny_policy(0).eval())
    silent = [
        msgspec.structs.replace(s, teacher_prompt_ids=s.prompt_ids, shuffled_prompt_ids=s.prompt_ids)
        for s in tiny_samples(5)
    ]
    assert causality(world.step(silent)) == pytest.approx(dict.fromkeys(KEYS, 0.0), abs=1e-6)


def test_empty_feedback_says_how_far_the_weights_are_apart() -> None:
    """With equal weights the bare teacher is the student, though feedback moves it."""
    found = causality(World(teacher=tiny_policy(0).eval(), algorithm={"top_k": VOCAB}).step(measured(5)))
    assert found["kl_empty"] == pytest.approx(0.0, abs=1e-6)
    assert found["kl_true"] == pytest.approx(found["gain_true"], rel=1e-4)
    assert found["kl_shuffled"] == pytest.approx(found["gain_shuffled"], rel=1e-4)
    assert min(found["kl_true"], found["kl_shuffled"]) > 0.01


def test_without_partners_the_shuffled_numbers_are_missing() -> None:
    """Constant feedback has nothing to be exchanged for; the other numbers are there."""
    samples = [msgspec.structs.replace(s, shuffled_prompt_ids=[]) for s in tiny_samples(4)]
    assert list(causality(World().step(samples))) == ["kl_true", "kl_empty", "gain_true"]


class Reader(nn.Module):
    """A model that repeats the feedback in its prompt as far as it concerns the statement.

    Prompts are [statement, END], with feedback [statement, feedback, END]. Feedback number f concerns statement f - 32.
    """

    END = 63
    device = torch.device("cpu")
    why_padded = "it reads whole rows"

    def __init__(self, heeds_others: float) -> None:
        super().__init__()
        self.lm = nn.Linear(VOCAB, VOCAB, bias=False)
        nn.init.eye_(self.lm.weight)
        self._heeds_others = heeds_others

    def forward(self, rows: Rows, objective: Objective) -> Any:
        ids_BL = rows.input_ids_BL
        hidden_BLV = torch.zeros(*ids_BL.shape, VOCAB)
        for row, ids in enumerate(ids_BL.tolist()):
            statement, feedback = ids[0], ids[1] if len(ids) > 1 else self.END
            if feedback != self.END:
                hidden_BLV[row, :, feedback] = 3.0 if feedback == statement + 32 else self._heeds_others
        hidden_TH = hidden_BLV.flatten(0, 1).index_select(0, rows.rows_T) @ self.lm.weight
        return objective(hidden_TH, Head(self.lm.weight, 1.0, 0.0, 0))


def conversations() -> list[TrainingSample]:
    """Six attempts at six statements, each with feedback on it, and with that of the next one."""
    return [
        TrainingSample(
            rollout_id=f"r{n}",
            prompt_ids=[n, Reader.END],
            completion_ids=[10 + n, 11, 12],
            sampled_mask=[True, False, True],
            logprobs=[-4.0, 0.0, -4.0],
            teacher_prompt_ids=[n, 32 + n, Reader.END],
            shuffled_prompt_ids=[n, 32 + (n + 1) % 6, Reader.END],
        )
        for n in range(6)
    ]


@pytest.mark.parametrize("heeds_others", [0.0, 1.0, 3.0])
def test_a_teacher_that_listens_is_told_from_one_that_is_merely_moved(heeds_others: float) -> None:
    """One that heeds what concerns its statement shows true > shuffled; to one that heeds all they are the same."""
    world = World(
        Reader(heeds_others), Reader(heeds_others), algorithm={"top_k": VOCAB}, learner={"micro_batch_tokens": 12}
    )
    found = causality(world.step(conversations()))
    assert found["kl_empty"] == pytest.approx(0.0, abs=1e-6)
    assert found["kl_true"] > 0.3
    if heeds_others == 3.0:
        assert found["kl_shuffled"] == pytest.approx(found["kl_true"], rel=1e-5)
    else:
        assert found["kl_shuffled"] < 0.3 * found["kl_true"]
        assert found["gain_shuffled"] < 0.3 * found["gain_true"]
    assert (found["kl_shuffled"] > 1e-3) == (heeds_others > 0)
