"""Checkpoints on disk: one folder, written aside and renamed, with a manifest; `latest` is renamed last.

checkpoints/step_000050/manifest.json     step, configuration hash, every file with its size
checkpoints/step_000050/...               what the learner saved (state of every rank, `model/` as Hugging Face files)
checkpoints/latest                        one line: the folder's name
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from fd_async.errors import CheckpointError


class Manifest(Struct, frozen=True, kw_only=True):
    """What a complete checkpoint holds."""

    step: int
    algorithm: str
    ranks: int
    config_hash: str
    written: float
    """Unix time, seconds."""
    files: dict[str, int]
    """Path inside the folder -> bytes."""


def checkpoint_name(step: int) -> str:
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
        if not path.is_file() or path.stat().st_size != size:
            raise CheckpointError(f"{folder}: {name} is missing or has the wrong size; the checkpoint is damaged")
    return manifest


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
    return found


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


def forget_after(root: Path, step: int) -> None:
    """Remove the checkpoints after `step`: a resume from there makes another history."""
    for later, folder in list_checkpoints(root).items():
        if later > step:
            shutil.rmtree(folder)


def resolve_init_from(text: str) -> Path:
    """Return the checkpoint folder that `model.init_from` names: a run folder (newest) or a checkpoint folder."""
    path = Path(text)
    if (path / "manifest.json").is_file():
        read_manifest(path)
        return path
    if (path / "checkpoints").is_dir():
        return find_checkpoint(path / "checkpoints")
    raise CheckpointError(
        f"model.init_from = {text!r}: neither a run folder with checkpoints/ nor a checkpoint folder; "
        "run the configuration that makes it first"
    )


async def write_checkpoint(
    root: Path,
    step: int,
    *,
    algorithm: str,
    ranks: int,
    config_hash: str,
    keep_last: int,
    min_free_gib: float,
    save: Callable[[Path], Awaitable[None]],
) -> Path:
    """Write a checkpoint aside, verify, rename, then prune old ones. A failure leaves the earlier ones untouched.

    A complete checkpoint of the same step is kept as it is: a kill while it is replaced could cost the only one.

    Raises:
        CheckpointError: too little disk, or writing failed.
    """
    final = root / checkpoint_name(step)
    aside = root / f".{final.name}.tmp"
    try:
        if not await anyio.to_thread.run_sync(_prepare, final, aside, min_free_gib):
            return final
        try:
            await save(aside)
            manifest = Manifest(
                step=step, algorithm=algorithm, ranks=ranks, config_hash=config_hash, written=time.time(), files={}
            )
            await anyio.to_thread.run_sync(_publish, final, aside, manifest, keep_last)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: shutil.rmtree(aside, ignore_errors=True))
    except OSError as error:
        raise CheckpointError(f"{final}: cannot write the checkpoint: {error}") from error
    return final


def _prepare(final: Path, aside: Path, min_free_gib: float) -> bool:
    """Make the folder to write into; False when the checkpoint is there already."""
    root = final.parent
    if final.is_dir():
        with suppress(CheckpointError):  # a damaged one is replaced
            read_manifest(final)
            return False
    free_gib = shutil.disk_usage(root).free / 2**30
    if free_gib < min_free_gib:
        raise CheckpointError(
            f"{root}: {free_gib:.1f} GiB free, checkpoint.min_free_gib asks for {min_free_gib:g}; free some disk"
        )
    for left_by_a_kill in root.glob(".step_*.tmp"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)
    aside.mkdir(parents=True)
    return True


def _publish(final: Path, aside: Path, manifest: Manifest, keep_last: int) -> None:
    """Sync what was saved, list it, rename the folder, prune."""
    root, paths = final.parent, sorted(aside.rglob("*"))
    files = {str(path.relative_to(aside)): path.stat().st_size for path in paths if path.is_file()}
    listing = msgspec.json.encode(msgspec.structs.replace(manifest, files=files))
    (aside / "manifest.json").write_bytes(msgspec.json.format(listing))
    for path in (*paths, aside / "manifest.json", aside):
        _fsync(path)
    shutil.rmtree(final, ignore_errors=True)
    aside.replace(final)
    _fsync(root)
    pointer = root / ".latest.tmp"
    pointer.write_text(final.name + "\n")
    pointer.replace(root / "latest")
    found = list_checkpoints(root)
    for old in sorted(found)[:-keep_last]:
        shutil.rmtree(found[old], ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
