"""What a set of weights must look like, and whether a staged one does. No torch, no vllm.

The contract comes from the headers of the checkpoint that the engine loaded, never from an earlier push, so that the
first push is held to it as well.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections import Counter
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from msgspec import Struct

from fd_async.errors import PreflightError, PushRefused
from fd_async.types import StagedWeights

REFUSED = "fd_async refused the push"
"""Marks, in the text of a worker's error, that no layer was touched. vLLM passes only text between processes."""

_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_UNTRAINED_PREFIXES = ("mtp.", "visual.", "model.visual.")
"""Parts of a Qwen3.5 checkpoint that the text policy neither runs nor trains."""
_TEXT_PART = "language_model."
TIED_HEAD = "lm_head.weight"
_MAX_HEADER_BYTES = 100_000_000
_SHOWN = 3


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

    def name(self, pushed: str) -> str:
        """Return the checkpoint's name of a pushed tensor."""
        return self.text_names.get(pushed, pushed)


class FileStamp(Struct, frozen=True):
    """Identity of a checked file: the engine refuses to map any other."""

    inode: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, file: BinaryIO) -> FileStamp:
        status = os.fstat(file.fileno())
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


def read_contract(model: str) -> Contract:
    """Read the contract of a checkpoint folder, or of a Hugging Face id that is already in the local cache."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(model, local_files_only=True, allow_patterns=["*.safetensors*", "*.json"]))
    files = sorted(folder.glob("*.safetensors"))
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


def check_manifest(staged: StagedWeights, contract: Contract, *, in_file: bool = True) -> None:
    """Refuse a manifest that differs from the contract, or whose bytes overlap or leave the file.

    Args:
        staged: the manifest.
        contract: what the engine's checkpoint holds.
        in_file: False for weights that travel without a file; offsets and sizes are then not looked at.

    Raises:
        PushRefused: names the first few problems.
    """
    lengths = {len(staged.names), len(staged.dtypes), len(staged.shapes)} | (
        {len(staged.offsets)} if in_file else set()
    )
    if len(lengths) != 1:
        raise PushRefused(f"push of version {staged.version}: names, dtypes, shapes and offsets differ in length")
    problems = _compare(staged, contract)
    if in_file and not problems:
        problems = _check_layout(staged)
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        raise PushRefused(f"push of version {staged.version}: {'; '.join(problems[:_SHOWN])}{more}")


def group_address(path: str) -> tuple[str, int]:
    """Return host and port of `nccl://HOST:PORT`, which stands for a file's path when weights travel by NCCL.

    Raises:
        PushRefused: it is something else.
    """
    try:
        parts = urlsplit(path)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not path.startswith("nccl://") or not host or not port:
        raise PushRefused(f'policy.push = "nccl" needs a path nccl://HOST:PORT, not {path!r}')
    return host, port


def check_file(staged: StagedWeights) -> FileStamp:
    """Hash the staged file and return its identity. Blocking, about 1 s per GB.

    Raises:
        PushRefused: the file is missing, has another length or other bytes than the manifest says.
    """
    try:
        with open(staged.path, "rb") as file:
            stamp = FileStamp.of(file)
            if stamp.size != staged.num_bytes:
                raise PushRefused(
                    f"push of version {staged.version}: {staged.path} has {stamp.size} bytes, "
                    f"the manifest says {staged.num_bytes}"
                )
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PushRefused(f"push of version {staged.version}: cannot read {staged.path}: {error.strerror}") from error
    if digest != staged.sha256:
        raise PushRefused(f"push of version {staged.version}: sha256 of {staged.path} is not the manifest's")
    return stamp


def _compare(staged: StagedWeights, contract: Contract) -> list[str]:
    names = [contract.name(name) for name in staged.names]
    problems = [f"{name} appears twice" for name, count in Counter(names).items() if count > 1]
    problems += [f"{name} is missing" for name in sorted(contract.tensors.keys() - contract.optional - set(names))]
    for name, dtype, shape in zip(names, staged.dtypes, staged.shapes, strict=True):
        spec = contract.tensors.get(name)
        if spec is None:
            problems.append(f"{name} is not in the checkpoint")
        elif tuple(shape) != spec.shape:
            problems.append(f"{name} has shape {list(shape)}, the checkpoint {list(spec.shape)}")
        elif dtype not in _ITEM_BYTES:
            problems.append(f"{name} has dtype {dtype}, not one of {', '.join(_ITEM_BYTES)}")
    return problems


def _check_layout(staged: StagedWeights) -> list[str]:
    problems: list[str] = []
    end = 0
    rows = sorted(zip(staged.offsets, staged.names, staged.dtypes, staged.shapes, strict=True))
    for offset, name, dtype, shape in rows:
        if offset < end:
            problems.append(f"{name} overlaps the tensor before it")
        if offset % _ITEM_BYTES[dtype]:
            problems.append(f"{name} starts at byte {offset}, not a multiple of {_ITEM_BYTES[dtype]}")
        end = offset + math.prod(shape) * _ITEM_BYTES[dtype]
    if end > staged.num_bytes:
        problems.append(f"tensors end at byte {end}, the file has {staged.num_bytes}")
    return problems


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
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", {})
    return bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
