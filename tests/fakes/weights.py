"""A tiny Qwen3 model with random weights, and weights of it staged as a learner does."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from fd_async.types import StagedWeights

BLOCK_BYTES = 1 << 20
PROBE = [5, 17, 23, 42, 99, 7, 300, 12]


def tiny_qwen3(folder: Path, **overrides: int) -> Qwen3ForCausalLM:
    """Make a 0.7 M-parameter model with tied embeddings, save it and return it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "head_dim": 32}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    model = Qwen3ForCausalLM(Qwen3Config(**(sizes | overrides), tie_word_embeddings=True)).eval()
    model.save_pretrained(folder)
    return model


def perturb(model: Qwen3ForCausalLM, scale: float, seed: int) -> None:
    """Add noise to every matrix, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter += scale * torch.randn(parameter.shape, generator=generator)


def logprobs(model: Qwen3ForCausalLM, ids: list[int], temperature: float = 1.0) -> list[float]:
    """Return the log-probs of `ids[1:]` given their prefixes."""
    with torch.no_grad():
        logits_TV = model(torch.tensor([ids])).logits[0, :-1].float() / temperature
    return logits_TV.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


def stage(model: Qwen3ForCausalLM, path: Path, version: int) -> StagedWeights:
    """Write all parameters to one flat file and describe it."""
    names, dtypes, shapes, offsets, chunks, end = [], [], [], [], [], 0
    for name, parameter in model.named_parameters():
        data = parameter.detach().contiguous().view(-1).view(torch.uint8)
        names.append(name)
        dtypes.append(str(parameter.dtype).removeprefix("torch."))
        shapes.append(list(parameter.shape))
        offsets.append(end)
        chunks.append(data)
        end += data.numel()
    flat = torch.cat(chunks).numpy().data
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(flat)
    os.replace(temporary, path)
    starts = range(0, end, BLOCK_BYTES)
    return StagedWeights(
        version=version,
        path=str(path),
        names=names,
        dtypes=dtypes,
        shapes=shapes,
        offsets=offsets,
        num_bytes=end,
        block_bytes=BLOCK_BYTES,
        sha256=[hashlib.sha256(flat[start : start + BLOCK_BYTES]).hexdigest() for start in starts],
        probe_ids=PROBE,
        probe_logprobs=logprobs(model, PROBE),
    ).sealed()
