"""Weights leaving a rank: staged for a push, saved in a checkpoint, exported for serving.

Names are those of Hugging Face checkpoints; a tied lm_head appears once, as the embedding. Staged tensors start
at multiples of 64 bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from fd_async.algorithms.lm_head import token_logprobs
from fd_async.errors import CheckpointError
from fd_async.learner.batching import collate
from fd_async.learner.checkpoints import LearnerState, learner_folder, model_folder
from fd_async.learner.engine import Engine
from fd_async.learner.model import Policy, Teacher
from fd_async.types import StagedWeights

ALIGNMENT_BYTES = 64
_TOKENIZER_FILES = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "chat_template", "spiece")


def named_weights(policy: Policy) -> dict[str, Tensor]:
    """Return checkpoint names and tensors, shared storage once."""
    seen: set[int] = set()
    weights = {}
    for name, tensor in policy.lm.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            weights[name] = tensor
    return weights


@torch.no_grad()
def score(policy: Policy, token_ids: list[int], chunk_tokens: int) -> list[float]:
    """Return the policy's log-probs of token_ids[1:] given their prefixes, temperature 1."""
    rows = collate([token_ids[:1]], [token_ids[1:]], [[True] * (len(token_ids) - 1)], policy.device)
    was_training = policy.training
    policy.eval()
    result = policy(
        rows,
        lambda hidden_TH, head_VH: token_logprobs(
            hidden_TH, head_VH, rows.sampled_ids_T, temperature=1.0, chunk_tokens=chunk_tokens
        ),
    )
    policy.train(was_training)
    return result.logprobs_T.tolist()


def stage(policy: Policy, version: int, folder: Path, probe_ids: list[int], chunk_tokens: int) -> StagedWeights:
    """Write all weights to one flat file in `folder`, visible under its final name only when whole.

    Older staged files in the folder are removed; a reader that has one mapped keeps it.
    """
    path, partial = folder / f"weights-{version}.bin", folder / f"weights-{version}.tmp"
    names, dtypes, shapes, offsets = [], [], [], []
    digest, position = hashlib.sha256(), 0
    with partial.open("wb") as file:
        for name, tensor in named_weights(policy).items():
            flat = tensor.detach().cpu().contiguous().view(-1)
            data = flat.view(torch.uint8).numpy().data
            padding = bytes(-len(data) % ALIGNMENT_BYTES)
            names.append(name)
            dtypes.append(str(tensor.dtype).removeprefix("torch."))
            shapes.append(list(tensor.shape))
            offsets.append(position)
            for part in (data, padding):
                file.write(part)
                digest.update(part)
            position += len(data) + len(padding)
    os.replace(partial, path)
    for old in folder.glob("weights-*"):
        if old != path:
            old.unlink()
    return StagedWeights(
        version=version,
        path=str(path),
        names=names,
        dtypes=dtypes,
        shapes=shapes,
        offsets=offsets,
        num_bytes=position,
        sha256=digest.hexdigest(),
        probe_ids=probe_ids,
        probe_logprobs=score(policy, probe_ids, chunk_tokens),
    )


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
