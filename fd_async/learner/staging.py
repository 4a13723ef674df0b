"""Weights on their way to the engine: gathered bucket by bucket, checked, staged in one flat file, described.

Names are those of Hugging Face checkpoints, a tied lm_head once, as the embedding. Staged tensors start at multiples
of 64 bytes. All ranks take part in gathering and in scoring the probe; rank 0 writes, and whatever goes wrong for it
is raised only after the last thing that the ranks do together.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fd_async.algorithms.lm_head import token_logprobs
from fd_async.errors import LearnerError
from fd_async.learner.batching import collate
from fd_async.learner.export import Gathering, weight_sizes, whole_weights
from fd_async.learner.link import Stage
from fd_async.learner.model import Policy
from fd_async.types import StagedWeights

ALIGNMENT_BYTES = 64
BLOCK_BYTES = 64 << 20
"""The file is hashed in blocks of this size, several at once, while it is written."""
_MAX_THREADS = 8
_READ_BYTES = 1 << 20
_WRITE_BYTES = 1 << 30


class Row(NamedTuple):
    """One tensor of a staged file."""

    name: str
    dtype: str
    shape: list[int]
    offset: int


@torch.no_grad()
def score(policy: Policy, token_ids: list[int], chunk_tokens: int) -> list[float]:
    """Return the policy's log-probs of token_ids[1:] given their prefixes, temperature 1. Collective under ZeRO 3."""
    rows = collate([token_ids[:1]], [token_ids[1:]], [[True] * (len(token_ids) - 1)], policy.device)
    was_training = policy.training
    policy.eval()
    result = policy(
        rows,
        lambda hidden_TH, head: token_logprobs(
            hidden_TH, head, rows.sampled_ids_T, temperature=1.0, chunk_tokens=chunk_tokens
        ),
    )
    policy.train(was_training)
    return result.logprobs_T.tolist()


def stage(
    engine: Gathering, request: Stage, *, rank: int, bucket_bytes: int, chunk_tokens: int
) -> StagedWeights | None:
    """Write all weights to one flat file in the folder, visible under its final name only when whole.

    Older staged files in the folder are removed; a reader that has one mapped keeps it. Collective.

    Args:
        bucket_bytes: whole parameters that exist at once.

    Returns:
        The manifest on rank 0, None on the others.

    Raises:
        LearnerError: a weight is not finite, or the folder has no room.
    """
    logprobs = score(engine.policy, request.probe_ids, chunk_tokens)
    with _all_of(whole_weights(engine, bucket_bytes)) as weights:
        if rank:
            return None
        folder = Path(request.folder)
        path, partial = folder / f"weights-{request.version}.bin", folder / f"weights-{request.version}.tmp"
        try:
            rows, num_bytes, hashes = _write(partial, weights, weight_sizes(engine), request.version)
            os.replace(partial, path)
        except OSError as error:
            raise LearnerError(
                f"cannot stage weight version {request.version} in {folder}: {error.strerror}; "
                'make room there, or name another folder with policy.push = "file" and policy.push_dir'
            ) from error
        finally:
            partial.unlink(missing_ok=True)
        for old in folder.glob("weights-*"):
            if old != path:
                old.unlink()
    return describe(request, rows, num_bytes, hashes, logprobs, str(path))


def describe(
    request: Stage, rows: list[Row], num_bytes: int, hashes: list[str], logprobs: list[float], path: str
) -> StagedWeights:
    """Make the sealed manifest of weights; without `hashes` they are in no file."""
    return StagedWeights(
        version=request.version,
        path=path,
        names=[row.name for row in rows],
        dtypes=[row.dtype for row in rows],
        shapes=[row.shape for row in rows],
        offsets=[row.offset for row in rows] if hashes else [],
        num_bytes=num_bytes,
        block_bytes=BLOCK_BYTES if hashes else 0,
        sha256=hashes,
        probe_ids=request.probe_ids,
        probe_logprobs=logprobs,
    ).sealed()


def require_finite(name: str, tensor: Tensor, version: int) -> None:
    """Refuse weights that would make the engine say nothing but nonsense.

    Raises:
        LearnerError: there is an infinity or a NaN.
    """
    if tensor.numel() and not all(bound.isfinite() for bound in tensor.aminmax()):
        raise LearnerError(
            f"weight version {version}: {name} holds a value that is not finite; nothing was staged, "
            "go back to the last checkpoint"
        )


@contextmanager
def _all_of(weights: Iterator[tuple[str, Tensor]]) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """Take every tensor, wanted or not, also when the block is left early: other ranks gather them with this one."""
    try:
        yield weights
    finally:
        for _ in weights:
            pass


def _write(
    path: Path, weights: Iterable[tuple[str, Tensor]], sizes: Mapping[str, int], version: int
) -> tuple[list[Row], int, list[str]]:
    """Write the file, hashing the blocks behind the writer; return its rows, length and hashes."""
    num_bytes = sum(map(_padded, sizes.values()))
    rows: list[Row] = []
    hashes: list[Future[str]] = []
    position = 0
    with path.open("w+b") as file, ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        os.posix_fallocate(file.fileno(), 0, num_bytes)  # a full disk shows here, before gigabytes are written
        for name, tensor in weights:
            require_finite(name, tensor, version)
            dtype = str(tensor.dtype).removeprefix("torch.")
            rows.append(Row(name, dtype, list(tensor.shape), position))
            flat = tensor.detach().cpu().contiguous().view(-1)
            _write_at(file.fileno(), flat.view(torch.uint8).numpy().data, position)
            position += _padded(tensor.nbytes)
            while len(hashes) < (math.ceil if position == num_bytes else int)(position / BLOCK_BYTES):
                start = len(hashes) * BLOCK_BYTES
                hashes.append(pool.submit(_sha256, file.fileno(), start, min(BLOCK_BYTES, num_bytes - start)))
        if position != num_bytes:
            raise LearnerError(f"staged {position} bytes of weight version {version}, expected {num_bytes}")
        return rows, num_bytes, [future.result() for future in hashes]


def _padded(num_bytes: int) -> int:
    return num_bytes + -num_bytes % ALIGNMENT_BYTES


def _write_at(file: int, data: memoryview, position: int) -> None:
    while data:
        written = os.pwrite(file, data[:_WRITE_BYTES], position)
        data, position = data[written:], position + written


def _sha256(file: int, start: int, length: int) -> str:
    digest = hashlib.sha256()
    while length > 0 and (data := os.pread(file, min(length, _READ_BYTES), start)):
        digest.update(data)
        start, length = start + len(data), length - len(data)
    return digest.hexdigest()
