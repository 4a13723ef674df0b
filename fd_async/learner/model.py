"""The language model of a rank, as DeepSpeed wraps it. Invariant: dropout is off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from fd_async.algorithms.lm_head import Head
from fd_async.errors import PreflightError
from fd_async.learner.batching import Rows
from fd_async.learner.packing import prepare

log = structlog.stdlib.get_logger(__name__)

Objective = Callable[[Tensor, Head], Any]
"""(hidden states [T, H], head) -> what forward returns."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Policy(nn.Module):
    """A causal language model that never makes the logits of a whole batch.

    `forward` hands the hidden states of the wanted rows and the lm_head weight to an objective, so that hooks of
    an engine around this module see one ordinary forward pass.
    """

    def __init__(self, lm: nn.Module, device: torch.device | None = None, num_ids: int = 0) -> None:
        super().__init__()
        self.lm, self.num_ids = lm, num_ids
        self.device = device or self.output_weight.device
        self.why_padded = prepare(lm)
        """Why rows must be padded; empty where they may be packed."""

    def forward(self, rows: Rows, objective: Objective) -> Any:
        body: Any = self.lm.base_model
        borders = {} if rows.packing is None else {"packing": rows.packing}
        if borders and self.why_padded:
            raise PreflightError(f"learner.packing = true: sequences cannot be packed here; {self.why_padded}")
        output = body(input_ids=rows.input_ids_BL, position_ids=rows.position_ids_BL, use_cache=False, **borders)
        hidden_TH = output.last_hidden_state.flatten(0, 1).index_select(0, rows.rows_T)
        return objective(hidden_TH, self.head)

    @property
    def output_weight(self) -> nn.Parameter:
        """The lm_head weight as the module holds it; the embedding matrix when they are tied."""
        lm: Any = self.lm
        return lm.get_output_embeddings().weight

    @property
    def head(self) -> Head:
        """The map from hidden states to logits, as the model's own `forward` applies it."""
        lm: Any = self.lm
        config = lm.config.get_text_config()
        weight, num_rows = self.output_weight, config.vocab_size
        scale = float(getattr(config, "logit_scale", None) or 1.0) / float(
            getattr(config, "logits_scaling", None) or 1.0
        )
        softcap = float(getattr(config, "final_logit_softcapping", None) or 0.0)
        return Head(weight if len(weight) == num_rows else weight[:num_rows], scale, softcap, self.num_ids)


def load_policy(path: str | Path, dtype: str, device: torch.device, *, stay_on_cpu: bool = False) -> Policy:
    """Load a Hugging Face model with dropout off.

    Args:
        stay_on_cpu: leave the parameters there; ZeRO 3 moves this rank's slices to the device itself.

    Raises:
        PreflightError: there is no loadable causal language model at `path`, weights of it are missing, or its
            lm_head has a bias.
    """
    where = f"model.path or model.init_from = {str(path)!r}"
    try:
        lm, info = AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES[dtype], attn_implementation="sdpa", output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise PreflightError(f"{where}: cannot load the model ({error})") from error
    # Transformers would train on with random weights.
    if missing := sorted(info["missing_keys"]):
        raise PreflightError(f"{where}: the checkpoint lacks {len(missing)} weights, {missing[0]!r} among them")
    if getattr(lm.get_output_embeddings(), "bias", None) is not None:
        raise PreflightError(f"{where}: its lm_head has a bias, which the losses do not know; use another model")
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    if stay_on_cpu:
        for buffer in lm.buffers():
            buffer.data = buffer.data.to(device)
    else:
        lm = lm.to(device)
    policy = Policy(lm, device, _known_ids(path))
    if policy.why_padded:
        log.warning("sequences are padded, never packed, with this model", model=str(path), why=policy.why_padded)
    return policy


def _known_ids(path: str | Path) -> int:
    """Return how many ids the tokenizer beside the model knows; 0 without a tokenizer. Heads are often padded."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError):
        return 0
    vocabulary = tokenizer.get_vocab()
    # Where there are no tokenizer files, transformers makes one that knows its special tokens alone.
    return max(vocabulary.values()) + 1 if vocabulary.keys() - {*tokenizer.all_special_tokens} else 0
