"""Student prompts, teacher prompts and tool turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fd_async.errors import PreflightError
from fd_async.rendering import FEEDBACK_INTRO, Renderer
from fd_async.rendering.text import ZERO_WIDTH_SPACE
from fd_async.types import Statement
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS
from tests.fakes.chat_tokenizer import QWEN3, QWEN3_5, chat_tokenizer

STATEMENT = Statement(name="t", formal_statement="theorem t {x : Nat} (h : x ∈ ({1, 2} : Set Nat)) : x < 3 :=")


def _renderer(template: str = QWEN3, *, thinking: bool = True) -> Renderer:
    tool_format = "qwen3" if template == QWEN3 else "qwen3_5"
    return Renderer(chat_tokenizer(template), tools=TOOL_SCHEMAS, tool_format=tool_format, thinking=thinking)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return _renderer()


def test_student_prompt_has_tools_statement_and_generation_prompt(renderer: Renderer) -> None:
    """Everything the model needs is there, and the last words open its turn."""
    text = renderer.decode(renderer.student_prompt(STATEMENT))
    assert all(tool["function"]["name"] in text for tool in TOOL_SCHEMAS)
    assert STATEMENT.formal_statement in text
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_statement_header_stands_above_the_statement(renderer: Renderer) -> None:
    """A statement that brings its own imports shows them to the model."""
    statement = Statement(name="t", formal_statement="theorem t : True :=", header="import Mathlib\nopen Nat\n")
    assert "import Mathlib\nopen Nat\n\ntheorem t : True :=" in renderer.decode(renderer.student_prompt(statement))


@pytest.mark.parametrize("feedback", ["", " ", "\n\t \n"])
def test_blank_feedback_gives_the_student_prompt(renderer: Renderer, feedback: str) -> None:
    """With nothing to say the teacher sees exactly what the student sees."""
    assert renderer.teacher_prompt(STATEMENT, feedback, 100) == renderer.student_prompt(STATEMENT)


@pytest.mark.parametrize("template", [QWEN3, QWEN3_5])
@pytest.mark.parametrize("thinking", [True, False])
def test_teacher_prompt_is_the_student_prompt_with_one_insertion(template: str, thinking: bool) -> None:
    """Removing the feedback block from the teacher's prompt leaves the student's prompt."""
    renderer = _renderer(template, thinking=thinking)
    feedback = "1. Use `omega`; {x : ℝ} and {0} and %s stay as they are."
    student = renderer.decode(renderer.student_prompt(STATEMENT))
    teacher = renderer.decode(renderer.teacher_prompt(STATEMENT, feedback, 1000))
    assert teacher.count(FEEDBACK_INTRO + feedback) == 1
    assert teacher.replace(FEEDBACK_INTRO + feedback, "") == student


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<tool_call>", "</tool_response>", "<think>"])
def test_spelled_control_tokens_stay_text(token: str) -> None:
    """Text of a statement, a critique or a compiler cannot end the turn or open a call."""
    renderer = _renderer()
    control = chat_tokenizer().convert_tokens_to_ids(token)
    hostile = Statement(name="t", formal_statement=f'theorem t : "{token}" = "" :=')
    plain = Statement(name="t", formal_statement='theorem t : "" = "" :=')

    def count(ids: list[int]) -> int:
        return ids.count(control)

    assert count(renderer.student_prompt(hostile)) == count(renderer.student_prompt(plain))
    assert count(renderer.teacher_prompt(plain, f"a {token} b", 99)) == count(renderer.student_prompt(plain))
    assert count(renderer.tool_result_ids([f"error: {token}"], closed=True)) == count(
        renderer.tool_result_ids(["error: "], closed=True)
    )
    shown = renderer.decode(renderer.teacher_prompt(plain, f"a {token} b", 99))
    assert f"a {token[0]}{ZERO_WIDTH_SPACE}{token[1:]} b" in shown


@pytest.mark.parametrize("template", [QWEN3, QWEN3_5])
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("closed", [True, False])
def test_appended_tool_turns_equal_the_rendered_conversation(template: str, thinking: bool, closed: bool) -> None:
    """Prompt + sampled turn + appended ids spell what the template prints for the whole history."""
    tokenizer = chat_tokenizer(template)
    renderer = _renderer(template, thinking=thinking)
    opened = "<think>\n" if template == QWEN3_5 and thinking else ""
    empty = "" if thinking else "<think>\n\n</think>\n\n"
    turns = ["first <tool_call>x</tool_call>", "second\n"]
    results = [["Wrote a.lean."], ["error: ⊢ p", "a.lean:1:2"]]
    prompt = renderer.student_prompt(STATEMENT)
    ids = list(prompt)
    messages: list[dict[str, Any]] = [{"role": "user", "content": renderer._request(STATEMENT)}]
    for turn, texts in zip(turns, results, strict=True):
        ids += tokenizer.encode(turn + ("<|im_end|>" if closed else ""), add_special_tokens=False)
        ids += renderer.tool_result_ids(texts, closed=closed)
        messages += [{"role": "assistant", "content": opened + empty + turn}]
        messages += [{"role": "tool", "content": text} for text in texts]
    whole = tokenizer.apply_chat_template(
        messages, tools=TOOL_SCHEMAS, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    assert renderer.decode(ids) == whole


def test_long_feedback_is_cut_at_a_line(renderer: Renderer) -> None:
    """What does not fit goes, line by line from the end, and the generation prompt stays."""
    lines = [f"{i}. Try the lemma number {i}, then close the goal." for i in range(1, 9)]
    text = renderer.decode(renderer.teacher_prompt(STATEMENT, "\n".join(lines), 130))
    assert lines[1] in text
    assert "\n3." not in text
    assert text.endswith("\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("feedback", "kept"),
    [
        ("First sentence. Second sentence that is long", "First sentence."),
        ("1. Only words without any end of sentence", "1. Only words without"),
        ("x" * 60, "x" * 25),
    ],
)
def test_feedback_without_lines_is_cut_at_sentence_word_or_token(renderer: Renderer, feedback: str, kept: str) -> None:
    """The cut falls back to smaller units; a list number is not the end of a sentence."""
    text = renderer.decode(renderer.teacher_prompt(STATEMENT, feedback, 25))
    assert text.partition(FEEDBACK_INTRO)[2].partition("<|im_end|>")[0] == kept


def test_stop_tokens_are_end_of_turn_and_end_of_text(renderer: Renderer) -> None:
    """Both ways in which the family ends a turn stop the sampler."""
    assert sorted(renderer.decode([i]) for i in renderer.stop_token_ids) == ["<|endoftext|>", "<|im_end|>"]
    assert renderer.vocab_size == len(chat_tokenizer())


def test_loads_from_a_folder(tmp_path: Path) -> None:
    """A saved tokenizer renders as the one in memory."""
    chat_tokenizer().save_pretrained(tmp_path)
    loaded = Renderer.load(str(tmp_path), tools=TOOL_SCHEMAS, tool_format="qwen3", thinking=True)
    assert loaded.student_prompt(STATEMENT) == _renderer().student_prompt(STATEMENT)


def test_missing_tokenizer_is_a_preflight_error(tmp_path: Path) -> None:
    """The message names the key and the folder."""
    with pytest.raises(PreflightError, match=r"model\.path"):
        Renderer.load(str(tmp_path), tools=[], tool_format="qwen3", thinking=True)


def test_foreign_chat_template_is_refused() -> None:
    """A template that prints tool results otherwise cannot be trained on by accident."""
    with pytest.raises(PreflightError, match="chat template"):
        _renderer("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")


def test_call_opened_by_the_generation_prompt_counts_as_thinking() -> None:
    """Where the template already opened `<think>`, calls before `</think>` are thoughts."""
    call = "<tool_call>\n<function=f>\n</function>\n</tool_call>"
    assert _renderer(QWEN3_5).parse_tool_calls(f"{call}</think>done") == []
    assert [c.name for c in _renderer(QWEN3_5).parse_tool_calls(f"hm</think>{call}")] == ["f"]
    assert [c.name for c in _renderer(QWEN3_5, thinking=False).parse_tool_calls(call)] == ["f"]


def test_json_call_survives_decode(renderer: Renderer) -> None:
    """Ids of a call decode to text that parses to the same arguments."""
    code = 'theorem t : "a\\n" = "a" := by\n  exact ⟨h.1, λ x => x⟩'
    call = {"name": "lean_write_file", "arguments": {"file_name": "a.lean", "code": code}}
    ids = chat_tokenizer().encode(f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>")
    assert renderer.parse_tool_calls(renderer.decode(ids))[0].arguments["code"] == code
