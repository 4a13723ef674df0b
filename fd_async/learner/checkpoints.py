"""Where checkpoints lie, what is in them, and how to find one again. No torch.

    RUN/checkpoints/step_000200/manifest.json        step, configuration hash, every file with its size
    RUN/checkpoints/step_000200/model/               Hugging Face folder: config, safetensors, tokenizer
    RUN/checkpoints/step_000200/learner/             learner.json, shards_RANK and rng_RANK, see `store`
    RUN/checkpoints/latest                           one line: the folder's name

A folder is written under another name and renamed when its manifest is on disk, so one without a manifest that fits
its files is damaged. The pipeline writes manifests; the ranks write the two folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fd_async.errors import CheckpointError


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a complete checkpoint holds."""

    step: int
    algorithm: str
    ranks: int
    config_hash: str
    written: float
    """Unix time, seconds."""
    files: dict[str, int]
    """Path inside the folder -> bytes."""


class LearnerState(msgspec.Struct, frozen=True, kw_only=True):
    """`learner.json`: what a resume must match, and what is no tensor."""

    num_updates: int
    """Optimizer updates; fewer than the manifest's steps where one was refused."""
    num_shards: int
    """Files of fragments: one per rank, or one alone where every rank holds everything (ZeRO 0)."""
    ranks: int
    zero_stage: int
    dtype: str
    algorithm: str
    origin: str = ""
    """Checkpoint that the run started from, where it lay then (absolute); empty for `model.path`. GRPO's reference on
    every resume, see `find_again`."""
    origin_id: str = ""
    """Its `checkpoint_id`; empty in checkpoints of earlier versions."""
    objective: dict[str, float] = {}
    """Running numbers of the objective, such as the mean that gates the teacher."""


def model_folder(checkpoint: Path) -> Path:
    """Return the Hugging Face folder inside a checkpoint."""
    return checkpoint / "model"


def learner_folder(checkpoint: Path) -> Path:
    """Return the folder with optimizer, teacher and random state inside a checkpoint."""
    return checkpoint / "learner"


def checkpoint_name(step: int) -> str:
    """Return the name of a step's folder."""
    return f"step_{step:06d}"


def read_manifest(folder: Path) -> Manifest:
    """Read and verify a checkpoint folder.

    Raises:
        CheckpointError: no manifest, or a file is missing or has another size (a torn write).
    """
    try:
        manifest = msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{folder}: not a complete checkpoint (manifest.json: {error})") from error
    for name, size in manifest.files.items():
        path = folder / name
        if _size(path) != size:
            raise CheckpointError(f"{folder}: {name} is missing or has the wrong size; the checkpoint is damaged")
    return manifest


def _size(path: Path) -> int:
    """Return the bytes of a file, -1 where there is none; it may be pruned while it is looked at."""
    try:
        return path.stat().st_size if path.is_file() else -1
    except OSError:
        return -1


def check_arrived(folder: Path, files: Mapping[str, int]) -> None:
    """Look for what the ranks, maybe on other nodes, say they wrote.

    Raises:
        CheckpointError: a file is not there or has another size.
    """
    for name, size in files.items():
        path = folder / name
        if _size(path) != size:
            raise CheckpointError(
                f"{path}: a learner rank wrote {size} bytes, which are not here; run.dir must lie on a disk that all "
                "nodes share"
            )


def list_folders(root: Path) -> list[Path]:
    """Return the folders that bear the name of a checkpoint, complete or damaged."""
    return sorted(root.glob("step_*"))


def list_checkpoints(root: Path) -> dict[int, Path]:
    """Return step -> folder of every complete checkpoint under `root`, oldest first."""
    found: dict[int, Path] = {}
    for folder in list_folders(root):
        try:
            found[read_manifest(folder).step] = folder
        except CheckpointError:
            continue  # a torn folder is not a checkpoint; `find_checkpoint` says so when it is the one asked for
    return dict(sorted(found.items()))


def find_checkpoint(root: Path, step: int | None = None) -> Path:
    """Return the folder of `step`, or of the newest complete checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    if step is not None:
        folder = root / checkpoint_name(step)
        read_manifest(folder)
        return folder
    found = list_checkpoints(root)
    if not found:
        damaged = ", ".join(folder.name for folder in list_folders(root))
        raise CheckpointError(f"{root}: holds no complete checkpoint" + (f"; damaged: {damaged}" if damaged else ""))
    return found[max(found)]


def resolve_init_from(text: str) -> Path:
    """Return the checkpoint that a run folder (its newest) or a checkpoint folder stands for, as an absolute path.

    Raises:
        CheckpointError: nothing there, or it is damaged.
    """
    path = Path(text).absolute()
    if (path / "manifest.json").is_file():
        read_manifest(path)
        return path
    if (path / "checkpoints").is_dir():
        return find_checkpoint(path / "checkpoints")
    raise CheckpointError(
        f"model.init_from = {text!r}: neither a run folder with checkpoints/ nor a complete checkpoint folder; "
        "run the configuration that makes it first"
    )


def checkpoint_id(folder: Path) -> str:
    """Return what tells a checkpoint from all others, wherever it lies; empty where there is none.

    A hash of its manifest, which has the time at which it was written.
    """
    try:
        return hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


def find_again(origin: str, identity: str, *, run_dir: Path, named: str = "") -> Path:
    """Return where the checkpoint lies now that a run began with: the folder of all runs may have moved.

    It is looked for where it was, where `model.init_from` says, and beside the run under the names that it had.

    Args:
        origin: its folder when the run began.
        identity: its `checkpoint_id`; its names decide where nobody noted it.
        run_dir: of the run that began with it.
        named: `model.init_from` of today, a checkpoint or a run.

    Raises:
        CheckpointError: it is in none of these places.
    """
    names, said = Path(origin).parts[-3:], Path(named or origin)
    if (said / "checkpoints").is_dir():
        said = said / "checkpoints" / names[-1]
    found: list[str] = []
    beside = run_dir.absolute().parent.joinpath(*names)
    for place in dict.fromkeys((Path(origin), said.absolute(), beside)):
        if not (place / "manifest.json").is_file():
            found.append(f"there is none at {place}")
            continue
        try:
            read_manifest(place)
        except CheckpointError as error:
            found.append(str(error))
            continue
        if checkpoint_id(place) == identity if identity else place.parts[-3:] == names:
            return place
        found.append(f"the one at {place} is not it")
    raise CheckpointError(
        f"model.init_from: {run_dir} began with the checkpoint {origin} and needs it again: {'; '.join(found)}. Put it "
        "back, say where it lies now with --set model.init_from=FOLDER, or start a new run with --run NAME"
    )


def is_start(text: str, checkpoint: str) -> bool:
    """Say whether a checkpoint folder is what `model.init_from` names: itself, or one of the run folder's."""
    named, folder = Path(text).absolute(), Path(checkpoint).absolute()
    return folder == named or folder.parent == named / "checkpoints"


def read_state(checkpoint: Path) -> LearnerState:
    """Read `learner.json`.

    Raises:
        CheckpointError: it is missing or malformed.
    """
    path = learner_folder(checkpoint) / "learner.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=LearnerState)
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(
            f"{path}: cannot read the learner's state ({error}); another version of fd_async may have written it. "
            "Its weights can still start a new run with model.init_from"
        ) from error


def check_model_folder(folder: Path) -> None:
    """Load a Hugging Face folder once, as whoever serves it will, and compare every tensor with its file.

    Raises:
        CheckpointError: weights, configuration or tokenizer do not load, or tensors differ.
    """
    from fd_async.learner.export import check_export

    check_export(folder)
