"""The checks of a staged set of weights: the manifest against the contract and its seal, the file against it."""

from __future__ import annotations

import hashlib
import math
import threading
from pathlib import Path

import pytest
from msgspec.structs import replace

from fd_async.errors import PushRefused
from fd_async.policy.manifest import check_file, check_manifest
from fd_async.types import StagedWeights
from tests.unit.policy.test_contract import SHAPES, write_checkpoint

BLOCK = 16


@pytest.fixture
def staged(tmp_path: Path) -> StagedWeights:
    """Stage weights that fit SHAPES."""
    data = bytes(range(40))
    (tmp_path / "weights.bin").write_bytes(data)
    return StagedWeights(
        version=1,
        path=str(tmp_path / "weights.bin"),
        names=list(SHAPES),
        dtypes=["float32", "float32"],
        shapes=list(SHAPES.values()),
        offsets=[0, 32],
        num_bytes=40,
        block_bytes=BLOCK,
        sha256=[hashlib.sha256(data[start : start + BLOCK]).hexdigest() for start in range(0, 40, BLOCK)],
        probe_ids=[1, 2],
        probe_logprobs=[-1.0],
    ).sealed()


def test_a_fitting_manifest_and_file_are_accepted(tmp_path: Path, staged: StagedWeights) -> None:
    """The happy path raises nothing and identifies the file."""
    check_manifest(staged, write_checkpoint(tmp_path))
    assert check_file(staged).size == 40


def test_a_tied_head_may_be_pushed_or_left_out(tmp_path: Path, staged: StagedWeights) -> None:
    """Learners name the tied output matrix or do not; both are the same weights."""
    contract = write_checkpoint(tmp_path)
    with_head = replace(
        staged,
        names=[*staged.names, "lm_head.weight"],
        dtypes=["float32"] * 3,
        shapes=[*staged.shapes, [4, 2]],
        offsets=[0, 32, 40],
        num_bytes=72,
        sha256=[*staged.sha256, "", ""],
    )
    check_manifest(with_head.sealed(), contract)


def test_an_untied_head_is_required(tmp_path: Path, staged: StagedWeights) -> None:
    """Without tying, a push without the output matrix would leave the old one."""
    contract = write_checkpoint(tmp_path, SHAPES | {"lm_head.weight": [4, 2]}, tied=False)
    with pytest.raises(PushRefused, match=r"lm_head\.weight is missing"):
        check_manifest(staged, contract)


def test_parts_that_are_not_trained_may_be_left_out(tmp_path: Path, staged: StagedWeights) -> None:
    """A Qwen3.5 checkpoint holds a vision tower and a draft head."""
    shapes = SHAPES | {"model.visual.patch.weight": [3], "mtp.norm.weight": [2]}
    check_manifest(staged, write_checkpoint(tmp_path, shapes))


def test_a_text_model_may_name_its_tensors_without_the_larger_one(tmp_path: Path, staged: StagedWeights) -> None:
    """Qwen3.5 checkpoints hold the text model as `language_model`; a text-only learner leaves that part out."""
    shapes = {name.replace("model.", "model.language_model."): shape for name, shape in SHAPES.items()}
    contract = write_checkpoint(tmp_path, shapes)
    check_manifest(staged, contract)
    assert [contract.name(name) for name in staged.names] == list(shapes)
    with pytest.raises(PushRefused, match=r"model\.language_model\.norm\.weight is missing"):
        check_manifest(replace(staged, names=["model.embed_tokens.weight", "model.norm.bias"]), contract)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"names": ["model.embed_tokens.weight", "model.norm.bias"]}, r"model\.norm\.weight is missing"),
        ({"names": ["model.embed_tokens.weight", "model.norm.bias"]}, r"model\.norm\.bias is not in the checkpoint"),
        ({"names": ["model.norm.weight", "model.norm.weight"]}, "appears twice"),
        ({"shapes": [[2, 4], [2]]}, r"has shape \[2, 4\], the checkpoint \[4, 2\]"),
        ({"dtypes": ["float32", "uint8"]}, "has dtype uint8"),
        ({"offsets": [0, 28]}, "overlaps"),
        ({"offsets": [0, 33]}, "not a multiple of 4"),
        ({"offsets": [0, 36]}, "tensors end at byte 44, the file has 40"),
        ({"offsets": [0]}, "differ in length"),
        ({"sha256": []}, "0 hashes of 16 bytes for 40"),
        ({"block_bytes": 0}, "3 hashes of 0 bytes for 40"),
    ],
)
def test_a_manifest_that_differs_is_refused(
    tmp_path: Path, staged: StagedWeights, change: dict[str, object], reason: str
) -> None:
    """Each difference is refused with the tensor's name."""
    with pytest.raises(PushRefused, match=reason):
        check_manifest(replace(staged, **change), write_checkpoint(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"names": list(reversed(SHAPES)), "shapes": list(reversed(SHAPES.values())), "offsets": [32, 0]},
        {"offsets": [0, 36], "num_bytes": 44},
        {"sha256": ["0" * 64] * 3},
        {"probe_ids": [1, 3]},
        {"probe_logprobs": [math.nan]},
        {"seal": ""},
    ],
)
def test_a_manifest_altered_on_its_way_is_refused(
    tmp_path: Path, staged: StagedWeights, change: dict[str, object]
) -> None:
    """Rows that still fit the contract, but are not what the learner wrote, do not fit the seal."""
    contract = write_checkpoint(tmp_path)
    altered = replace(staged, **change)
    with pytest.raises(PushRefused, match="seal"):
        check_manifest(altered, contract)
    if change.keys() != {"seal"}:
        check_manifest(altered.sealed(), contract)


def test_a_manifest_without_a_file_needs_no_offsets(tmp_path: Path, staged: StagedWeights) -> None:
    """Weights that travel by NCCL have names, types and shapes only."""
    sent = replace(staged, offsets=[], num_bytes=0, block_bytes=0, sha256=[])
    check_manifest(sent.sealed(), write_checkpoint(tmp_path), in_file=False)


def test_a_missing_or_short_file_is_refused(staged: StagedWeights) -> None:
    """The bytes are checked before the engine hears of them."""
    path = Path(staged.path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PushRefused, match="39 bytes, the manifest says 40"):
        check_file(staged)
    path.unlink()
    with pytest.raises(PushRefused, match="No such file"):
        check_file(staged)


def test_a_flipped_bit_anywhere_is_refused(staged: StagedWeights) -> None:
    """Whatever block it is in, the last and shorter one included."""
    path = Path(staged.path)
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(PushRefused, match=f"from byte {position // BLOCK * BLOCK} on is not the manifest's"):
            check_file(staged)
    path.write_bytes(data)
    check_file(staged)


def test_two_blocks_exchanged_are_refused(staged: StagedWeights) -> None:
    """Each block has its own place."""
    data = Path(staged.path).read_bytes()
    Path(staged.path).write_bytes(data[BLOCK : 2 * BLOCK] + data[:BLOCK] + data[2 * BLOCK :])
    with pytest.raises(PushRefused, match="from byte 0 on"):
        check_file(staged)


def test_a_check_that_nobody_waits_for_ends(staged: StagedWeights) -> None:
    """The deadline has passed: the thread does not read gigabytes to the end."""
    stop = threading.Event()
    stop.set()
    with pytest.raises(PushRefused, match="given up"):
        check_file(staged, stop)
