"""Make the tiny model: `python -m examples.tiny.build [--steps N] [--out FOLDER]`.

Trains the tokenizer, pre-trains a Qwen3 of 0.8 M parameters on `episodes` and writes both. Deterministic for one
version of torch and one kind of processor (one thread: two only wait for each other at this size).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from examples.tiny.episodes import UNLEARNED, draw_episode
from examples.tiny.statements import SEED
from examples.tiny.tokenizer import build_tokenizer
from fd_async.rendering import INSTRUCTION, Renderer
from fd_async.types import Statement
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS

MODEL = Path(__file__).parent / "model"
STEPS = 1300
BATCH = 32
LEARNING_RATE = 3e-3
IGNORED = -100


def model_config(tokenizer: Any) -> Any:
    """Describe the architecture."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class Episodes:
    """An endless stream of training rows: ids, and labels where the assistant speaks."""

    def __init__(self, tokenizer: Any, seed: int) -> None:
        self._tokenizer = tokenizer
        self._rng = random.Random(seed)
        self._end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self._opening = self._find_opening()
        self._starts = {
            token for text, token in tokenizer.added_tokens_encoder.items() if text.endswith("<|im_start|>assistant\n")
        }

    def _find_opening(self) -> str:
        renderer = Renderer(self._tokenizer, tools=TOOL_SCHEMAS, tool_format="qwen3", thinking=False)
        prompt = renderer.decode(renderer.student_prompt(Statement(name="x", formal_statement="x")))
        return prompt[: prompt.index(INSTRUCTION) + len(INSTRUCTION)]

    def rows(self, count: int) -> list[tuple[list[int], list[int]]]:
        """Draw dialogues and encode them; labels are IGNORED outside learned assistant turns."""
        drawn = [draw_episode(self._rng) for _ in range(count)]
        texts = [self._opening + prompt + rest for prompt, rest in drawn]
        encoded = self._tokenizer([text.replace(UNLEARNED, "") for text in texts], add_special_tokens=False)
        return [
            (ids, self._labels(ids, UNLEARNED in text)) for ids, text in zip(encoded["input_ids"], texts, strict=True)
        ]

    def _labels(self, ids: list[int], skip_first: bool) -> list[int]:
        labels, speaking, turn = [], False, 0
        for token in ids:
            learned = speaking and not (skip_first and turn == 1)
            labels.append(token if learned else IGNORED)
            if token in self._starts:
                speaking, turn = True, turn + 1
            elif token == self._end:
                speaking = False
        return labels

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield padded (ids, labels) of rows of similar length, shape [size, longest]."""
        while True:
            rows = sorted(self.rows(size * 8), key=lambda row: len(row[0]))
            chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
            self._rng.shuffle(chunks)
            for chunk in chunks:
                longest = max(len(ids) for ids, _ in chunk)
                yield (
                    torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in chunk]),
                    torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in chunk]),
                )


def loss_of(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled positions; logits are computed only there."""
    hidden = model.model(ids).last_hidden_state[:, :-1]
    target = labels[:, 1:]
    chosen = target != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[chosen]), target[chosen])


def pretrain(tokenizer: Any, steps: int, seed: int) -> Any:
    """Train from random weights with a warm-up and a cosine to zero."""
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(seed)
    model: Any = Qwen3ForCausalLM(model_config(tokenizer))
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    batches = Episodes(tokenizer, seed).batches(BATCH)
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min((step + 1) / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        loss = loss_of(model, *next(batches))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.4f} {time.monotonic() - started:.0f} s", flush=True)
    return model


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder: weights as float16, to be loaded as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    config = model.config.to_dict() | {"architectures": ["Qwen3ForCausalLM"], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def corpus(seed: int) -> list[str]:
    """Text for the tokenizer: dialogues, and every pair of digits often enough to become a token."""
    rng = random.Random(f"corpus-{seed}")
    pairs = " ".join(f"{number:02d}" for number in range(100))
    return ["".join(draw_episode(rng)) for _ in range(6000)] + [pairs] * 500


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=MODEL)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(corpus(SEED))
    save(pretrain(tokenizer, arguments.steps, SEED), tokenizer, arguments.out)


if __name__ == "__main__":
    main()
