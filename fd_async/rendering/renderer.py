"""One tokenizer with its chat template, as students, teachers and tool turns need it."""

from __future__ import annotations

import os
from typing import Any

from jinja2 import TemplateError

from fd_async.errors import PreflightError
from fd_async.rendering.lean_blocks import lean_blocks
from fd_async.rendering.text import Neutraliser, control_tokens, cut_text
from fd_async.rendering.tool_calls import ToolFormat, parse_tool_calls, strip_thinking
from fd_async.types import Statement, ToolCall

END_OF_TURN = "<|im_end|>"
INSTRUCTION = (
    "Prove this theorem in Lean 4. Write the whole file with lean_write_file without changing the statement, "
    "compile it with lean_check_file, and repair it until it compiles without errors.\n\n```lean\n"
)
INSTRUCTION_WITHOUT_TOOLS = (
    "Prove this theorem in Lean 4. Answer with one complete Lean file in a ```lean block: the statement unchanged, "
    "with its proof. The last ```lean block of the answer is compiled as it stands.\n\n```lean\n"
)
INSTRUCTION_END = "\n```"
FEEDBACK_INTRO = "\n\nFeedback on an earlier attempt at this problem:\n"
_END_OF_TEXT = "<|endoftext|>"
_TURN_MARK = "\u241eTURN\u241e"


class Renderer:
    """Render prompts and tool turns to ids; read tool calls and answers back from text.

    Without `tools` the prompt asks for one answer that holds the whole file, and names no tool.
    """

    stop_token_ids: list[int]
    """A sampled one of these ends the assistant turn."""
    vocab_size: int
    """Ids that the tokenizer can produce; a model may pad its embedding beyond."""

    def __init__(self, tokenizer: Any, *, tools: list[dict[str, Any]], tool_format: ToolFormat, thinking: bool) -> None:
        self._tokenizer = tokenizer
        self._tools = tools
        self._instruction = INSTRUCTION if tools else INSTRUCTION_WITHOUT_TOOLS
        self._tool_format: ToolFormat = tool_format
        self._thinking = thinking
        self._neutralise = Neutraliser(
            control_tokens((str(token) for token in tokenizer.added_tokens_encoder), tokenizer.all_special_tokens)
        )
        self.vocab_size = len(tokenizer)
        self.stop_token_ids = self._find_stop_tokens()
        opening = self._check_template() if tools else self._check_question()
        self._opens_thinking = opening.rstrip().endswith("<think>")

    @classmethod
    def load(cls, path: str, *, tools: list[dict[str, Any]], tool_format: ToolFormat, thinking: bool) -> Renderer:
        """Load the tokenizer of a model folder or a Hugging Face id.

        Raises:
            PreflightError: No usable tokenizer, or its chat template is not of the Qwen kind.
        """
        # One text at a time: threads of the tokenizer's own only make its callers wait for each other.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise PreflightError(f"model.path = {path!r} has no tokenizer that loads: {error}") from error
        return cls(tokenizer, tools=tools, tool_format=tool_format, thinking=thinking)

    def student_prompt(self, statement: Statement) -> list[int]:
        """Render the statement up to and including the assistant's generation prompt."""
        return self._encode(self._render([{"role": "user", "content": self._request(statement)}]))

    def teacher_prompt(self, statement: Statement, feedback: str, max_feedback_tokens: int) -> list[int]:
        """Render the student's prompt with the feedback appended to the user message.

        Blank feedback gives the student's prompt. Feedback beyond `max_feedback_tokens` is cut at the end of a
        line or sentence, so the generation prompt always survives.
        """
        block = cut_text(self._neutralise(feedback.strip()), max_feedback_tokens, self._token_ends)
        content = self._request(statement) + (FEEDBACK_INTRO + block if block else "")
        return self._encode(self._render([{"role": "user", "content": content}]))

    def chat_prompt(self, system: str, user: str) -> list[int]:
        """Render a plain conversation without tools, for a frozen copy that gives feedback."""
        messages = [
            {"role": "system", "content": self._neutralise(system)},
            {"role": "user", "content": self._neutralise(user)},
        ]
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=self._thinking
        )
        return self._encode(text)

    def answer_text(self, ids: list[int]) -> str:
        """Return what an answer says, without thinking and control tokens."""
        text = strip_thinking(self.decode(ids), opens_thinking=self._opens_thinking)
        return text.replace(END_OF_TURN, "").replace(_END_OF_TEXT, "").strip()

    def tool_result_ids(self, results: list[str], *, closed: bool) -> list[int]:
        """Render what follows an assistant turn that called tools: results, then the next generation prompt.

        Args:
            results: One text per call, in order.
            closed: Whether the model sampled the end of its turn itself; if not, the ids begin with it.
        """
        history: list[dict[str, Any]] = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _TURN_MARK}]
        history += [{"role": "tool", "content": self._neutralise(text)} for text in results]
        _, _, rest = self._render(history).partition(_TURN_MARK)
        return self._encode(rest.removeprefix(END_OF_TURN) if closed else rest)

    def parse_tool_calls(self, text: str) -> list[ToolCall]:
        """Read the calls of one decoded assistant turn, thinking left out; see `tool_calls` for the strictness."""
        return parse_tool_calls(strip_thinking(text, opens_thinking=self._opens_thinking), self._tool_format)

    def parse_answer(self, text: str) -> str | None:
        """Return the last Lean file of one decoded assistant turn, thinking left out; None without a closed one."""
        said = strip_thinking(text, opens_thinking=self._opens_thinking)
        for mark in (END_OF_TURN, _END_OF_TEXT):
            said = said.removesuffix(mark)
        blocks = lean_blocks(said)
        return blocks[-1][2] if blocks else None

    def decode(self, ids: list[int]) -> str:
        """Spell ids out, control tokens included; for people and for parsing, never encoded again."""
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _request(self, statement: Statement) -> str:
        source = "\n\n".join(part for part in (statement.header.strip(), statement.formal_statement.strip()) if part)
        return self._instruction + self._neutralise(source) + INSTRUCTION_END

    def _render(self, messages: list[dict[str, Any]]) -> str:
        return self._tokenizer.apply_chat_template(
            messages,
            tools=self._tools or None,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self._thinking,
        )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _token_ends(self, text: str) -> list[int]:
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return [end for _, end in encoded["offset_mapping"]]

    def _find_stop_tokens(self) -> list[int]:
        ids = self._tokenizer.encode(END_OF_TURN, add_special_tokens=False)
        if len(ids) != 1:
            raise PreflightError(f"model.path: the tokenizer has no {END_OF_TURN} token; a Qwen chat model is needed.")
        extra = [self._tokenizer.eos_token_id, self._tokenizer.added_tokens_encoder.get(_END_OF_TEXT)]
        return sorted({*ids, *(token for token in extra if token is not None)})

    def _check_template(self) -> str:
        """Render a tool turn once and return its end; a template of another family is refused here, by name."""
        probe = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": _TURN_MARK},
            {"role": "tool", "content": "PROBE"},
        ]
        try:
            _, _, rest = self._render(probe).partition(_TURN_MARK)
        except (TemplateError, ValueError) as error:
            raise PreflightError(f"model.path: the chat template does not render a tool turn: {error}") from error
        if not rest.startswith(END_OF_TURN) or "<tool_response>\nPROBE\n</tool_response>" not in rest:
            raise PreflightError(f"model.path: the chat template prints tool results in an unknown way: {rest[:200]!r}")
        return rest

    def _check_question(self) -> str:
        """Render a question without tools and return what follows it; a template that cannot is refused by name."""
        try:
            before, _, rest = self._render([{"role": "user", "content": _TURN_MARK}]).partition(_TURN_MARK)
        except (TemplateError, ValueError, TypeError) as error:
            raise PreflightError(
                f"rollout.tools = false: the chat template of model.path does not render without tools: {error}"
            ) from error
        if "<tool_call>" in before + rest or not rest.startswith(END_OF_TURN) or "assistant" not in rest:
            raise PreflightError(
                "rollout.tools = false: the chat template of model.path prints a question without tools in an unknown"
                f" way: {(before + rest)[:200]!r}"
            )
        return rest
