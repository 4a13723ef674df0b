"""What is done with a finished model: copy it for other tools."""

from __future__ import annotations

import shutil
from pathlib import Path

from fd_async.errors import CheckpointError
from fd_async.learner.checkpoints import check_model_folder, find_checkpoint, model_folder


def export(run_dir: Path, step: int | None, to: Path) -> Path:
    """Copy the weights of a checkpoint as a Hugging Face folder and load it once as proof.

    Raises:
        CheckpointError: no such checkpoint, `to` is no empty folder or cannot be written, or the result does not load.
    """
    checkpoint = find_checkpoint(run_dir / "checkpoints", step)
    try:
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise CheckpointError(f"{to}: is no empty folder; name a new one with --to")
        shutil.copytree(model_folder(checkpoint), to, dirs_exist_ok=True)
    except OSError as error:
        # `copytree` gathers what failed: (from, to, why) of each file.
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        raise CheckpointError(f"{to}: cannot write the export: {reason}; name another folder with --to") from error
    check_model_folder(to)
    return to
