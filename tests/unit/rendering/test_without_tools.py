"""Prompts without tools, and the Lean file that an answer holds."""

from __future__ import annotations

from typing import Any

import pytest

from fd_async.errors import PreflightError
from fd_async.rendering import FEEDBACK_INTRO, INSTRUCTION_WITHOUT_TOOLS, Renderer, lean_blocks
from fd_async.types import Statement
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS
from tests.fakes.chat_tokenizer import QWEN3, QWEN3_5, QWEN3_5_CALLS, chat_tokenizer

STATEMENT = Statement(name="t", formal_statement="theorem t {x : Nat} : x = x :=", header="import Mathlib")
NESTED = "/-! ```lean\n#eval 1\n```\n-/\nimport Mathlib\n"
STRINGS = 'def s := "```lean"\ndef r := "a ``` b"\n'
FILE = "import Mathlib\n\ntheorem t {x : Nat} : x = x := by\n  rfl\n"
FORMATS = [(QWEN3, "qwen3"), (QWEN3_5, "qwen3_5"), (QWEN3_5_CALLS, "qwen3_5")]


def _renderer(template: str = QWEN3, tool_format: Any = "qwen3", *, thinking: bool = True) -> Renderer:
    return Renderer(chat_tokenizer(template), tools=[], tool_format=tool_format, thinking=thinking)


@pytest.mark.parametrize(("template", "tool_format"), FORMATS)
@pytest.mark.parametrize("thinking", [True, False])
def test_the_prompt_asks_for_one_file_and_names_no_tool(template: str, tool_format: str, thinking: bool) -> None:
    """Neither schemas nor the word: the whole prompt is the instruction, the statement and the opened turn."""
    renderer = _renderer(template, tool_format, thinking=thinking)
    text = renderer.decode(renderer.student_prompt(STATEMENT))
    question = f"<|im_start|>user\n{INSTRUCTION_WITHOUT_TOOLS}import Mathlib\n\n{STATEMENT.formal_statement}\n```"
    assert text.startswith(f"{question}<|im_end|>\n<|im_start|>assistant\n")
    assert not any(word in text for word in ("tool", "lean_write_file", "lean_check_file", "rg_in_mathlib"))


@pytest.mark.parametrize(("template", "tool_format"), FORMATS)
@pytest.mark.parametrize("thinking", [True, False])
def test_the_teacher_sees_the_same_prompt_and_the_feedback(template: str, tool_format: str, thinking: bool) -> None:
    """Nothing but the feedback differs, and without it not one id does."""
    renderer = _renderer(template, tool_format, thinking=thinking)
    feedback = "1. Use rfl; do not write ```lean twice."
    student = renderer.student_prompt(STATEMENT)
    assert renderer.teacher_prompt(STATEMENT, " \n", 100) == student
    teacher = renderer.decode(renderer.teacher_prompt(STATEMENT, feedback, 1000))
    assert teacher.count(FEEDBACK_INTRO + feedback) == 1
    assert teacher.replace(FEEDBACK_INTRO + feedback, "") == renderer.decode(student)


@pytest.mark.parametrize("thinking", [True, False])
def test_prompts_with_tools_are_as_they_were(thinking: bool) -> None:
    """The other instruction stands in no prompt that has tools."""
    renderer = Renderer(chat_tokenizer(QWEN3), tools=TOOL_SCHEMAS, tool_format="qwen3", thinking=thinking)
    text = renderer.decode(renderer.student_prompt(STATEMENT))
    assert "lean_write_file" in text
    assert INSTRUCTION_WITHOUT_TOOLS not in text


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('tools are required') }}", "does not render without tools: tools are required"),
        ("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}", "in an unknown way"),
        (QWEN3.replace("{%- if tools %}", "{%- if true %}"), "does not render without tools: .*not iterable"),
        ("{{- 'Call <tool_call>.' }}" + QWEN3, "in an unknown way"),
    ],
)
def test_a_template_that_needs_tools_is_refused_by_name(template: str, said: str) -> None:
    """Before the engine starts, with the key that asked for it."""
    with pytest.raises(PreflightError, match=rf"rollout\.tools = false.*{said}"):
        _renderer(template)


FENCED = f"```lean\n{FILE}```"
ANSWERS = {
    "one": (f"Here it is.\n\n{FENCED}\nDone.", FILE),
    "at once": (FENCED, FILE),
    "lean4": (FENCED.replace("```lean", "```lean4"), FILE),
    "capitals": (FENCED.replace("```lean", "``` Lean4 title=t.lean"), FILE),
    "two": (f"```lean\ntheorem t : False\n```\nNo, rather\n{FENCED}", FILE),
    "two, the last unclosed": (f"{FENCED}\nor\n```lean\ntheorem t", FILE),
    "unclosed": (f"```lean\n{FILE}", None),
    "unclosed, then whole": (f"```lean\ntheorem t : wrong\nWait.\n{FENCED}", FILE),
    "closed by a shorter fence": (f"````lean\n{FILE}```", None),
    "none": (FILE, None),
    "another language": (FENCED.replace("```lean", "```python"), None),
    "no language": (FENCED.replace("```lean", "```"), None),
    "lean3": (FENCED.replace("```lean", "```lean3"), None),
    "another language last": (f"{FENCED}\n```text\nno goals\n```", FILE),
    "blank block last": (f"{FENCED}\n```lean\n\n```", FILE),
    "nested in a longer fence": (f"````lean\n{NESTED}````", NESTED),
    "nested in an equal fence": (f"```lean\n{NESTED}```", "/-! ```lean\n#eval 1\n"),
    "inside another block": (f"````markdown\n{FENCED}\n````", None),
    "CRLF": (FENCED.replace("\n", "\r\n"), FILE.replace("\n", "\r\n")),
    "inside a string": (f"```lean\n{STRINGS}```", STRINGS),
    "closing fence with blanks": (f"   ```lean\n{FILE}  ```  \n", FILE),
    "closing fence with text": (f"```lean\n{FILE}``` done", None),
    "on one line": ("```lean theorem t```", None),
    "tilde": (f"~~~lean\n{FILE}~~~", None),
    "end of turn behind it": (f"{FENCED}<|im_end|>", FILE),
    "end of text behind it": (f"{FENCED}<|endoftext|>", FILE),
    "thought of, not said": (f"<think>\n{FENCED}\n</think>\n\nI give up.", None),
    "thought and said": (f"<think>\n```lean\nx\n```\n</think>\n\n{FENCED}", FILE),
    "thinking without end": (f"<think>\n{FENCED}", None),
    "said before more thinking": (f"{FENCED}\n<think>hm", FILE),
    "a megabyte": (f"```lean\n{FILE * 20000}```", FILE * 20000),
    "a megabyte of openings": ("```lean\n" * 130000, None),
    "empty": ("", None),
}  # fmt: skip


@pytest.mark.parametrize("case", ANSWERS)
def test_the_last_closed_lean_block_is_the_file(case: str) -> None:
    """Byte for byte, whatever stands around it; what is not closed is no file."""
    answer, file = ANSWERS[case]
    assert _renderer().parse_answer(answer) == file


def test_what_the_template_opened_counts_as_thinking() -> None:
    """Where the prompt ends with `<think>`, a file before `</think>` is a thought."""
    renderer = _renderer(QWEN3_5, "qwen3_5")
    assert renderer.parse_answer(FENCED) is None
    assert renderer.parse_answer(f"hm\n</think>\n\n{FENCED}<|im_end|>") == FILE
    assert _renderer(QWEN3_5, "qwen3_5", thinking=False).parse_answer(FENCED) == FILE


def test_blocks_tell_their_places() -> None:
    """Cutting them out leaves the prose."""
    text = f"first\n{FENCED}\nthen\n```\nnot this\n```\n"
    ((start, end, code),) = lean_blocks(text)
    assert (text[:start] + text[end:], code) == ("first\nthen\n```\nnot this\n```\n", FILE)
