"""Prompts, tool turns and calls against a template with the habits of Qwen3.5's own."""

from __future__ import annotations

from typing import Any

import pytest

from fd_async.rendering import FEEDBACK_INTRO, Renderer
from fd_async.types import Statement
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS
from tests.fakes.chat_tokenizer import QWEN3_5_CALLS, chat_tokenizer

STATEMENT = Statement(name="t", formal_statement="theorem t : 1 + 1 = 2 :=")
CODE = "theorem t : 1 + 1 = 2 := by\n  -- <|im_end|> and <b> are text\n  simp\n\n"
CALLS = [
    {"name": "lean_write_file", "arguments": {"file_name": "a.lean", "code": CODE}},
    {"name": "lean_check_file", "arguments": {"file_name": "a.lean"}},
]
RESULTS = ["Wrote a.lean.\n", "  a.lean:3:2: error: simp made no progress\n⊢ False\n"]


def _renderer(thinking: bool) -> Renderer:
    tokenizer = chat_tokenizer(QWEN3_5_CALLS)
    return Renderer(tokenizer, tools=TOOL_SCHEMAS, tool_format="qwen3_5", thinking=thinking)


def _history(renderer: Renderer) -> list[dict[str, Any]]:
    calls = [{"type": "function", "function": call} for call in CALLS]
    return [
        {"role": "user", "content": renderer._request(STATEMENT)},
        {"role": "assistant", "content": "<think>\nTry simp.\n</think>\n\nI compile it.", "tool_calls": calls},
        *({"role": "tool", "content": text} for text in RESULTS),
    ]


def _sampled(thinking: bool) -> str:
    """Return the turn as a model samples it: what the template prints behind the generation prompt."""
    renderer = _renderer(thinking)
    history = _history(renderer)[:2]
    if not thinking:
        history[1]["content"] = "I compile it."
    text = renderer._tokenizer.apply_chat_template(history, tools=TOOL_SCHEMAS, tokenize=False)
    prompt = renderer.decode(renderer.student_prompt(STATEMENT))
    assert text.startswith(prompt)
    return text.removeprefix(prompt).removesuffix("\n")


@pytest.mark.parametrize("thinking", [True, False])
def test_calls_that_the_template_prints_are_read_back(thinking: bool) -> None:
    """Names, order and arguments survive, code byte for byte."""
    calls = _renderer(thinking).parse_tool_calls(_sampled(thinking))
    assert [{"name": call.name, "arguments": call.arguments} for call in calls] == CALLS
    assert [call.error for call in calls] == [None, None]


@pytest.mark.parametrize("thinking", [True, False])
def test_ids_of_a_tool_turn_are_those_of_the_whole_conversation(thinking: bool) -> None:
    """Prompt + sampled turn + appended results spell what the template prints for the history, also when trimmed."""
    renderer = _renderer(thinking)
    turn = renderer._tokenizer.encode(_sampled(thinking), add_special_tokens=False)
    ids = renderer.student_prompt(STATEMENT) + turn + renderer.tool_result_ids(RESULTS, closed=True)
    history = _history(renderer)
    if not thinking:
        history[1]["content"] = "I compile it."
    whole = renderer._tokenizer.apply_chat_template(
        history, tools=TOOL_SCHEMAS, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    assert renderer.decode(ids) == whole


@pytest.mark.parametrize("thinking", [True, False])
def test_the_teacher_differs_by_the_feedback_alone(thinking: bool) -> None:
    """Although the template trims the end of the message, where the feedback stands."""
    renderer = _renderer(thinking)
    student = renderer.decode(renderer.student_prompt(STATEMENT))
    teacher = renderer.decode(renderer.teacher_prompt(STATEMENT, " Use `rfl`.\n\n", 100))
    assert teacher.replace(FEEDBACK_INTRO + "Use `rfl`.", "") == student != teacher
    assert renderer.teacher_prompt(STATEMENT, "", 100) == renderer.student_prompt(STATEMENT)


def test_a_call_inside_unfinished_thinking_is_none() -> None:
    """The prompt opens the block, so that a turn without `</think>` has said nothing."""
    turn = _sampled(thinking=True)
    assert _renderer(True).parse_tool_calls(turn.replace("</think>", "")) == []


def test_a_frozen_copy_is_asked_without_tools_and_answers_behind_its_thinking() -> None:
    """The system message is printed, and only the answer is kept."""
    renderer = _renderer(True)
    prompt = renderer.decode(renderer.chat_prompt("You judge proofs.", "A proof."))
    assert prompt.startswith("<|im_start|>system\nYou judge proofs.<|im_end|>\n")
    answer = renderer._tokenizer.encode("Hm.\n</think>\n\nUse `rfl`.<|im_end|>", add_special_tokens=False)
    assert renderer.answer_text(answer) == "Use `rfl`."
