"""The files in configs/ and what is generated from the schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fd_async.config import docs
from fd_async.config.describe import keys
from fd_async.config.files import CHECKOUT
from fd_async.config.load import load_config
from fd_async.config.schema import RunConfig

CONFIGS = sorted((CHECKOUT / "configs").glob("*.toml"))
OVERLAYS = sorted((CHECKOUT / "configs" / "feedback").glob("*.toml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_configuration_loads(file: Path) -> None:
    """No shipped file has a problem; data that must be made first is not looked for."""
    assert load_config(file, check_files=False).run.name == file.stem


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda file: file.stem)
@pytest.mark.parametrize("base", ["tiny_fd", "qwen35_fd", "qwen3_8b_fd"])
def test_every_feedback_overlay_fits_every_distillation(base: str, overlay: Path) -> None:
    """One table changes the source of feedback."""
    load_config(CHECKOUT / "configs" / f"{base}.toml", [overlay], check_files=False)


def test_there_is_an_overlay_for_every_source_of_feedback() -> None:
    """Nobody has to look up how to switch."""
    base = CHECKOUT / "configs" / "tiny_fd.toml"
    types = {load_config(base, [overlay], check_files=False).feedback.type for overlay in OVERLAYS}
    assert types == {"anthropic", "openai", "self", "ground_truth", "lean_output", "constant"}


def test_the_shipped_names_are_there() -> None:
    """Scripts and the README rely on these names."""
    names = {
        "tiny_fd",
        "tiny_grpo",
        "tiny_grpo_over_fd",
        "qwen35_fd",
        "qwen35_grpo",
        "qwen3_8b_fd",
    }
    assert names == {file.stem for file in CONFIGS}


def paper(name: str) -> RunConfig:
    """Load one of the paper's configurations."""
    return load_config(CHECKOUT / "configs" / f"{name}.toml", check_files=False)


@pytest.mark.parametrize("name", ["qwen35_fd", "qwen3_8b_fd"])
def test_distillation_has_the_settings_of_the_paper(name: str) -> None:
    """Table 1, left column."""
    config = paper(name)
    assert (config.learner.lr, config.learner.prompts_per_step, config.rollout.samples_per_prompt) == (1e-5, 128, 1)
    assert (config.algorithm.top_k, config.algorithm.ema_retention, config.algorithm.ema_every) == (25, 0.9, 5)
    assert (config.rollout.max_response_tokens, config.rollout.max_prompt_tokens) == (8192, 2048)
    assert (config.learner.warmup_steps, config.feedback.prompt) == (50, 4)


def test_grpo_has_the_settings_of_the_paper() -> None:
    """Table 1, right column."""
    config = paper("qwen35_grpo")
    assert (config.learner.lr, config.learner.prompts_per_step, config.rollout.samples_per_prompt) == (1e-7, 128, 5)
    assert (config.algorithm.kl_weight, config.learner.warmup_steps) == (0.001, 50)
    assert (config.rollout.max_response_tokens, config.rollout.max_prompt_tokens) == (8192, 2048)


def test_generated_files_are_up_to_date() -> None:
    """Run `python -m fd_async.config.docs` after a change of the schema."""
    assert (CHECKOUT / docs.SCHEMA).read_text(encoding="utf-8") == docs.schema_json()
    assert (CHECKOUT / docs.PAGE).read_text(encoding="utf-8") == docs.config_page()


def test_every_key_is_described() -> None:
    """A key without a sentence is a riddle."""
    assert [key.path for key in keys().values() if not key.description.endswith(".")] == []
    assert "learner" in json.loads(docs.schema_json())["$defs"]["RunConfig"]["properties"]
