"""Weights on their way to the engine: named as in Hugging Face checkpoints, scored with a probe, staged in a file.

A tied lm_head appears once, as the embedding. Staged tensors start at multiples of 64 bytes.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor

from fd_async.algorithms.lm_head import token_logprobs
from fd_async.learner.batching import collate
from fd_async.learner.model import Policy
from fd_async.types import StagedWeights

ALIGNMENT_BYTES = 64


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
