"""Whether a staged set of weights is what it says, and what the engine can take. No torch, no vllm.

The manifest is held to the contract and to its own seal, the file to the manifest, block by block.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO
from urllib.parse import urlsplit

from msgspec import Struct

from fd_async.errors import PushRefused
from fd_async.policy.contract import Contract
from fd_async.types import StagedWeights

REFUSED = "fd_async refused the push"
"""Marks, in the text of a worker's error, that no layer was touched. vLLM passes only text between processes."""

_ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
_SHOWN = 3
_MAX_THREADS = 8
_READ_BYTES = 1 << 20


class FileStamp(Struct, frozen=True):
    """Identity of a checked file: the engine refuses to map any other."""

    inode: int
    modified_ns: int
    size: int

    @classmethod
    def of(cls, file: BinaryIO) -> FileStamp:
        status = os.fstat(file.fileno())
        return cls(status.st_ino, status.st_mtime_ns, status.st_size)


def check_manifest(staged: StagedWeights, contract: Contract, *, in_file: bool = True) -> None:
    """Refuse a manifest that differs from the contract or its seal, or whose bytes overlap or leave the file.

    Args:
        staged: the manifest.
        contract: what the engine's checkpoint holds.
        in_file: False for weights that travel without a file; offsets and sizes are then not looked at.

    Raises:
        PushRefused: names the first few problems.
    """
    if len(staged.probe_ids) < 2 or len(staged.probe_logprobs) != len(staged.probe_ids) - 1:
        raise PushRefused(f"push of version {staged.version}: the probe has no log-prob for each id after the first")
    lengths = {len(staged.names), len(staged.dtypes), len(staged.shapes)} | (
        {len(staged.offsets)} if in_file else set()
    )
    if len(lengths) != 1:
        raise PushRefused(f"push of version {staged.version}: names, dtypes, shapes and offsets differ in length")
    problems = _compare(staged, contract)
    if in_file and not problems:
        problems = _check_layout(staged)
    if not problems and staged.checksum != staged.seal:
        problems = ["the manifest is not the one that its seal was made for"]
    if problems:
        more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
        shown = "; ".join(problems[:_SHOWN])
        raise PushRefused(f"push of version {staged.version}: its weights are not the engine's: {shown}{more}")


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


def check_file(staged: StagedWeights, stop: threading.Event | None = None) -> FileStamp:
    """Hash the staged file, several blocks at once, and return its identity. Blocking, about 1 s per GB and core.

    Args:
        staged: the manifest.
        stop: ends the work early when it is set.

    Raises:
        PushRefused: the file is missing, has another length or other bytes than the manifest says.
    """
    what = f"push of version {staged.version}"
    try:
        with open(staged.path, "rb") as file:
            stamp = FileStamp.of(file)
            if stamp.size != staged.num_bytes:
                raise PushRefused(f"{what}: {staged.path} has {stamp.size} bytes, the manifest says {staged.num_bytes}")
            starts = range(0, staged.num_bytes, staged.block_bytes)

            def is_whole(start: int, sha256: str) -> bool:
                if stop is not None and stop.is_set():
                    raise PushRefused(f"{what}: the check was given up")
                return _sha256(file.fileno(), start, min(staged.block_bytes, stamp.size - start)) == sha256

            with ThreadPoolExecutor(min(_MAX_THREADS, len(os.sched_getaffinity(0)))) as pool:
                for start, whole in zip(starts, pool.map(is_whole, starts, staged.sha256), strict=True):
                    if not whole:
                        pool.shutdown(cancel_futures=True)
                        raise PushRefused(f"{what}: sha256 of {staged.path} from byte {start} on is not the manifest's")
            if FileStamp.of(file) != stamp:
                raise PushRefused(f"{what}: {staged.path} changed while it was checked")
    except OSError as error:
        raise PushRefused(f"{what}: cannot read {staged.path}: {error.strerror}") from error
    return stamp


def _sha256(file: int, start: int, length: int) -> str:
    """Hash a range of a file, wherever its position is. A range that is not there whole gives another hash."""
    digest = hashlib.sha256()
    while length > 0 and (data := os.pread(file, min(length, _READ_BYTES), start)):
        digest.update(data)
        start, length = start + len(data), length - len(data)
    return digest.hexdigest()


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
    if staged.block_bytes < 1 or len(staged.sha256) != math.ceil(staged.num_bytes / staged.block_bytes):
        problems.append(f"{len(staged.sha256)} hashes of {staged.block_bytes} bytes for {staged.num_bytes}")
    return problems
