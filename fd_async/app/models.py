"""What is done with a finished model: copy it for other tools."""

from __future__ import annotations

import shutil
from pathlib import Path

from fd_async.errors import CheckpointError
from fd_async.learner.checkpoints import check_model_folder, find_checkpoint, model_folder


def export(run_dir: Path, step: int | None, to: Path) -> Path:
    """Copy the weights of a checkpoint as a Hugging Face folder and load it once as proof.

    Raises:
        CheckpointError: no such checkpoint, `to` is not empty, or the result does not load.
    """
    checkpoint = find_checkpoint(run_dir / "checkpoints", step)
    if to.exists() and any(to.iterdir()):
        raise CheckpointError(f"{to}: is not empty; name a new folder with --to")
    shutil.copytree(model_folder(checkpoint), to, dirs_exist_ok=True)
    check_model_folder(to)
    return to
