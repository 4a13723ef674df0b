"""What a model may write where a tool call belongs."""

from __future__ import annotations

import json
import random
import time
import traceback
from typing import Any

import msgspec

from fd_async.rendering.tool_calls import parse_tool_calls, strip_thinking
from tests.fuzz.answers import bend
from tests.fuzz.report import Report

LONGEST_S = 1.0
"""A text of at most 100 kB that takes longer is a trap."""

PIECES = (
    "<tool_call>", "</tool_call>", "<tool_call>\n", "\n</tool_call>", "<function=lean_check_file>", "</function>",
    "<function=",
    "<parameter=path>", "</parameter>", "<parameter=", ">", "<", "{", "}", '{"name": "lean_check_file", "arguments": {',
    '"path": "a.lean"', "}}", '"name"', ":", ",", "null", "NaN", "1e999", "9" * 500, '"\\ud800"', "\\", '"', "\n",
    "\x00",
    "<think>", "</think>", "<|im_end|>", "by omega", "é", "\U0001f600", " " * 50, "[" * 200, '{"a":' * 200, "x" * 3000,
)  # fmt: skip


PARAMETERS = (
    "<parameter=path>\na.lean\n</parameter>\n", "<parameter=path>", "</parameter>", "<parameter=>\n</parameter>",
    "<parameter=content>\n" + "x" * 300 + "\n</parameter>\n", "\n", "<parameter=a<b>x</parameter>", "\x00",
)  # fmt: skip


def _json_call(dice: random.Random) -> str:
    """Write a call whose JSON is good, bent, or deeper than any parser goes."""
    value: Any = {"name": "lean_check_file", "arguments": {"path": "a.lean", "content": "theorem"}}
    for _ in range(dice.choice((0, 1, 2, 4))):
        value = bend(value, dice)
    text = json.dumps(value)
    depth = dice.choice((0, 0, 0, 900, 20000))
    return text.replace('"a.lean"', "[" * depth + "]" * depth) if depth else text


def fuzz(cases: int, seed: int) -> Report:
    """Parse `cases` texts in both formats; whatever comes out can be recorded, and none takes long."""
    report = Report()
    for case in range(cases):
        dice = random.Random(f"toolcalls/{seed}/{case}")
        text = "".join(dice.choice(PIECES) for _ in range(dice.choice((1, 4, 12, 40))))
        shape = dice.random()
        if shape < 0.05:
            text = dice.choice(PIECES) * 2000
        elif shape < 0.4:
            text = f"<tool_call>\n{_json_call(dice)}\n</tool_call>"
        elif shape < 0.6:
            parameters = "".join(dice.choice(PARAMETERS) for _ in range(dice.choice((0, 1, 3, 2000))))
            text = f"<tool_call>\n<function=lean_check_file>\n{parameters}</function>\n</tool_call>"
        report.cases += 1
        for tool_format in ("qwen3", "qwen3_5"):
            started = time.perf_counter()
            try:
                calls = parse_tool_calls(strip_thinking(text, opens_thinking=dice.random() < 0.5), tool_format)
                for call in calls:
                    msgspec.msgpack.encode(call.name)
                    _ = [value.encode() for value in call.arguments.values() if isinstance(value, str)]
            except BaseException:
                report.found(traceback.format_exc(), repr(text))
                continue
            report.outcomes["malformed" if any(call.error for call in calls) else "calls" if calls else "text"] += 1
            if time.perf_counter() - started > LONGEST_S:
                report.found(f"{time.perf_counter() - started:.1f} s", repr(text))
    return report
