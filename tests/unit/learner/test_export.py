"""Exports load as Hugging Face loads them, with every bit in its place, in files of bounded size."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fd_async.errors import CheckpointError
from fd_async.learner.checkpoints import check_model_folder
from fd_async.learner.export import chunks_by_bytes, on_cpu, same_bits, weight_sizes, whole_weights, write_model
from fd_async.learner.model import Policy, load_policy
from tests.fakes.split_engine import SplitEngine
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.tiny_policy import tiny_policy
from tests.fakes.tiny_qwen35 import tiny_qwen35

KIB = 2**-20
"""GiB."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("model")))


def export(policy: Policy, folder: Path, source: str, *, shard_gib: float = 1.0) -> dict[str, str]:
    """Write a folder through small buckets and return tensor name -> file."""
    engine = SplitEngine(policy, [0.0], 0)
    weights = on_cpu(whole_weights(engine, 3000))
    write_model(folder, weights, weight_sizes(engine), policy=policy, source=source, shard_gib=shard_gib)
    return {name: path.name for path in folder.glob("*.safetensors") for name in load_file(path)}


@given(st.dictionaries(st.text(), st.integers(0, 50)), st.integers(1, 60))
def test_chunks_keep_order_and_size(sizes: dict[str, int], limit: int) -> None:
    """Nothing is lost, and only a chunk of one name may be too large."""
    chunks = chunks_by_bytes(sizes, limit)
    assert [name for chunk in chunks for name in chunk] == list(sizes)
    assert all(chunk and (len(chunk) == 1 or sum(sizes[name] for name in chunk) <= limit) for chunk in chunks)
    for one, two in pairwise(chunks):
        assert sum(sizes[name] for name in one) + sizes[two[0]] > limit


def test_an_export_in_parts_loads_bit_by_bit(tmp_path: Path, source: str) -> None:
    """Several files with an index, the tied lm_head once, the tokenizer byte for byte."""
    policy = tiny_policy(seed=5)
    where = export(policy, tmp_path / "e", source, shard_gib=12 * KIB)
    files = sorted(set(where.values()))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((tmp_path / "e" / file).stat().st_size < 14 * 1024 for file in files)
    index = json.loads((tmp_path / "e" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == where
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in policy.parameters())
    assert "lm_head.weight" not in where
    check_model_folder(tmp_path / "e")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "e", dtype=torch.float32)
    for name, parameter in policy.lm.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)
    assert AutoTokenizer.from_pretrained(tmp_path / "e").get_vocab()["t7"] == 7


@pytest.mark.parametrize("tied", [False, True])
def test_a_qwen_3_5_export_is_the_text_model_and_loads_back(tmp_path: Path, tied: bool) -> None:
    """Loaded out of a checkpoint with vision tower and extra head, written as Qwen3_5ForCausalLM, loaded again."""
    source = tiny_qwen35(tmp_path / "source", tied=tied)
    policy = load_policy(source, "bfloat16", torch.device("cpu"))
    where = export(policy, tmp_path / "e", str(source))
    config = json.loads((tmp_path / "e" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("qwen3_5_text", ["Qwen3_5ForCausalLM"])
    assert not [name for name in where if "visual" in name or "mtp" in name or "language_model" in name]
    assert ("lm_head.weight" in where) is not tied
    check_model_folder(tmp_path / "e")
    again = load_policy(tmp_path / "e", "bfloat16", torch.device("cpu"))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(again.lm(input_ids=ids).logits, policy.lm(input_ids=ids).logits)


def damage_value(path: Path) -> None:
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def drop(path: Path) -> None:
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def add(path: Path) -> None:
    save_file(load_file(path) | {"model.extra": torch.zeros(1)}, path, metadata={"format": "pt"})


def reshape(path: Path) -> None:
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:5].clone()
    save_file(tensors, path, metadata={"format": "pt"})


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(
    ("harm", "message"),
    [(drop, "norm.weight"), (add, "model.extra"), (reshape, "norm.weight"), (shorten, "does not load")],
)
def test_a_folder_that_does_not_fit_its_model_is_refused(
    tmp_path: Path, source: str, harm: Callable[[Path], None], message: str
) -> None:
    """Transformers fills missing names with random numbers and drops unknown ones; the check does not let that pass."""
    export(tiny_policy(), tmp_path / "e", source)
    harm(tmp_path / "e" / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        check_model_folder(tmp_path / "e")


def test_a_weight_that_is_not_a_number_is_exported_as_it_is(tmp_path: Path, source: str) -> None:
    """Bits are compared, not values: an export never hides what training made."""
    export(tiny_policy(), tmp_path / "e", source)
    damage_value(tmp_path / "e" / "model.safetensors")
    check_model_folder(tmp_path / "e")


def test_equal_bits_are_more_than_equal_values() -> None:
    """-0 is not 0, NaN is itself, and the type counts."""
    zero, nan = torch.tensor([0.0]), torch.tensor([float("nan")])
    assert same_bits(nan, nan.clone())
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero.bfloat16())
    assert not same_bits(zero, zero.repeat(2))
