"""What a set of weights must look like: names, shapes and types of the checkpoint that the engine loaded. No torch.

The contract comes from the checkpoint's headers, never from an earlier push, so that the first push is held to it as
well. Names are those of the checkpoint; a text-only learner's names are mapped to them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from msgspec import Struct

from fd_async.errors import PreflightError

_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_UNTRAINED_PREFIXES = ("mtp.", "visual.", "model.visual.")
"""Parts of a Qwen3.5 checkpoint that the text policy neither runs nor trains."""
_TEXT_PART = "language_model."
TIED_HEAD = "lm_head.weight"
_MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")
_MAX_HEADER_BYTES = 100_000_000
_SAMPLE_BYTES = 1 << 20


class TensorSpec(Struct, frozen=True):
    """Type and shape of one checkpoint tensor."""

    dtype: str
    shape: tuple[int, ...]


class Contract(Struct, frozen=True):
    """Tensors by checkpoint name; `optional` ones may be left out of a push."""

    tensors: dict[str, TensorSpec]
    optional: frozenset[str]
    tied: bool
    """The output matrix is the embedding (`tie_word_embeddings`)."""
    text_names: dict[str, str]
    """Name in a text-only model -> name in a checkpoint that holds the text model inside a larger one."""

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding: token ids are below it."""
        return next((spec.shape[0] for name, spec in self.tensors.items() if name.endswith("embed_tokens.weight")), 0)

    def name(self, pushed: str) -> str:
        """Return the checkpoint's name of a pushed tensor."""
        return self.text_names.get(pushed, pushed)


def read_contract(model: str) -> Contract:
    """Read the contract of a checkpoint folder, or of a Hugging Face id that is already in the local cache."""
    folder = _folder(model)
    files = _weight_files(folder)
    if not files:
        raise PreflightError(
            f"model.path: {folder} has no *.safetensors file, so a push could not be checked against it"
        )
    tensors: dict[str, TensorSpec] = {}
    for file in files:
        tensors |= _read_header(file)
    optional = {name for name in tensors if name.startswith(_UNTRAINED_PREFIXES)}
    tied = _is_tied(folder)
    if tied:
        optional.add(TIED_HEAD)
        if TIED_HEAD not in tensors:
            embedding = next((spec for name, spec in tensors.items() if name.endswith("embed_tokens.weight")), None)
            if embedding is not None:
                tensors[TIED_HEAD] = embedding
    text_names = {name.replace(_TEXT_PART, "", 1): name for name in tensors if _TEXT_PART in name}
    return Contract(tensors, frozenset(optional), tied, text_names)


def fingerprint(model: str) -> str:
    """Return a hash that tells checkpoints apart: sizes, beginnings and ends of all weight files."""
    digest = hashlib.sha256()
    for file in _weight_files(_folder(model)):
        size = file.stat().st_size
        with file.open("rb") as stream:
            digest.update(f"{file.name} {size} ".encode() + stream.read(_SAMPLE_BYTES))
            stream.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def digest(model: str) -> str:
    """Return the sha256 of all that a model is made of: weights, configuration, tokenizer, template.

    Reads every byte, some seconds for a large model: call it in a thread. A Hugging Face id is fetched where the cache
    lacks it.

    Raises:
        PreflightError: it has no weights, or cannot be read or fetched.
    """
    try:
        folder = Path(model) if Path(model).is_dir() else _fetch(model)
        files = sorted(file for file in folder.iterdir() if file.suffix in _MODEL_SUFFIXES and file.is_file())
        if not any(file.suffix == ".safetensors" for file in files):
            raise PreflightError(f"model.path: {folder} has no *.safetensors file")
        whole = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                whole.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    except (OSError, ValueError) as error:  # those of huggingface_hub are of the two kinds as well
        raise PreflightError(f"model.path: cannot read {model}: {error}") from error
    return whole.hexdigest()


def has_recurrent_layers(model: str) -> bool:
    """Say whether a model has gated delta layers; True also where its configuration is not here yet."""
    try:
        return "linear_num_value_heads" in _text_config(_folder(model))
    except (OSError, ValueError):
        return True


def _fetch(model: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=[f"*{suffix}" for suffix in _MODEL_SUFFIXES]))


def _folder(model: str) -> Path:
    folder = Path(model)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, local_files_only=True, allow_patterns=["*.safetensors*", "*.json"]))


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that the index names, or all where there is no index."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    return sorted(folder.glob("*.safetensors"))


def _read_header(file: Path) -> dict[str, TensorSpec]:
    """Read a safetensors header: 8 bytes of little-endian length, then JSON."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, _MAX_HEADER_BYTES)))
        return {
            name: TensorSpec(_TORCH_NAMES.get(entry["dtype"], str(entry["dtype"])), tuple(entry["shape"]))
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise PreflightError(f"model.path: {file} is not a safetensors file: {error}") from error


def _is_tied(folder: Path) -> bool:
    """Tell whether the checkpoint's output matrix is its embedding (`tie_word_embeddings`)."""
    return bool(_text_config(folder).get("tie_word_embeddings", False))


def _text_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of the text model, with what only the model around it says."""
    config = json.loads((folder / "config.json").read_text())
    return config | (config.get("text_config") or {})
