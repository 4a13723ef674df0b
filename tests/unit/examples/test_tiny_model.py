"""The shipped tiny model and its tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from examples.tiny.build import MODEL, Episodes, corpus
from examples.tiny.episodes import UNLEARNED, draw_episode
from examples.tiny.hints import compiler_feedback, worked_example
from examples.tiny.measure import attempt_all, load_model, summary
from examples.tiny.statements import SEED, make_world
from examples.tiny.tokenizer import ASSISTANT, CHECK, RESULT_END, WROTE, build_tokenizer
from fd_async.feedback.local import ground_truth, lean_output
from fd_async.rendering import Renderer
from fd_async.types import Rollout, Statement, Verdict
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """At this size two threads mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def renderer(tokenizer: Any) -> Renderer:
    return Renderer(tokenizer, tools=TOOL_SCHEMAS, tool_format="qwen3", thinking=False)


def test_any_text_survives_the_tokenizer(tokenizer: Any) -> None:
    """Byte-level: nothing is unknown, not even Mathlib's symbols."""

    @settings(max_examples=100, deadline=None)
    @given(text=st.text(st.characters(exclude_categories=["Cs"])))
    def check(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text

    check()


def test_prompts_and_turns_are_short(renderer: Renderer) -> None:
    """Fixed texts are one token each, so that two cores can sample enough attempts."""
    rows = make_world()["test"]
    lengths = [len(renderer.student_prompt(Statement(name=r.name, formal_statement=r.formal_statement))) for r in rows]
    assert max(lengths) < 70
    assert sum(lengths) / len(lengths) < 40
    assert len(renderer.tool_result_ids([WROTE], closed=True)) == 3


def test_template_prints_structured_calls_as_the_model_writes_them(tokenizer: Any) -> None:
    """History given as tool-call objects spells what the model sampled."""
    call = {"function": {"name": "lean_check_file", "arguments": {"file_name": "proof.lean"}}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.endswith(f"<|im_start|>assistant\n{CHECK}<|im_end|>\n")


def test_template_prints_a_system_message_with_the_tools(tokenizer: Any) -> None:
    """As in Qwen3 it stands before the tools, and alone where there are none."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]
    with_tools = tokenizer.apply_chat_template(messages, tools=TOOL_SCHEMAS, tokenize=False)
    assert with_tools.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\n")
    assert with_tools.count("Be brief.") == 1
    assert tokenizer.apply_chat_template(messages, tokenize=False).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nx<|im_end|>\n"
    )


def test_pretraining_sees_what_the_renderer_and_the_providers_print(tokenizer: Any, renderer: Renderer) -> None:
    """The dialogues begin with the very ids of student and teacher prompts."""
    row = make_world()["train"][0]
    statement = Statement(name=row.name, formal_statement=row.formal_statement, proof=row.proof)
    rollout = Rollout(
        id="r",
        ordinal=0,
        sample=0,
        purpose="train",
        statement=statement,
        prompt_ids=[],
        completion_ids=[],
        sampled_mask=[],
        logprobs=[],
        spans=[],
        turns=[],
        verdict=Verdict(kind="failed", output="1:2: error: no"),
        end_reason="turn_budget",
    )
    assert ground_truth(rollout) == worked_example(row.formal_statement, row.proof.removeprefix("by "))
    assert lean_output(rollout) == compiler_feedback("1:2: error: no")
    rng = random.Random(3)
    opening = Episodes(tokenizer, 0)._opening
    for _ in range(50):
        prompt, _ = draw_episode(rng)
        shown, _, hint = prompt.removesuffix(ASSISTANT).partition("\n```")
        hint = hint.partition("problem:\n")[2]
        drawn = Statement(name="x", formal_statement=shown)
        rendered = renderer.teacher_prompt(drawn, hint, 512)
        assert rendered == tokenizer.encode(opening + prompt, add_special_tokens=False)


def test_only_learned_assistant_turns_are_targets(tokenizer: Any) -> None:
    """Labels cover calls and the end of the turn, never prompts, tool output or a try against the hint."""
    episodes = Episodes(tokenizer, 5)
    for ids, labels in episodes.rows(40):
        learned = tokenizer.decode([token for token in labels if token >= 0])
        assert "<tool_response>" not in learned
        assert "<|im_start|>" not in learned
        assert learned.count("<|im_end|>") == learned.count("</tool_call>") >= 1
        assert UNLEARNED not in tokenizer.decode(ids)
    text = RESULT_END + CHECK + "<|im_end|>" + RESULT_END + CHECK + "<|im_end|>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert sum(label >= 0 for label in episodes._labels(ids, False)) == 4
    assert sum(label >= 0 for label in episodes._labels(ids, True)) == 2


def test_shipped_model_is_small() -> None:
    """Under 4 MB on disk, at most 2 M parameters, tied embeddings, loaded as float32."""
    assert sum(file.stat().st_size for file in Path(MODEL).iterdir()) < 4_000_000
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert config["tie_word_embeddings"] is True
    assert config["dtype"] == "float32"
    model, _ = load_model(MODEL)
    assert sum(p.numel() for p in model.parameters()) < 2_000_000
    assert model.dtype == torch.float32


def test_model_follows_a_worked_example_and_rarely_solves_without() -> None:
    """On a slice of the test split; `python -m examples.tiny.measure` gives the figures for all of it."""
    torch.manual_seed(0)
    model, renderer = load_model(MODEL)
    rows = make_world()["test"][:24]
    alone = summary(attempt_all(model, renderer, rows))
    shown = summary(attempt_all(model, renderer, rows, hint=lambda r: worked_example(r.formal_statement, r.proof[3:])))
    assert alone["solved"] < 0.5
    assert shown["solved"] > 0.8
    assert alone["malformed"] < 0.03


def test_shipped_tokenizer_is_what_the_build_trains(tokenizer: Any) -> None:
    """The vocabulary can be made again, id for id."""
    assert build_tokenizer(corpus(SEED)).get_vocab() == tokenizer.get_vocab()
