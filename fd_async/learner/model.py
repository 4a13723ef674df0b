"""Model weights inside a rank: the policy that DeepSpeed wraps, the EMA teacher, the frozen reference.

Invariant: dropout is off everywhere, and the teacher's average is float32 whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from fd_async.algorithms.ema import update_ema
from fd_async.algorithms.lm_head import at_least_float32
from fd_async.errors import PreflightError
from fd_async.learner.batching import Rows

Objective = Callable[[Tensor, Tensor], Any]
"""(hidden states [T, H], lm_head weight [V, H]) -> what forward returns."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Policy(nn.Module):
    """A causal language model that never makes the logits of a whole batch.

    `forward` hands the hidden states of the wanted rows and the lm_head weight to an objective, so that hooks of
    an engine around this module see one ordinary forward pass.
    """

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, rows: Rows, objective: Objective) -> Any:
        body: Any = self.lm.base_model
        output = body(input_ids=rows.input_ids_BL, position_ids=rows.position_ids_BL, use_cache=False)
        hidden_TH = output.last_hidden_state.flatten(0, 1).index_select(0, rows.rows_T)
        return objective(hidden_TH, self.head_VH)

    @property
    def head_VH(self) -> Tensor:
        """The lm_head weight; the embedding matrix when they are tied."""
        lm: Any = self.lm
        return lm.get_output_embeddings().weight

    @property
    def device(self) -> torch.device:
        return self.head_VH.device


def load_policy(path: str | Path, dtype: str, device: torch.device) -> Policy:
    """Load a Hugging Face model with dropout off.

    Raises:
        PreflightError: there is no loadable causal language model at `path`.
    """
    try:
        lm = AutoModelForCausalLM.from_pretrained(path, dtype=DTYPES[dtype], attn_implementation="sdpa")
    except (OSError, ValueError) as error:
        raise PreflightError(
            f"model.path or model.init_from = {str(path)!r}: cannot load the model ({error})"
        ) from error
    for module in lm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return Policy(lm.to(device))


def freeze(policy: Policy) -> Policy:
    """Switch to evaluation and drop gradients, in place."""
    return policy.eval().requires_grad_(False)


class Teacher:
    """EMA copy of the student: a float32 average by parameter name, and the module that computes with it.

    In float32 the module's own parameters are the average. Otherwise the module holds a rounded copy.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = freeze(policy)
        self.average: dict[str, Tensor] = {
            name: at_least_float32(parameter.detach()) for name, parameter in policy.named_parameters()
        }

    def update(self, student: Mapping[str, Tensor], retention: float) -> None:
        """Move the average towards the student's full-precision parameters."""
        update_ema(self.average, student, retention)
        self._publish()

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Replace the average, exactly."""
        update_ema(self.average, average, 0.0)
        self._publish()

    @torch.no_grad()
    def _publish(self) -> None:
        for name, parameter in self.policy.named_parameters():
            if parameter.data_ptr() != self.average[name].data_ptr():
                parameter.copy_(self.average[name])
