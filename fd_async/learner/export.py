"""Hugging Face folders: whole weights in files of at most `checkpoint.shard_gib`, configuration, tokenizer.

Names and types are those of the model as `AutoModelForCausalLM` loads it, a tied lm_head once, as the embedding; of a
model with a vision tower that is the text model alone. vLLM reads the same names.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from fd_async.errors import CheckpointError
from fd_async.learner.model import Policy
from fd_async.learner.store import failing_clearly, unreadable, write_tensors

_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template", "spiece")
_INDEX = "model.safetensors.index.json"


class Gathering(Protocol):
    """What of `engine.Engine` makes parameters whole."""

    policy: Policy
    shapes: dict[str, torch.Size]

    def gathered(self, names: Sequence[str]) -> AbstractContextManager[dict[str, Tensor]]: ...


def chunks_by_bytes(sizes: Mapping[str, int], limit_bytes: int) -> list[list[str]]:
    """Cut names into runs of at most `limit_bytes`; one name always fits."""
    chunks: list[list[str]] = []
    filled = limit_bytes
    for name, size in sizes.items():
        if filled + size > limit_bytes or not chunks:
            chunks.append([])
            filled = 0
        chunks[-1].append(name)
        filled += size
    return chunks


def weight_sizes(engine: Gathering) -> dict[str, int]:
    """Return the bytes of what an export holds, by name, in the order of `whole_weights`."""
    parameters = dict(engine.policy.lm.named_parameters())
    sizes = {name: shape.numel() * parameters[name].dtype.itemsize for name, shape in engine.shapes.items()}
    return sizes | {name: buffer.nbytes for name, buffer in _saved_buffers(engine.policy).items()}


def whole_weights(engine: Gathering, bucket_bytes: int) -> Iterator[tuple[str, Tensor]]:
    """Yield whole weights in the model's type, valid until the next one. Collective under ZeRO 3: exhaust it."""
    sizes = {name: size for name, size in weight_sizes(engine).items() if name in engine.shapes}
    for names in chunks_by_bytes(sizes, bucket_bytes):
        with engine.gathered(names) as weights:
            yield from ((name, weights[name]) for name in names)
    yield from _saved_buffers(engine.policy).items()


def on_cpu(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Copy each tensor to CPU memory of its own."""
    for name, tensor in weights:
        yield name, tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _saved_buffers(policy: Policy) -> dict[str, Tensor]:
    saved = policy.lm.state_dict().keys()
    return {name: buffer for name, buffer in policy.lm.named_buffers() if name in saved}


def write_model(
    folder: Path,
    weights: Iterable[tuple[str, Tensor]],
    sizes: Mapping[str, int],
    *,
    policy: Policy,
    source: str,
    shard_gib: float,
) -> None:
    """Write a Hugging Face folder. Holds one file's weights in memory at a time.

    Args:
        weights: on the CPU, contiguous, in the order of `sizes`.
        sizes: bytes by name.
        policy: for its configuration alone.
        source: `model.path`, whose tokenizer files are copied byte for byte.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    with failing_clearly(folder / "config.json"):
        folder.mkdir(exist_ok=True)
        _write_configuration(policy, folder)
        _copy_tokenizer(source, folder)
    files = chunks_by_bytes(sizes, int(shard_gib * 2**30))
    coming, where = iter(weights), dict[str, str]()
    for number, names in enumerate(files, 1):
        file = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = dict(islice(coming, len(names)))
        assert list(tensors) == names, "weights come in the order of their sizes"
        write_tensors(folder / file, tensors, {"format": "pt"})
        where |= dict.fromkeys(names, file)
    if len(files) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        with failing_clearly(folder / _INDEX):
            (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")


def check_export(folder: Path) -> None:
    """Load the folder as Hugging Face does and compare every tensor with its file, bit by bit.

    Sets torch's default type for a moment: never beside a thread that computes.

    Raises:
        CheckpointError: it does not load, a name is missing, unknown or of another shape, or a tensor differs.
    """
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True
        )
        AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever transformers raises about a folder, it is the folder's fault
        raise CheckpointError(f"{folder}: the model does not load: {type(error).__name__}: {error}") from error
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if report.get(key):
            raise CheckpointError(f"{folder}: the model does not load: {key} {sorted(map(str, report[key]))[:5]}")
    loaded = dict(model.state_dict(keep_vars=True))
    unseen = {id(tensor) for tensor in loaded.values()}
    for path in sorted(folder.glob("*.safetensors")):
        with unreadable(path), safe_open(path, framework="pt") as file:
            for name in sorted(file.keys()):
                if name not in loaded or not same_bits(loaded[name], file.get_tensor(name)):
                    raise CheckpointError(f"{path}: {name} differs after loading; the disk or the export is broken")
                unseen.discard(id(loaded[name]))
    if unseen:
        raise CheckpointError(f"{folder}: {len(unseen)} tensors of the model are in no file")


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Compare type, shape and every bit, so that NaN equals itself and 0 is not -0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.dtype.itemsize]
    return torch.equal(one.detach().contiguous().view(bits), other.contiguous().view(bits))


def _write_configuration(policy: Policy, folder: Path) -> None:
    lm: Any = policy.lm
    config = copy.deepcopy(lm.config)
    config.architectures = [type(lm).__name__]
    config.dtype = str(policy.output_weight.dtype).removeprefix("torch.")
    config.save_pretrained(folder)
    if lm.can_generate():
        lm.generation_config.save_pretrained(folder)


def _copy_tokenizer(source: str, folder: Path) -> None:
    config = cached_file(source, "config.json")
    if config is None:
        raise CheckpointError(f"model.path = {source!r}: no config.json, so no tokenizer to copy")
    for path in Path(config).parent.iterdir():
        if path.name.startswith(_TOKENIZER_FILES) and path.is_file():
            shutil.copyfile(path, folder / path.name)
