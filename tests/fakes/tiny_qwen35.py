"""A random Qwen3.5 of 1.3 M weights, saved as the real checkpoints are: the text model inside a multimodal one.

Gated delta layers beside full attention, a vision tower and a head for multi-token prediction that text policies
neither run nor train, bfloat16 except the decay rates `A_log`, and the tiny world's tokenizer with a chat template of
Qwen3.5's kind. The sizes are the least that vLLM computes on a CPU (delta heads of 64, attention heads of 64).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from tests.fakes.chat_tokenizer import QWEN3_5_CALLS

TOKENIZER = Path(__file__).parents[2] / "examples" / "tiny" / "model"
VOCAB = 768
_TEXT = "model.language_model."
_MAX_TOKENS = 2048


def tiny_qwen35(folder: Path, *, tied: bool = False, seed: int = 0) -> Path:
    """Write a checkpoint folder with weights and tokenizer; equal seeds give equal weights.

    Args:
        tied: the output matrix is the embedding, as in the family's small models.
    """
    torch.manual_seed(seed)
    model = Qwen3_5ForConditionalGeneration(_config(tied))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and rates start equal everywhere, which would hide a mix-up
                parameter += 0.1 * torch.randn(parameter.shape)
    rates = {name: tensor.clone() for name, tensor in model.state_dict().items() if name.endswith(".A_log")}
    model.to(torch.bfloat16).save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file) | rates
    last, width = f"{_TEXT}layers.3.", model.config.text_config.hidden_size
    tensors |= {name.replace(last, "mtp.layers.0."): t.clone() for name, t in tensors.items() if name.startswith(last)}
    tensors["mtp.fc.weight"] = torch.zeros(width, 2 * width, dtype=torch.bfloat16)
    save_file(tensors, file, metadata={"format": "pt"})
    # As the real ones say it, beside the type of everything else.
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"dtype": "bfloat16", "mamba_ssm_dtype": "float32", "mtp_num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    shutil.copyfile(TOKENIZER / "tokenizer.json", folder / "tokenizer.json")
    tokenizer = json.loads((TOKENIZER / "tokenizer_config.json").read_text()) | {"model_max_length": _MAX_TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "chat_template.jinja").write_text(QWEN3_5_CALLS)
    return folder


def _config(tied: bool) -> Qwen3_5Config:
    text = {
        "vocab_size": VOCAB,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "max_position_embeddings": _MAX_TOKENS,
        "initializer_range": 0.08,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": tied,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000_000.0,
            "partial_rotary_factor": 0.25,
            "mrope_interleaved": True,
            "mrope_section": [3, 3, 2],
        },
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 128}
    vision |= {"num_position_embeddings": 16}
    special = {"image_token_id": 760, "video_token_id": 761, "vision_start_token_id": 762, "vision_end_token_id": 763}
    return Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=tied, **special)
