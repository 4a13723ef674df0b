"""A random Qwen3 and a random Qwen3.5 of a few thousand weights, samples and a configuration for them."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig, Qwen3Config, Qwen3ForCausalLM

from fd_async.config.schema import Algorithm, Data, Learner, Model, RunConfig
from fd_async.learner.model import Policy
from fd_async.types import TrainingSample

VOCAB = 64


def tiny_policy(seed: int = 0) -> Policy:
    """Return a two-layer model with tied embeddings; equal seeds give equal weights."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return Policy(Qwen3ForCausalLM(config))


def tiny_hybrid(seed: int = 0) -> Policy:
    """Return a model of three gated delta layers and one of full attention; equal seeds give equal weights."""
    torch.manual_seed(seed)
    config = Qwen3_5TextConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    return Policy(Qwen3_5ForCausalLM(config))


def tiny_samples(count: int, seed: int = 0) -> list[TrainingSample]:
    """Return samples of different lengths with tool tokens inside and feedback in the teacher's prompt."""
    rng = random.Random(seed)
    samples = []
    for index in range(count):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(3, 9))]
        hint = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 6))]
        completion = [rng.randrange(VOCAB) for _ in range(rng.randint(4, 20))]
        samples.append(
            TrainingSample(
                rollout_id=f"train-{index:07d}-00",
                prompt_ids=prompt,
                completion_ids=completion,
                sampled_mask=[position % 5 != 3 for position in range(len(completion))],
                logprobs=[-4.0 if position % 5 != 3 else 0.0 for position in range(len(completion))],
                teacher_prompt_ids=[*prompt[:2], *hint, *prompt[2:]],
                advantage=rng.choice([-1.0, 1.0]),
                age=index % 2,
            )
        )
    return samples


def tiny_config(path: str = "tiny", **tables: dict[str, Any]) -> RunConfig:
    """Return a float32 configuration; `learner=`, `algorithm=` and `model=` override fields."""
    learner = {"lr": 1e-3, "warmup_steps": 0, "cpu_threads": 1} | tables.get("learner", {})
    return RunConfig(
        model=Model(**({"path": path, "dtype": "float32"} | tables.get("model", {}))),
        data=Data(train="train.jsonl"),
        learner=Learner(**learner),
        algorithm=Algorithm(**tables.get("algorithm", {})),
    )
