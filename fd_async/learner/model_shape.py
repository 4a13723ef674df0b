"""The sizes of a model, from `config.json` and the headers of its safetensors files. No torch, nothing downloaded.

A Hugging Face id is looked up in the local cache. With a configuration but no weights, the parameters of Llama-like
models and of Qwen3.5 (attention and gated delta layers) are counted from the configuration.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

_DENSE = ("llama", "qwen2", "qwen3", "qwen3_5_text")
_NOT_TRAINED = ("mtp.", "visual.", "model.visual.")
"""Parts of a checkpoint that the text policy leaves out."""
_MAX_HEADER_BYTES = 100 << 20


class Shape(NamedTuple):
    """What the memory of training depends on."""

    num_params: int
    """Trained parameters, shared ones once."""
    largest: int
    """Parameters of the largest single tensor."""
    hidden: int
    layers: int
    intermediate: int
    query: int
    """Width of all query heads together."""
    key_value: int
    """Width of all key heads together."""
    vocab: int
    source: str
    """Where the number of parameters comes from, in words."""


def read_shape(path: str) -> Shape | None:
    """Read the shape of a model folder or cached Hugging Face id; None where it is not known."""
    folder, text = model_here(path), text_config(path)
    if folder is None or text is None:
        return None
    try:
        return _shape(text, _tensors(folder))
    except (KeyError, TypeError, ValueError, OSError):
        return None


def text_config(path: str) -> dict[str, Any] | None:
    """Read the configuration of the text model of a folder or cached Hugging Face id; None where there is none."""
    folder = model_here(path)
    try:
        config = json.loads((folder / "config.json").read_text()) if folder else None
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def shape_of_model(config: dict[str, Any], sizes: dict[str, int]) -> Shape | None:
    """Take the parameters of a loaded model, and the rest from its configuration; None where keys are missing."""
    try:
        text = {**config, **config.get("text_config", {})}
        return _made(text, sum(sizes.values()), max(sizes.values()), "of the loaded model")
    except (KeyError, TypeError, ValueError):
        return None


def shape_of_config(config: dict[str, Any]) -> Shape | None:
    """Count the parameters of a known family from its text configuration; None for another family."""
    if config.get("model_type") not in _DENSE:
        return None
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    query, key_value, head = _widths(config)
    tables = vocab * hidden * (1 if config.get("tie_word_embeddings") else 2)
    mlp = 3 * hidden * config["intermediate_size"]
    is_hybrid = config["model_type"] == "qwen3_5_text"
    norms = 2 * hidden + (2 * head if config["model_type"].startswith("qwen3") else 0)
    biases = query + 2 * key_value if config["model_type"] == "qwen2" or config.get("attention_bias") else 0
    attention = hidden * (2 * query + 2 * key_value + (query if is_hybrid else 0)) + biases
    layers = config["num_hidden_layers"]
    full = _num_full_attention(config, layers) if is_hybrid else layers
    delta = _delta_params(config, hidden) if is_hybrid else 0
    total = tables + hidden + full * (attention + mlp + norms) + (layers - full) * (delta + mlp + 2 * hidden)
    return _made(config, total, max(vocab * hidden, hidden * config["intermediate_size"]), "counted from config.json")


def _num_full_attention(config: dict[str, Any], layers: int) -> int:
    kinds = config.get("layer_types")
    return kinds.count("full_attention") if kinds else layers // config.get("full_attention_interval", 4)


def _delta_params(config: dict[str, Any], hidden: int) -> int:
    """Count a gated delta layer: projections of q, k, v, z, a, b; convolution; decay; norm; output."""
    heads, head = config["linear_num_value_heads"], config["linear_value_head_dim"]
    keys, values = config["linear_num_key_heads"] * config["linear_key_head_dim"], heads * head
    mixed = 2 * keys + values
    return hidden * (mixed + 2 * values + 2 * heads) + mixed * config["linear_conv_kernel_dim"] + 2 * heads + head


def _shape(config: dict[str, Any], tensors: dict[str, int]) -> Shape | None:
    is_tied = config.get("tie_word_embeddings", False)
    trained = {
        name: size
        for name, size in tensors.items()
        if not name.startswith(_NOT_TRAINED) and not (is_tied and name.endswith("lm_head.weight"))
    }
    if not trained:
        return shape_of_config(config)
    return _made(config, sum(trained.values()), max(trained.values()), "read from its safetensors")


def _made(config: dict[str, Any], num_params: int, largest: int, source: str) -> Shape:
    query, key_value, _ = _widths(config)
    hidden, layers, inner = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    return Shape(num_params, largest, hidden, layers, inner, query, key_value, config["vocab_size"], source)


def _widths(config: dict[str, Any]) -> tuple[int, int, int]:
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    return heads * head, (config.get("num_key_value_heads") or heads) * head, head


def _tensors(folder: Path) -> dict[str, int]:
    """Return the number of elements of every tensor."""
    sizes: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"{path} is no safetensors file")
            header = json.loads(file.read(length))
        sizes |= {name: math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return sizes


def model_here(path: str) -> Path | None:
    """Return the folder of a local path, or of the newest snapshot of a cached Hugging Face id."""
    if (Path(path) / "config.json").is_file():
        return Path(path)
    home = Path(os.environ.get("HF_HOME", "") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE", "") or home / "hub")
    model = cache / f"models--{path.strip('/').replace('/', '--')}"
    try:
        revision = (model / "refs" / "main").read_text().strip()
    except OSError:
        return None
    folder = model / "snapshots" / revision
    return folder if (folder / "config.json").is_file() else None
