"""Finished groups to training samples: teacher prompts, advantages, ages. Runs in a thread; touches no state."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from fd_async.algorithms.advantages import group_advantages, is_flat
from fd_async.analysis.words import words_row
from fd_async.config.schema import RunConfig
from fd_async.errors import AlignmentError
from fd_async.learner.split import evenly_spaced
from fd_async.pipeline.buffer import Group
from fd_async.pipeline.shuffling import Exchanged, derange
from fd_async.pipeline.state import Finished
from fd_async.rendering import Renderer
from fd_async.types import StepReport, TokenScores, TrainingSample


class BatchFacts(Struct, frozen=True, kw_only=True):
    """What the metrics say of a batch."""

    ages: list[int]
    """Staleness per sample, weight versions."""
    zero_variance_groups: int
    words: dict[str, float | None]
    """The `words/*` columns."""


def build_samples(
    groups: Sequence[Group[Finished]], renderer: Renderer, config: RunConfig, version: int
) -> tuple[list[TrainingSample], BatchFacts]:
    """Build what the learner trains on, in the groups' order.

    Args:
        groups: one batch.
        renderer: renders prompt + feedback for the teacher.
        config: of the run.
        version: the learner's weight version at consumption; its next step is one more.

    Raises:
        AlignmentError: what is rendered now, with or without blank feedback, is not what the student saw.
    """
    samples: list[TrainingSample] = []
    ages: list[int] = []
    zero_variance = 0
    for group in groups:
        advantages = [0.0] * len(group.items)
        if config.algorithm.type == "grpo":
            advantages = group_advantages(
                [item.rollout.reward for item in group.items], divide_by_std=config.algorithm.advantage_std
            )
            zero_variance += is_flat([item.rollout.reward for item in group.items])
        for item, advantage in zip(group.items, advantages, strict=True):
            age = max(0, version - item.rollout.oldest_version)
            ages.append(age)
            samples.append(_sample(item, advantage, age, renderer, config))
    every, step = config.algorithm.causality_every, version + 1
    if every and step % every == 0:
        samples = _with_shuffled(samples, [item for group in groups for item in group.items], renderer, config, step)
    words = words_row([item.rollout for group in groups for item in group.items])
    return samples, BatchFacts(ages=ages, zero_variance_groups=zero_variance, words=words)


def _sample(item: Finished, advantage: float, age: int, renderer: Renderer, config: RunConfig) -> TrainingSample:
    rollout, feedback = item.rollout, item.feedback
    teacher_prompt_ids: list[int] = []
    if feedback is not None:
        if renderer.student_prompt(rollout.statement) != rollout.prompt_ids:
            raise AlignmentError(
                f"{rollout.id} saw another prompt than this configuration renders: the teacher's differs by more than"
                " the feedback: rollout.tools, model.thinking or the chat template changed while it waited; set"
                " them back, or begin a new run with --run NAME"
            )
        teacher_prompt_ids = renderer.teacher_prompt(
            rollout.statement, feedback.text, config.feedback.max_feedback_tokens
        )
        if not feedback.text.strip() and teacher_prompt_ids != rollout.prompt_ids:
            raise AlignmentError(f"{rollout.id}: teacher and student prompts differ without feedback")
    return TrainingSample(
        rollout_id=rollout.id,
        prompt_ids=rollout.prompt_ids,
        completion_ids=rollout.completion_ids,
        sampled_mask=rollout.sampled_mask,
        logprobs=rollout.logprobs,
        teacher_prompt_ids=teacher_prompt_ids,
        advantage=advantage,
        age=age,
    )


def _with_shuffled(
    samples: Sequence[TrainingSample], items: Sequence[Finished], renderer: Renderer, config: RunConfig, step: int
) -> list[TrainingSample]:
    """Add to the attempts on which feedback causality is measured the prompt with another's feedback.

    They are taken from those that can exchange theirs; where none can (constant feedback), from all, and it is empty.
    """
    texts = {item.rollout.id: item.feedback.text if item.feedback else "" for item in items}
    statements = {item.rollout.id: item.rollout.statement for item in items}
    attempts = [Exchanged(i, statements[i].name, statements[i].formal_statement, texts[i]) for i in texts]
    others = derange(attempts, f"{config.run.seed} causality {step}")
    able = [sample for sample in samples if sample.rollout_id in others] or samples
    measured = set(evenly_spaced(able, config.algorithm.causality_samples))

    def prompt(rollout_id: str) -> list[int]:
        if rollout_id not in others:
            return []
        text = texts[others[rollout_id]]
        return renderer.teacher_prompt(statements[rollout_id], text, config.feedback.max_feedback_tokens)

    return [
        msgspec.structs.replace(sample, shuffled_prompt_ids=prompt(sample.rollout_id))
        if sample.rollout_id in measured
        else sample
        for sample in samples
    ]


def decode_scores(items: Sequence[Finished], report: StepReport, renderer: Renderer) -> dict[str, TokenScores]:
    """Return rollout id -> what the step said of its tokens, as text, for people."""
    deltas, choices = report.token_deltas, report.teacher_choices
    return {
        item.rollout.id: TokenScores(
            [renderer.decode([i]) for i in item.rollout.completion_ids],
            deltas[item.rollout.id],
            {
                place: [(renderer.decode([i]), share) for i, share in found]
                for place, found in choices.get(item.rollout.id, {}).items()
            },
        )
        for item in items
        if item.rollout.id in deltas
    }
