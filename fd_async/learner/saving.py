"""Weights that stay: a checkpoint's part of this rank, and exports for serving."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from fd_async.errors import CheckpointError
from fd_async.learner.checkpoints import LearnerState, learner_folder, model_folder
from fd_async.learner.engine import Engine
from fd_async.learner.model import Policy, Teacher

_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template", "spiece")


def export(policy: Policy, source: str, folder: Path) -> None:
    """Write a Hugging Face folder and prove that it loads: every tensor equal, the tokenizer readable.

    Args:
        source: `model.path`, whose tokenizer files are copied byte for byte.

    Raises:
        CheckpointError: the written folder does not load or differs.
    """
    lm: Any = policy.lm
    lm.save_pretrained(folder)
    _copy_tokenizer(source, folder)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=policy.head_VH.dtype).state_dict()
        AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the exported model does not load ({error})") from error
    for name, tensor in lm.state_dict().items():
        if name not in loaded or not torch.equal(loaded[name], tensor.cpu()):
            raise CheckpointError(f"{folder}: {name} differs after loading; the disk or the export is broken")


def save_checkpoint(
    folder: Path, state: LearnerState, engine: Engine, teacher: Teacher | None, *, source: str, rank: int
) -> None:
    """Write this rank's part of a checkpoint into an existing folder. Collective."""
    learner = learner_folder(folder)
    learner.mkdir(exist_ok=True)
    engine.save(learner)
    torch.save(_random_state(), learner / f"rng_{rank}.pt")
    if rank == 0:
        export(engine.policy, source, model_folder(folder))
        if teacher is not None:
            save_file(
                {name: mu.cpu().contiguous() for name, mu in teacher.average.items()}, learner / "teacher.safetensors"
            )
        (learner / "learner.json").write_bytes(msgspec.json.encode(state))


def load_checkpoint(
    checkpoint: Path, found: LearnerState, expected: LearnerState, engine: Engine, teacher: Teacher | None, *, rank: int
) -> None:
    """Restore weights, optimizer, teacher and random state exactly. Collective.

    Raises:
        CheckpointError: it was written under another rank count, ZeRO stage, dtype or algorithm.
    """
    for key, name in (
        ("learner.ranks", "ranks"),
        ("learner.zero_stage", "zero_stage"),
        ("model.dtype", "dtype"),
        ("algorithm.type", "algorithm"),
    ):
        ours, theirs = getattr(expected, name), getattr(found, name)
        if ours != theirs:
            raise CheckpointError(
                f"{checkpoint}: written with {key} = {theirs!r}, the configuration says {ours!r}; "
                "resume with the same value, or start a new run with model.init_from"
            )
    learner = learner_folder(checkpoint)
    engine.load(learner)
    try:
        if teacher is not None:
            teacher.load(load_file(learner / "teacher.safetensors", device=str(teacher.policy.device)))
        _restore_random_state(torch.load(learner / f"rng_{rank}.pt", weights_only=True))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{learner}: incomplete checkpoint ({error})") from error


def _copy_tokenizer(source: str, folder: Path) -> None:
    config = cached_file(source, "config.json")
    if config is None:
        raise CheckpointError(f"model.path = {source!r}: no config.json, so no tokenizer to copy")
    for path in Path(config).parent.iterdir():
        if path.name.startswith(_TOKENIZER_FILES) and path.is_file():
            shutil.copyfile(path, folder / path.name)


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
