"""What the learner leaves in a checkpoint folder, and how to find it again. No torch.

    step_000200/model/        Hugging Face folder: config, safetensors, tokenizer (init_from, export)
    step_000200/learner/      DeepSpeed state, teacher.safetensors (float32 EMA), rng_RANK.pt, learner.json

Checkpoint folders appear by an atomic rename, so one that bears a `step_NUMBER` name is complete.
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from fd_async.errors import CheckpointError

_STEP = re.compile(r"step_(\d+)")


class LearnerState(msgspec.Struct, frozen=True, kw_only=True):
    """`learner.json`: what a resume must match."""

    step: int
    ranks: int
    zero_stage: int
    dtype: str
    algorithm: str
    origin: str = ""
    """Checkpoint that the run started from (absolute); empty for `model.path`. GRPO's reference on every resume."""


def model_folder(checkpoint: Path) -> Path:
    """Return the Hugging Face folder inside a checkpoint."""
    return checkpoint / "model"


def learner_folder(checkpoint: Path) -> Path:
    """Return the folder with optimizer, teacher and random state inside a checkpoint."""
    return checkpoint / "learner"


def newest_checkpoint(run_dir: Path) -> Path | None:
    """Return the checkpoint with the highest step under `RUN/checkpoints`, if there is one."""
    found = [
        (int(match[1]), path)
        for path in (run_dir / "checkpoints").glob("step_*")
        if (match := _STEP.fullmatch(path.name)) and path.is_dir()
    ]
    return max(found)[1] if found else None


def resolve_checkpoint(text: str, *, key: str = "model.init_from") -> Path:
    """Turn `runs/NAME` (newest) or a checkpoint folder into the checkpoint folder.

    Raises:
        CheckpointError: nothing there, or it holds no model; names the config key.
    """
    path = Path(text)
    checkpoint = path if model_folder(path).is_dir() else newest_checkpoint(path)
    if checkpoint is None:
        raise CheckpointError(
            f"{key} = {text!r}: neither a checkpoint (a folder with model/) nor a run with checkpoints/step_*"
        )
    if not (model_folder(checkpoint) / "config.json").is_file():
        raise CheckpointError(f"{key} = {text!r}: {model_folder(checkpoint)} has no config.json; is it complete?")
    return checkpoint


def check_model_folder(folder: Path) -> None:
    """Load a Hugging Face folder once, as whoever serves it will.

    Raises:
        CheckpointError: weights, configuration or tokenizer do not load.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        AutoModelForCausalLM.from_pretrained(folder)
        AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: the model does not load: {error}") from error


def read_state(checkpoint: Path) -> LearnerState:
    """Read `learner.json`.

    Raises:
        CheckpointError: it is missing or malformed.
    """
    path = learner_folder(checkpoint) / "learner.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=LearnerState)
    except (OSError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{path}: cannot read the learner's state ({error})") from error
