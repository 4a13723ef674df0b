"""Strict parsers of the two ways in which Qwen models write tool calls.

    qwen3      <tool_call>\\n{"name": NAME, "arguments": {...}}\\n</tool_call>
    qwen3_5    <tool_call>\\n<function=NAME>\\n<parameter=KEY>\\nVALUE\\n</parameter>\\n</function>\\n</tool_call>

A malformed call becomes a `ToolCall` whose `error` the model reads; nothing is guessed or repaired.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from fd_async.types import ToolCall

ToolFormat = Literal["qwen3", "qwen3_5"]

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
OPEN, CLOSE = "<tool_call>", "</tool_call>"
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^<>\s]+)>(.*)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^<>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)


def parse_tool_calls(text: str, tool_format: ToolFormat) -> list[ToolCall]:
    """Read the calls of one assistant turn in order; other text between them is ignored."""
    parse = _parse_json if tool_format == "qwen3" else _parse_xml
    return [ToolCall(name="", error=_unclosed()) if body is None else parse(body) for body in _blocks(text)]


def strip_thinking(text: str, *, opens_thinking: bool) -> str:
    """Drop `<think>` blocks, also one that is never closed.

    Args:
        opens_thinking: The generation prompt already ended with `<think>`, so the turn begins inside a block.
    """
    return _THINKING.sub("", f"<think>{text}" if opens_thinking else text)


def _blocks(text: str) -> list[str | None]:
    """Bodies of the `<tool_call>` blocks; None stands for one that is not closed before the next or the end."""
    bodies: list[str | None] = []
    for piece in text.split(OPEN)[1:]:
        body, closed, _ = piece.partition(CLOSE)
        bodies.append(body if closed else None)
    return bodies


def _unclosed() -> str:
    return f"Malformed tool call: {OPEN} without {CLOSE}."


def _malformed(why: str) -> ToolCall:
    return ToolCall(name="", error=f"Malformed tool call: {why}")


def _parse_json(body: str) -> ToolCall:
    try:
        call: Any = json.loads(body, object_pairs_hook=_without_duplicates)
    except ValueError as error:
        return _malformed(f"not valid JSON ({error}).")
    except RecursionError:
        return _malformed("too many brackets inside one another.")
    if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
        return _malformed('expected {"name": ..., "arguments": {...}} and no other key.')
    if not isinstance(call["name"], str) or not call["name"]:
        return _malformed("`name` must be a non-empty string.")
    if not isinstance(call["arguments"], dict):
        return _malformed("`arguments` must be a JSON object.")
    texts = [call["name"], *call["arguments"], *(v for v in call["arguments"].values() if isinstance(v, str))]
    if any(map(_LONE_SURROGATE.search, texts)):
        return _malformed("half a surrogate pair, which no file can hold.")
    return ToolCall(name=call["name"], arguments=call["arguments"])


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return dict(pairs)


def _parse_xml(body: str) -> ToolCall:
    function = _FUNCTION.fullmatch(body)
    if function is None:
        return _malformed("expected <function=NAME> ... </function> and nothing else inside.")
    arguments: dict[str, Any] = {}
    rest = function[2]
    while parameter := _PARAMETER.match(rest):
        if parameter[1] in arguments:
            return _malformed(f"parameter {parameter[1]!r} occurs twice.")
        arguments[parameter[1]] = parameter[2]
        rest = rest[parameter.end() :]
    if rest.strip():
        return _malformed("expected <parameter=KEY> ... </parameter> blocks and nothing else inside the function.")
    return ToolCall(name=function[1], arguments=arguments)
