"""Loading checkpoints into a policy, and the head that turns hidden states into the model's own logits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from fd_async.algorithms.lm_head import logits_of
from fd_async.errors import PreflightError
from fd_async.learner.batching import MicroBatch
from fd_async.learner.model import Policy, load_policy
from tests.fakes.tiny_policy import VOCAB, tiny_hybrid, tiny_policy, tiny_samples
from tests.fakes.tiny_qwen35 import tiny_qwen35

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("make", "scale", "softcap"),
    [
        (lambda: tiny_policy().lm, 1.0, 0.0),
        (lambda: tiny_hybrid().lm, 1.0, 0.0),
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=2.0)), 1.0, 2.0),
        (lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.25)), 0.25, 0.0),
        (lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0)), 0.125, 0.0),
    ],
    ids=["qwen3", "qwen3_5", "gemma2", "cohere", "granite"],
)
@torch.no_grad()
def test_the_head_gives_the_models_own_logits(make: Callable[[], Any], scale: float, softcap: float) -> None:
    """Scale and soft-cap of the configuration are applied as the model's `forward` applies them."""
    torch.manual_seed(0)
    policy = Policy(make())
    rows = MicroBatch(tiny_samples(3), CPU).student()
    ours: Tensor = policy(rows, logits_of)
    theirs = policy.lm(input_ids=rows.input_ids_BL).logits.flatten(0, 1)[rows.rows_T]
    assert (policy.head.scale, policy.head.softcap) == (scale, softcap)
    assert (ours - theirs).abs().max() < 1e-5
    assert theirs.abs().max() > 0.1


@pytest.mark.parametrize("tied", [True, False])
def test_the_text_model_of_a_multimodal_checkpoint_loads(tmp_path: Path, tied: bool) -> None:
    """Names are the text model's own, values the checkpoint's; vision and multi-token prediction stay out."""
    stored = load_file(tiny_qwen35(tmp_path / "model", tied=tied) / "model.safetensors")
    policy = load_policy(tmp_path / "model", "bfloat16", CPU)
    loaded = dict(policy.lm.named_parameters())
    assert not policy.why_padded
    wanted = {name: tensor for name, tensor in stored.items() if not name.startswith(("mtp.", "model.visual."))}
    assert {name.replace("model.language_model.", "model.") for name in wanted} == set(loaded)
    assert ("lm_head.weight" in loaded) != tied
    for name, tensor in wanted.items():
        ours = loaded[name.replace("model.language_model.", "model.")]
        assert torch.equal(ours, tensor.to(torch.bfloat16)), name
    assert "torchvision" not in sys.modules


@torch.no_grad()
def test_a_loaded_hybrid_packs_in_bfloat16(tmp_path: Path) -> None:
    """Packed hidden states are near the separate ones at the dtype of the learner."""
    policy = load_policy(tiny_qwen35(tmp_path / "model"), "bfloat16", CPU)
    samples = tiny_samples(4)
    together = policy(MicroBatch(samples, CPU, packed=True).student(), lambda hidden_TH, head: hidden_TH)
    apart = [policy(MicroBatch([s], CPU).student(), lambda hidden_TH, head: hidden_TH) for s in samples]
    assert (together - torch.cat(apart)).abs().max() <= 0.02 * together.abs().max()


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    """A checkpoint with a lost tensor never trains on with a random one."""
    policy = tiny_policy()
    policy.lm.save_pretrained(tmp_path)  # type: ignore[operator]
    load_policy(tmp_path, "float32", CPU)
    file = tmp_path / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "layers.1.mlp" not in n}, file, metadata={"format": "pt"})
    with pytest.raises(PreflightError, match=r"lacks 3 weights, 'model\.layers\.1\.mlp\.down_proj\.weight'"):
        load_policy(tmp_path, "float32", CPU)


def test_a_head_with_a_bias_is_refused(tmp_path: Path) -> None:
    """The fused losses multiply by a matrix alone."""
    PhiForCausalLM(PhiConfig(**SIZES)).save_pretrained(tmp_path)
    with pytest.raises(PreflightError, match="lm_head has a bias"):
        load_policy(tmp_path, "float32", CPU)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """The message names the keys of the configuration."""
    with pytest.raises(PreflightError, match=r"model\.path or model\.init_from = .*cannot load the model"):
        load_policy(tmp_path, "float32", CPU)
