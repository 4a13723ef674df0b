"""What tells evaluations apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from fd_async.errors import PreflightError
from fd_async.evaluation import differences
from fd_async.policy.contract import digest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder with a large middle that a look at the ends would miss."""
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "README.md"):
        (tmp_path / name).write_text(name)
    (tmp_path / "model.safetensors").write_bytes(bytes(3 << 20))
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"])
def test_every_byte_of_a_model_counts(model: Path, name: str) -> None:
    """Also one in the middle of the weights, of the same size; a card for people does not count."""
    before = digest(str(model))
    (model / "README.md").write_text("other words")
    assert digest(str(model)) == before
    content = bytearray((model / name).read_bytes())
    content[len(content) // 2] ^= 1
    (model / name).write_bytes(content)
    assert digest(str(model)) != before


def test_a_folder_without_weights_is_no_model(model: Path) -> None:
    """Said by name, before anything starts."""
    (model / "model.safetensors").unlink()
    with pytest.raises(PreflightError, match=r"has no \*\.safetensors file"):
        digest(str(model))


def test_differences_name_each_key_with_both_values() -> None:
    """Hashes are cut, a key that one side lacks is said to be missing, what agrees is silent."""
    before = {"model": "sha256 " + "a" * 64, "run.seed": 0, "order of s": "sha256 1"}
    now = {"model": "sha256 " + "b" * 64, "run.seed": 0, "rollout.max_turns": 3}
    assert differences(before, now) == [
        "model was sha256 aaaaaaaaaaaa... and is sha256 bbbbbbbbbbbb...",
        "rollout.max_turns was not there and is 3",
        "order of s was sha256 1... and is not there",
    ]
    assert differences(before, before) == []
