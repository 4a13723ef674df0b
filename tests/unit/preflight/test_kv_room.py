"""The room of vLLM's cache, against figures that vLLM itself gave and against the sizes of the paper's models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from fd_async.config.load import load_config
from fd_async.learner.model_shape import read_shape, shape_of_config
from fd_async.preflight.kv_room import GIB, WORKSPACE, cache_of, room
from tests.fakes.node import QWEN35_9B

CHECKOUT = Path(__file__).parents[3]
QWEN35 = QWEN35_9B["text_config"]
QWEN3_8B = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}


def test_the_tiny_model_has_the_room_that_vllm_reported() -> None:
    """vLLM 0.32 on a CPU: `KV cache size: 262,144 tokens, ... 512 tokens per request: 512.00x` for 0.5 GiB."""
    config = load_config(CHECKOUT / "configs" / "tiny_fd.toml", [], [])
    text = json.loads((CHECKOUT / "examples" / "tiny" / "model" / "config.json").read_text())
    shape = read_shape(str(CHECKOUT / "examples" / "tiny" / "model"))
    cache = cache_of(text, dtype="float32", parallel=1, prefix_caching=True)
    assert shape is not None
    assert cache is not None
    assert room(config, shape, cache, None).bytes // cache.per_token == 262_144
    assert room(config, shape, cache, None).sequences == 512


def test_full_attention_takes_keys_and_values_of_every_layer() -> None:
    """Qwen3-8B in bfloat16: 144 KiB for a token, nothing for a sequence; head_dim may be left out."""
    cache = cache_of(QWEN3_8B, dtype="bfloat16", parallel=1, prefix_caching=True)
    assert cache == (2 * 36 * 8 * 128 * 2, 0)
    short = {**QWEN3_8B, "hidden_size": 4096}
    del short["head_dim"]
    assert cache_of(short, dtype="bfloat16", parallel=1, prefix_caching=True) == cache


@pytest.mark.parametrize(("caching", "states"), [(True, 2), (False, 1)])
def test_a_hybrid_takes_a_state_for_each_sequence(caching: bool, states: int) -> None:
    """8 of 32 layers have keys and values; each of the others 2 MiB of matrices and 3 inputs of 8,192 channels."""
    cache = cache_of(QWEN35, dtype="bfloat16", parallel=1, prefix_caching=caching)
    assert cache is not None
    assert cache.per_token == 8 * 2 * 4 * 256 * 2
    assert cache.per_sequence == states * 24 * (32 * 128 * 128 * 4 + 3 * 8192 * 2)
    listed = {**QWEN35, "layer_types": ["full_attention"] * 2 + ["linear_attention"] * 30}
    other = cache_of(listed, dtype="bfloat16", parallel=1, prefix_caching=caching)
    assert other is not None
    assert other.per_token == cache.per_token // 4


def test_tensor_parallelism_splits_heads_and_states_but_no_head() -> None:
    """Eight GPUs share four key heads: each has a whole one."""
    one, eight = (cache_of(QWEN35, dtype="bfloat16", parallel=n, prefix_caching=False) for n in (1, 8))
    assert one is not None
    assert eight is not None
    assert eight.per_token == one.per_token // 4
    assert eight.per_sequence == one.per_sequence // 8


def test_weights_and_workspace_come_first() -> None:
    """What is left of the share of a GPU; no sequence where nothing is left."""
    config = load_config(CHECKOUT / "configs" / "qwen35_fd.toml", [], [], check_files=False)
    shape, cache = shape_of_config(QWEN35), cache_of(QWEN35, dtype="bfloat16", parallel=1, prefix_caching=True)
    assert shape is not None
    assert cache is not None
    has = room(config, shape, cache, 100 * GIB)
    assert has.bytes == 85 * GIB - 2 * shape.num_params - WORKSPACE
    assert has.sequences == has.bytes // cache.of(10240)
    half = replace(config, policy=replace(config.policy, tensor_parallel_size=2))
    assert room(half, shape, cache, 100 * GIB).bytes == has.bytes + shape.num_params
    assert room(config, shape, cache, 20 * GIB).sequences == 0


def test_another_family_is_not_guessed() -> None:
    """None, and fd-check says that it does not know."""
    for text in ({}, {"num_hidden_layers": 4}, {"num_hidden_layers": "x", "num_attention_heads": 1}):
        assert cache_of(text, dtype="bfloat16", parallel=1, prefix_caching=True) is None
