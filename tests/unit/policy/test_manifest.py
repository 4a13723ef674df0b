"""The contract of a checkpoint and the checks of a staged set of weights."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
from msgspec.structs import replace

from fd_async.errors import PreflightError, PushRefused
from fd_async.policy.manifest import Contract, check_file, check_manifest, read_contract
from fd_async.types import StagedWeights

SHAPES = {"model.embed_tokens.weight": [4, 2], "model.norm.weight": [2]}


def write_checkpoint(folder: Path, shapes: dict[str, list[int]] = SHAPES, *, tied: bool = True) -> Contract:
    """Write a checkpoint's config and a header with no data behind it."""
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tied}))
    return read_contract(str(folder))


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
        sha256=hashlib.sha256(data).hexdigest(),
        probe_ids=[1, 2],
        probe_logprobs=[-1.0],
    )


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
    )
    check_manifest(with_head, contract)


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
    ],
)
def test_a_manifest_that_differs_is_refused(
    tmp_path: Path, staged: StagedWeights, change: dict[str, object], reason: str
) -> None:
    """Each difference is refused with the tensor's name."""
    with pytest.raises(PushRefused, match=reason):
        check_manifest(replace(staged, **change), write_checkpoint(tmp_path))


def test_a_manifest_without_a_file_needs_no_offsets(tmp_path: Path, staged: StagedWeights) -> None:
    """Weights that travel by NCCL have names, types and shapes only."""
    check_manifest(replace(staged, offsets=[], num_bytes=0), write_checkpoint(tmp_path), in_file=False)


def test_a_missing_short_or_altered_file_is_refused(staged: StagedWeights) -> None:
    """The bytes are checked before the engine hears of them."""
    path = Path(staged.path)
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    with pytest.raises(PushRefused, match="39 bytes, the manifest says 40"):
        check_file(staged)
    path.write_bytes(data[:-1] + b"!")
    with pytest.raises(PushRefused, match="sha256"):
        check_file(staged)
    path.unlink()
    with pytest.raises(PushRefused, match="No such file"):
        check_file(staged)


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    """No contract, no engine."""
    with pytest.raises(PreflightError, match=r"no \*\.safetensors"):
        read_contract(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not a header")
    with pytest.raises(PreflightError, match="not a safetensors file"):
        read_contract(str(tmp_path))
