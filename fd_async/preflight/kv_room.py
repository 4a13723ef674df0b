"""How many sequences fit into vLLM's cache beside the weights: plain arithmetic from `config.json`. No torch.

Sizes of one GPU of an engine with tensor parallelism over P GPUs, b bytes per number of the model's type:

    keys and values      2 b x full-attention layers x ceil(key heads / P) x width of a head, for each token
    gated delta layers   a state of fixed size for each sequence, whatever its length: the last inputs of the
                         convolution (b bytes each) and a matrix per value head (`mamba_ssm_dtype`, float32 as a rule);
                         held twice where prefixes are cached, because vLLM then keeps the state of the last block too

vLLM rounds both up to whole blocks; with sequences of thousands of tokens that is a few per cent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fd_async.config.schema import RunConfig
from fd_async.learner.model_shape import Shape

GIB = 2**30
WORKSPACE = 3 * GIB
"""What vLLM needs of a GPU besides weights and cache: context, activations of a step, captured graphs. A guess: vLLM
measures it when it starts, nothing here can."""
_WIDTH = {"float32": 4, "float16": 2, "bfloat16": 2}


class Cache(NamedTuple):
    """What sequences take of one GPU, bytes."""

    per_token: int
    per_sequence: int

    def of(self, tokens: int) -> int:
        """Return the bytes of a sequence of this length."""
        return self.per_token * tokens + self.per_sequence


class Room(NamedTuple):
    """Cache of one engine."""

    bytes: int
    """Of one GPU, after weights and workspace; negative where those alone do not fit."""
    sequence: int
    """One sequence of `policy.max_model_len`, bytes of one GPU."""

    @property
    def sequences(self) -> int:
        """How many of full length fit."""
        return max(0, self.bytes) // self.sequence


def cache_of(text: dict[str, Any], *, dtype: str, parallel: int, prefix_caching: bool) -> Cache | None:
    """Take the sizes from a text model's configuration; None where its keys are not those of a known family."""
    try:
        layers = int(text["num_hidden_layers"])
        heads = text.get("num_key_value_heads") or text["num_attention_heads"]
        head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        full = layers if "linear_num_value_heads" not in text else _full_attention(text, layers)
        state = _state(text, _WIDTH[dtype], parallel) * (layers - full) * (2 if prefix_caching else 1)
        return Cache(2 * _WIDTH[dtype] * full * -(-heads // parallel) * head, state)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _full_attention(text: dict[str, Any], layers: int) -> int:
    kinds = text.get("layer_types")
    return kinds.count("full_attention") if kinds else layers // text.get("full_attention_interval", 4)


def _state(text: dict[str, Any], width: int, parallel: int) -> int:
    """Return the state of one gated delta layer, bytes of one GPU; 0 for a model without such layers."""
    if "linear_num_value_heads" not in text:
        return 0
    heads, value, key = text["linear_num_value_heads"], text["linear_value_head_dim"], text["linear_key_head_dim"]
    mixed = 2 * text["linear_num_key_heads"] * key + heads * value
    convolution = mixed * (text["linear_conv_kernel_dim"] - 1) * width
    return (convolution + heads * value * key * _WIDTH[text.get("mamba_ssm_dtype") or "float32"]) // parallel


def room(config: RunConfig, shape: Shape, cache: Cache, gpu_bytes: int | None) -> Room:
    """Return what an engine's cache has.

    Args:
        gpu_bytes: memory of the engine's smallest GPU; None for the CPU engine, whose cache the configuration sets.
    """
    policy = config.policy
    sequence = cache.of(policy.max_model_len)
    if gpu_bytes is None:
        return Room(int(policy.kv_cache_gib * GIB), sequence)
    weights = _WIDTH[config.model.dtype] * shape.num_params // policy.tensor_parallel_size
    return Room(int(gpu_bytes * policy.gpu_memory_utilization) - weights - WORKSPACE, sequence)
