"""fd-check where `rollout.tools = false`: nothing is asked of the model or the machine that only tools need."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fd_async.config.schema import Verifier
from fd_async.preflight import lean, model
from tests.fakes.chat_tokenizer import QWEN3
from tests.fakes.tiny_policy import tiny_config


@pytest.mark.parametrize(
    ("template", "with_tools", "without"),
    [
        ("{{ messages }}", "missing", "missing"),
        ("{{ '<|im_start|>' }}{% if add_generation_prompt %}{% endif %}", "missing", "ok"),
        (QWEN3, "missing", "ok"),
        (QWEN3 + '{# <tool_call> "arguments" #}', "ok", "ok"),
    ],
)
def test_the_template_needs_tool_calls_only_with_tools(
    tmp_path: Path, template: str, with_tools: str, without: str
) -> None:
    """A model that writes no calls may still give whole answers."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text(template)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    config = tiny_config(str(tmp_path))
    for tools, state in ((True, with_tools), (False, without)):
        rollout = msgspec.structs.replace(config.rollout, tools=tools)
        (finding,) = model._template(msgspec.structs.replace(config, rollout=rollout))
        assert (finding.state, finding.name) == (state, "chat template")


def test_nobody_searches_mathlib_without_tools(tmp_path: Path) -> None:
    """Neither its sources nor `rg` are looked for."""
    config = msgspec.structs.replace(tiny_config(), verifier=Verifier(search_dir=str(tmp_path / "none")))
    assert [finding.state for finding in lean._search(config)] == ["missing"]
    rollout = msgspec.structs.replace(config.rollout, tools=False)
    assert list(lean._search(msgspec.structs.replace(config, rollout=rollout))) == []
