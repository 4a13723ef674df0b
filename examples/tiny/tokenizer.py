"""The tokenizer of the tiny model: byte-level BPE with the Qwen control tokens and chat format.

Two cores must sample hundreds of attempts a minute, so every fixed text of the dialogue (the system block with the
tools, the opening of a tool call, ...) is one token. The text itself is unabridged Qwen3: a reader of the decoded
prompt sees what a large model would see.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fd_async.rendering import FEEDBACK_INTRO, INSTRUCTION
from fd_async.rendering.renderer import INSTRUCTION_END
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS

FILE_NAME = "proof.lean"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
NUM_TOKENS = 768
"""Ordinary and control tokens together."""

EXAMPLE = "Example of a correct solution:\n"
WRITE = f'<tool_call>\n{{"name": "lean_write_file", "arguments": {{"file_name": "{FILE_NAME}", "code": "'
WRITE_END = '"}}\n</tool_call>'
CHECK = f'<tool_call>\n{{"name": "lean_check_file", "arguments": {{"file_name": "{FILE_NAME}"}}}}\n</tool_call>'
WROTE = f"Wrote {FILE_NAME}."
ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"
RESULT = "\n<|im_start|>user\n<tool_response>\n"
RESULT_END = "\n</tool_response>" + ASSISTANT

# Names and numbers stand alone; longer words, `by` and qualified names take the space before them.
_WORD = r"[A-Za-z]{3,}|by\b|[A-Z][a-z]+\.[A-Za-z_.]*[A-Za-z]"
_PIECES = (
    rf" ?[A-Z][a-z]+\.[A-Za-z_.]*[A-Za-z]| ?[A-Za-z]{{3,}}_?| ?by\b|[A-Za-z]{{1,2}}[0-9]?|[0-9]{{1,2}}"
    rf"|[^A-Za-z0-9]+?(?= ?(?:{_WORD})|[A-Za-z0-9]|\z)"
)

CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' }}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' }}
{{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n' }}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- elif message.role != 'system' or not (tools and loop.first) %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function or call %}
{%- if message.content or not loop.first %}{{- '\\n' }}{%- endif %}
{{- '<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
{{- (call.arguments if call.arguments is string else call.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
"""Prints what Qwen3's template prints. `enable_thinking` has no effect: the model is too small to think aloud."""


def build_tokenizer(corpus: Iterable[str]) -> Any:
    """Train the BPE on `corpus` and add the fixed texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    fixed = _fixed_texts()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS - len(fixed) - len(TAGS),
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in [*TAGS, *fixed]])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=512
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _fixed_texts() -> list[str]:
    """Longest texts that never vary, in the order of a dialogue."""
    scaffold = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    scaffold.chat_template = CHAT_TEMPLATE
    prompt = scaffold.apply_chat_template(
        [{"role": "user", "content": INSTRUCTION}], tools=TOOL_SCHEMAS, tokenize=False
    )
    opening = str(prompt).removesuffix("<|im_end|>\n")
    return [
        opening,
        INSTRUCTION_END + ASSISTANT,
        INSTRUCTION_END + FEEDBACK_INTRO,
        INSTRUCTION_END + FEEDBACK_INTRO + EXAMPLE,
        ASSISTANT,
        WRITE,
        WRITE_END,
        CHECK,
        WROTE,
        RESULT,
        RESULT_END,
    ]
