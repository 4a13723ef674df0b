"""Byte-level tokenizers without training, with chat templates shaped like those of Qwen3 and Qwen3.5.

`QWEN3` and `QWEN3_5` print a turn as it is; `QWEN3_5_CALLS` treats it as the real template does.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TAGS = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]

_HEAD = """\
{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n' }}
{%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"""
_NO_THINKING = """\
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}"""
QWEN3 = _HEAD + _NO_THINKING + "{%- endif %}{%- endif %}"
QWEN3_5 = _HEAD + _NO_THINKING + "{%- else %}{{- '<think>\\n' }}{%- endif %}{%- endif %}"

QWEN3_5_CALLS = (
    """\
{%- macro turn(message, content) %}
{%- for call in message.tool_calls or [] %}
{%- set call = call.function or call %}
{{- ('\\n\\n' if content else '') if loop.first else '\\n' }}
{{- '<tool_call>\\n<function=' + call.name + '>\\n' }}
{%- for key, value in call.arguments | items %}
{{- '<parameter=' + key + '>\\n' + (value if value is string else value | tojson) + '\\n</parameter>\\n' }}
{%- endfor %}
{{- '</function>\\n</tool_call>' }}
{%- endfor %}
{%- endmacro %}
{%- set query = namespace(last=-1) %}
{%- for message in messages if message.role == 'user' %}{%- set query.last = messages.index(message) %}{%- endfor %}
{%- if query.last < 0 %}{{- raise_exception('no user message') }}{%- endif %}
{%- if tools %}{{- '<|im_start|>system\\n# Tools\\n\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + tool | tojson }}{%- endfor %}
{{- '\\n</tools>\\n\\nCall a function like this:\\n\\n<tool_call>\\n<function=NAME>\\n<parameter=KEY>\\nVALUE' }}
{{- '\\n</parameter>\\n</function>\\n</tool_call>' }}
{%- if messages[0].role == 'system' %}{{- '\\n\\n' + messages[0].content | trim }}{%- endif %}
{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{%- set content = (message.content or '') | trim %}
{%- if message.role == 'assistant' %}
{%- set thought = '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].split('<think>')[-1] | trim %}
{%- set content = content.split('</think>')[-1] | trim %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > query.last %}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}{%- endif %}
{{- content + turn(message, content) + '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{%- if loop.previtem.role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
{{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- elif message.role == 'user' or not tools %}
{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"""
    + _NO_THINKING
    + "{%- else %}{{- '<think>\\n' }}{%- endif %}{%- endif %}"
)
"""As close to Qwen3.5's as the renderer can tell: trims every text, keeps the thinking of turns behind the last
question, prints calls as XML, and refuses a conversation without a question."""


def chat_tokenizer(template: str = QWEN3) -> Any:
    """Build a tokenizer whose ordinary ids are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = template
    return fast
