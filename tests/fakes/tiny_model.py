"""A random tiny model with a tokenizer, on disk as Hugging Face wants it."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.fakes.tiny_policy import VOCAB, tiny_policy


def write_tiny_model(folder: Path) -> Path:
    """Write the model of `tiny_policy` and a tokenizer of its size; return the folder."""
    tiny_policy().lm.save_pretrained(folder)  # type: ignore[operator]
    vocabulary = {f"t{index}": index for index in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="t1").save_pretrained(folder)
    return folder
