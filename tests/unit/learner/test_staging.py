"""Weights written aside for the engine: layout, hashes, seal, and what is refused before anything is written."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fd_async.errors import LearnerError
from fd_async.learner import staging
from fd_async.learner.link import Send, Stage
from fd_async.learner.sending import Sending
from fd_async.types import StagedWeights
from tests.fakes.gathering import Whole
from tests.fakes.tiny_policy import tiny_policy

PROBE = [1, 2, 3, 4]
BUCKET = 4096


def stage(engine: Whole, folder: Path, version: int = 1, rank: int = 0) -> StagedWeights | None:
    request = Stage(version=version, probe_ids=PROBE, folder=str(folder))
    return staging.stage(engine, request, rank=rank, bucket_bytes=BUCKET, chunk_tokens=0)


def staged_by_rank_0(engine: Whole, folder: Path, version: int = 1) -> StagedWeights:
    staged = stage(engine, folder, version)
    assert staged is not None
    return staged


def tensors(staged: StagedWeights) -> dict[str, Tensor]:
    """Read the file back as its manifest says."""
    data = bytearray(Path(staged.path).read_bytes())
    read = {}
    for name, dtype, shape, offset in zip(staged.names, staged.dtypes, staged.shapes, staged.offsets, strict=True):
        kind: torch.dtype = getattr(torch, dtype)
        count = torch.Size(shape).numel()
        read[name] = torch.frombuffer(data, dtype=kind, count=count, offset=offset).view(shape)
    return read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_staged_file_is_what_its_manifest_says(
    tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every weight once, aligned, a tied head as the embedding; block hashes and seal fit."""
    monkeypatch.setattr(staging, "BLOCK_BYTES", 1000)
    policy = tiny_policy()
    policy.lm.to(dtype)
    staged = staged_by_rank_0(Whole(policy), tmp_path)
    read, parameters = tensors(staged), dict(policy.lm.named_parameters())
    assert read.keys() == parameters.keys()
    assert all(torch.equal(read[name], parameters[name]) for name in read)
    assert not any(offset % staging.ALIGNMENT_BYTES for offset in staged.offsets)
    data = Path(staged.path).read_bytes()
    assert len(data) == staged.num_bytes
    blocks = [data[start : start + 1000] for start in range(0, len(data), 1000)]
    assert staged.sha256 == [hashlib.sha256(block).hexdigest() for block in blocks]
    assert staged.seal == staged.checksum
    assert len(staged.probe_logprobs) == len(PROBE) - 1


def test_parameters_are_gathered_in_buckets_by_every_rank(tmp_path: Path) -> None:
    """No bucket is larger than the bound unless one parameter is, and ranks that write nothing gather the same."""
    engine, other = Whole(tiny_policy()), Whole(tiny_policy())
    staged_by_rank_0(engine, tmp_path)
    assert stage(other, tmp_path, rank=1) is None
    assert engine.buckets == other.buckets
    sizes = [[engine.shapes[name].numel() * 4 for name in bucket] for bucket in engine.buckets]
    assert all(sum(bucket) <= BUCKET or len(bucket) == 1 for bucket in sizes)
    assert len(sizes) > 2


def test_only_the_newest_staged_file_is_kept(tmp_path: Path) -> None:
    """An engine that has the older one mapped keeps it all the same."""
    engine = Whole(tiny_policy())
    staged_by_rank_0(engine, tmp_path, version=1)
    (tmp_path / "weights-0.tmp").write_text("left by a crash")
    newest = staged_by_rank_0(engine, tmp_path, version=2)
    assert [str(path) for path in tmp_path.iterdir()] == [newest.path]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_not_staged(tmp_path: Path, value: float) -> None:
    """The last good file stays, and every bucket is gathered to the end, since other ranks are in it."""
    engine = Whole(tiny_policy())
    good = staged_by_rank_0(engine, tmp_path)
    whole_run = list(engine.buckets)
    with torch.no_grad():
        engine.policy.lm.get_parameter("model.norm.weight")[3] = value
    engine.buckets.clear()
    with pytest.raises(LearnerError, match=r"model\.norm\.weight holds a value that is not finite"):
        stage(engine, tmp_path, version=2)
    assert engine.buckets == whole_run
    assert [str(path) for path in tmp_path.iterdir()] == [good.path]


def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows before anything is written, leaves nothing half-written, and names the key."""
    engine = Whole(tiny_policy())
    good = staged_by_rank_0(engine, tmp_path)

    def full(file: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LearnerError, match=r"No space left on device.*policy\.push_dir") as caught:
        stage(engine, tmp_path, version=2)
    assert "\n" not in str(caught.value)
    assert [str(path) for path in tmp_path.iterdir()] == [good.path]


def test_an_announcement_refuses_what_a_file_would_refuse() -> None:
    """Weights that travel without a file are looked at as well."""
    engine, sending = Whole(tiny_policy()), Sending()
    request = Stage(version=1, probe_ids=PROBE, folder="", address="nccl://127.0.0.1:1")
    announced = sending.announce(engine, request, rank=0, bucket_bytes=BUCKET, chunk_tokens=0)
    assert announced is not None
    assert announced.seal == announced.checksum
    assert (announced.offsets, announced.sha256) == ([], [])
    sending.forget()
    with torch.no_grad():
        engine.policy.lm.get_parameter("model.norm.weight")[3] = float("nan")
    with pytest.raises(LearnerError, match="not finite"):
        sending.announce(engine, request, rank=0, bucket_bytes=BUCKET, chunk_tokens=0)
    send = Send(version=1, address=request.address, sender="nowhere:Nothing", num_workers=1)
    with pytest.raises(LearnerError, match="announced"):
        sending.send(engine, send, rank=0, bucket_bytes=BUCKET)
