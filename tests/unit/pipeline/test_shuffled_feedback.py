"""Whose feedback stands in for whose, and what of it reaches the learner."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from fd_async.errors import AlignmentError
from fd_async.pipeline.buffer import Group
from fd_async.pipeline.samples import build_samples
from fd_async.pipeline.shuffling import Exchanged, derange
from fd_async.pipeline.state import Finished
from fd_async.rendering import FEEDBACK_INTRO, Renderer
from fd_async.types import Feedback, Rollout, Statement, Turn, Verdict, VersionSpan
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS
from tests.fakes.chat_tokenizer import chat_tokenizer
from tests.fakes.tiny_policy import tiny_config

RENDERER = Renderer(chat_tokenizer(), tools=[], tool_format="qwen3", thinking=False)


def exchanged(*rows: tuple[str, str, str]) -> list[Exchanged]:
    """Return attempts with (statement, theorem, feedback)."""
    return [Exchanged(f"r{number:03d}", *row) for number, row in enumerate(rows)]


def check(attempts: list[Exchanged], others: dict[str, str]) -> None:
    """Everyone gets another's feedback on another statement with other words, and none is given twice."""
    by_id = {attempt.rollout_id: attempt for attempt in attempts}
    assert max(Counter(others.values()).values(), default=1) == 1
    for own, other in others.items():
        mine, theirs = by_id[own], by_id[other]
        assert own != other
        assert mine.statement != theirs.statement
        assert mine.formal_statement.strip() != theirs.formal_statement.strip()
        assert mine.feedback.strip() != theirs.feedback.strip()
        assert mine.feedback.strip()
        assert theirs.feedback.strip()


def test_every_attempt_of_an_ordinary_batch_meets_another() -> None:
    """A permutation without a fixed point, which depends on the seed and not on the order."""
    attempts = exchanged(*((f"s{n}", f"theorem {n}", f"feedback {n}") for n in range(128)))
    others = derange(attempts, "1 causality 5")
    check(attempts, others)
    assert len(others) == len(set(others.values())) == 128
    assert derange(attempts[::-1], "1 causality 5") == others
    assert derange(attempts, "2 causality 5") != others


def test_random_batches_with_equals_are_deranged_as_far_as_they_can_be() -> None:
    """Statements, theorems and texts that repeat, blanks among them; half of a batch may be one of a kind."""
    chance = random.Random(3)
    for _ in range(300):
        attempts = exchanged(
            *(
                (f"s{chance.randrange(9)}", f"theorem {n} ", chance.choice([f"text {n}", " text", "", "text\n"]))
                for n in range(chance.randrange(12))
            )
        )
        check(attempts, derange(attempts, "seed"))


@pytest.mark.parametrize(
    ("texts", "num"),
    [
        (["a", "a", "b", "b"], 4),
        (["a", "a", "a", "b"], 2),
        (["a"] * 5, 0),
        (["a", ""], 0),
        (["a", "b", " "], 2),
        (["a"], 0),
        ([], 0),
    ],
)
def test_equal_texts_are_never_exchanged(texts: list[str], num: int) -> None:
    """As many as there can be get another text; constant feedback has none to give."""
    attempts = exchanged(*((f"s{n}", f"theorem {n}", text) for n, text in enumerate(texts)))
    others = derange(attempts, "seed")
    check(attempts, others)
    assert len(others) == num


def test_attempts_at_one_statement_are_never_exchanged() -> None:
    """Neither under one name nor under two names of the same theorem."""
    attempts = exchanged(
        ("s", "theorem 1", "a"), ("s", "theorem 1", "b"), ("t", "theorem 1 ", "c"), ("u", "theorem 2", "d")
    )
    others = derange(attempts, "seed")
    check(attempts, others)
    assert "r003" in others


def finished(number: int, feedback: str | None, statement: str = "") -> Group[Finished]:
    """Return a batch's group of one attempt."""
    name = statement or f"s{number}"
    theorem = Statement(name=name, formal_statement=f"theorem {name} : True :=")
    rollout = Rollout(
        id=f"train-{number:07d}-00",
        ordinal=number,
        sample=0,
        purpose="train",
        statement=theorem,
        prompt_ids=RENDERER.student_prompt(theorem),
        completion_ids=[5, 6],
        sampled_mask=[True, True],
        logprobs=[-1.0, -1.0],
        spans=[VersionSpan(0, 0, 2)],
        turns=[Turn(role="assistant", start=0, end=2, text="Wait, perhaps. Wait!")],
        verdict=Verdict(kind="missing"),
        end_reason="stopped",
    )
    said = None if feedback is None else Feedback(rollout_id=rollout.id, text=feedback, provider="constant")
    return Group(ordinal=number, admitted_version=0, unresolved=0, items=[Finished(rollout, said)])


def build(texts: list[str | None], version: int = 9, **algorithm: Any) -> Any:
    config = tiny_config(algorithm={"causality_every": 5} | algorithm)
    groups = [finished(number, text) for number, text in enumerate(texts)]
    return build_samples(groups, RENDERER, config, version)


def test_some_attempts_of_the_step_carry_the_prompt_with_anothers_feedback() -> None:
    """On every n-th step, counted as gradient steps are; rendered as the true one is."""
    texts: list[str | None] = [f"Advice number {number}." for number in range(12)]
    samples, facts = build(texts, causality_samples=4)
    measured = [sample for sample in samples if sample.shuffled_prompt_ids is not None]
    assert len(measured) == 4
    for sample in measured:
        text = RENDERER.decode(sample.shuffled_prompt_ids)
        (other,) = [advice for advice in texts if f"{FEEDBACK_INTRO}{advice}<" in text]
        assert text.replace(f"{FEEDBACK_INTRO}{other}", "") == RENDERER.decode(sample.prompt_ids)
        assert sample.shuffled_prompt_ids != sample.teacher_prompt_ids
    assert (facts.words["words/wait"], facts.words["words/total"]) == (2.0, 3.0)
    for version in (8, 10, 5):
        assert all(sample.shuffled_prompt_ids is None for sample in build(texts, version=version)[0])
    assert build(texts, causality_samples=4)[0] == samples


def test_nothing_else_about_the_samples_changes() -> None:
    """What is learned from is the same with and without."""
    texts: list[str | None] = [f"Advice number {number}." for number in range(6)]
    plain, marked = build(texts, causality_every=0)[0], build(texts)[0]
    assert [msgspec.structs.replace(sample, shuffled_prompt_ids=None) for sample in marked] == plain


def test_an_attempt_with_another_prompt_is_refused() -> None:
    """Tools that were switched while it waited would make the teacher's prompt differ by more than the feedback."""
    group = finished(0, "Advice.")
    config = tiny_config()
    with_tools = Renderer(chat_tokenizer(), tools=TOOL_SCHEMAS, tool_format="qwen3", thinking=False)
    with pytest.raises(AlignmentError, match=r"train-0000000-00 saw another prompt.*rollout\.tools"):
        build_samples([group], with_tools, config, 0)
    assert build_samples([group], RENDERER, config, 0)[0]


def test_attempts_without_a_partner_are_measured_only_where_none_has_one() -> None:
    """Constant or empty feedback still has a true and an empty context."""
    mixed = build(["a", "", "b", "", "c"])[0]
    assert [sample.shuffled_prompt_ids is not None for sample in mixed] == [True, False, True, False, True]
    assert all(sample.shuffled_prompt_ids for sample in mixed[::2])
    for texts in (["same", "same", "same"], ["", "", ""], ["alone"]):
        assert [sample.shuffled_prompt_ids for sample in build(list(texts))[0]] == [[]] * len(texts)
