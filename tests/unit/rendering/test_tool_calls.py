"""The two tool-call formats."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fd_async.rendering.tool_calls import parse_tool_calls, strip_thinking


def test_json_calls_are_read_in_order() -> None:
    """Text around the calls is ignored."""
    text = (
        'Let me see.\n<tool_call>\n{"name": "a", "arguments": {"x": "1"}}\n</tool_call>\n'
        '<tool_call>{"name": "b", "arguments": {}}</tool_call> done<|im_end|>'
    )
    assert [(call.name, call.arguments, call.error) for call in parse_tool_calls(text, "qwen3")] == [
        ("a", {"x": "1"}, None),
        ("b", {}, None),
    ]


@given(code=st.text().filter(lambda text: "tool_call>" not in text))
def test_json_arguments_round_trip(code: str) -> None:
    """Any text survives as an argument."""
    body = json.dumps({"name": "w", "arguments": {"code": code}}, ensure_ascii=False)
    assert parse_tool_calls(f"<tool_call>\n{body}\n</tool_call>", "qwen3")[0].arguments == {"code": code}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('{"name": "a"', "not valid JSON"),
        ('{"name": "a"}', "no other key"),
        ('{"name": "a", "arguments": {}, "id": 1}', "no other key"),
        ('["a"]', "no other key"),
        ('{"name": 3, "arguments": {}}', "`name`"),
        ('{"name": "a", "arguments": "{}"}', "`arguments`"),
        ('{"name": "a", "arguments": {"x": "1", "x": "2"}}', "'x' occurs twice"),
        ('{"name": "a", "arguments": {"x": "line\nbreak"}}', "not valid JSON"),
        ('{"name": "a", "arguments": {}} extra', "not valid JSON"),
        ("", "not valid JSON"),
    ],
)
def test_malformed_json_becomes_an_error_the_model_reads(body: str, why: str) -> None:
    """Nothing is repaired; the error says what was expected."""
    (call,) = parse_tool_calls(f"<tool_call>\n{body}\n</tool_call>", "qwen3")
    assert call.name == ""
    assert call.error is not None
    assert why in call.error


@pytest.mark.parametrize("tool_format", ["qwen3", "qwen3_5"])
def test_unclosed_call_is_an_error(tool_format: str) -> None:
    """A call cut off by the token budget is told so."""
    (call,) = parse_tool_calls('<tool_call>\n{"name": "a", "arguments": {}}', tool_format)  # type: ignore[arg-type]
    assert call.error is not None
    assert "without </tool_call>" in call.error


def test_text_without_a_call_has_no_calls() -> None:
    """Prose, or a lone closing tag, is not a call."""
    assert parse_tool_calls("I give up. </tool_call>", "qwen3") == []


def test_xml_call_keeps_values_verbatim() -> None:
    """Inner newlines and indentation stay; only the newline beside each tag goes."""
    text = (
        "<tool_call>\n<function=lean_write_file>\n<parameter=file_name>\na.lean\n</parameter>\n"
        "<parameter=code>\ntheorem t : True := by\n  trivial\n\n</parameter>\n</function>\n</tool_call>"
    )
    (call,) = parse_tool_calls(text, "qwen3_5")
    assert call.name == "lean_write_file"
    assert call.arguments == {"file_name": "a.lean", "code": "theorem t : True := by\n  trivial\n"}


@given(value=st.text().filter(lambda text: "</parameter>" not in text and "tool_call>" not in text))
def test_xml_arguments_round_trip(value: str) -> None:
    """Any text without the closing tag survives as a parameter."""
    text = f"<tool_call>\n<function=f>\n<parameter=k>\n{value}\n</parameter>\n</function>\n</tool_call>"
    assert parse_tool_calls(text, "qwen3_5")[0].arguments == {"k": value}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ('{"name": "a", "arguments": {}}', "<function=NAME>"),
        ("<function=f>\n<parameter=k>\nv\n</function>", "<parameter=KEY>"),
        ("<function=f>\nloose\n</function>", "<parameter=KEY>"),
        ("<function=f>\n<parameter=k>a</parameter>\n<parameter=k>b</parameter>\n</function>", "occurs twice"),
        ("<function=f>\n</function> tail", "<function=NAME>"),
        ("<function=>\n</function>", "<function=NAME>"),
    ],
)
def test_malformed_xml_becomes_an_error_the_model_reads(body: str, why: str) -> None:
    """As for JSON."""
    (call,) = parse_tool_calls(f"<tool_call>\n{body}\n</tool_call>", "qwen3_5")
    assert call.name == ""
    assert call.error is not None
    assert why in call.error


@pytest.mark.parametrize(
    ("text", "opens", "rest"),
    [
        ("<think>a</think>b", False, "b"),
        ("<think>a", False, ""),
        ("a</think>b", True, "b"),
        ("a", True, ""),
        ("a<think>b</think>c<think>d</think>e", False, "ace"),
        ("a", False, "a"),
    ],
)
def test_thinking_is_dropped(text: str, opens: bool, rest: str) -> None:
    """Also when the block is opened by the prompt or never closed."""
    assert strip_thinking(text, opens_thinking=opens) == rest
