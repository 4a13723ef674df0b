"""The contract: what the checkpoint that the engine serves says about names, shapes and ties."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from fd_async.errors import PreflightError
from fd_async.policy.contract import Contract, read_contract

SHAPES = {"model.embed_tokens.weight": [4, 2], "model.norm.weight": [2]}


def write_checkpoint(folder: Path, shapes: dict[str, list[int]] = SHAPES, *, tied: bool = True) -> Contract:
    """Write a checkpoint's config and a header with no data behind it."""
    write_header(folder / "model.safetensors", shapes)
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
    return read_contract(str(folder))


def write_header(file: Path, shapes: dict[str, list[int]]) -> None:
    """Write a safetensors file without its data."""
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text)


def test_only_the_files_of_the_index_count(tmp_path: Path) -> None:
    """A folder may hold a second copy of the weights, in files that nobody loads."""
    write_header(tmp_path / "model-00001-of-00001.safetensors", SHAPES)
    write_header(tmp_path / "consolidated.safetensors", {"tok_embeddings.weight": [4, 2]})
    index = {"weight_map": dict.fromkeys(SHAPES, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    assert set(read_contract(str(tmp_path)).tensors) == set(SHAPES)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    """No contract, no engine."""
    with pytest.raises(PreflightError, match=r"no \*\.safetensors"):
        read_contract(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not a header")
    with pytest.raises(PreflightError, match="not a safetensors file"):
        read_contract(str(tmp_path))
