"""The DeepSpeed engine around the policy: gradients, clipping, optimizer, its part of a checkpoint.

The only file that imports deepspeed. Gradients accumulate over any number of backward calls; `step` reduces them
over ranks (mean), clips and updates. An update with a gradient that is not finite never happens.
"""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor

from fd_async.config.schema import RunConfig
from fd_async.errors import CheckpointError, NonFiniteLoss
from fd_async.learner.batching import Rows
from fd_async.learner.model import Objective, Policy

_TAG = "deepspeed"


def init_distributed(backend: str, timeout_s: float) -> None:
    """Join the process group described by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""
    # The CPU accelerator would compile a shared-memory kernel with g++ that only inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(backend, timeout=timedelta(seconds=timeout_s), verbose=False)


def effective_zero_stage(config: RunConfig) -> int:
    """Stage 0 has no float32 master weights in bfloat16, so bfloat16 runs at stage 1 or higher."""
    return max(config.learner.zero_stage, 1) if config.model.dtype == "bfloat16" else config.learner.zero_stage


class Engine:
    """One optimizer over one policy on all ranks."""

    def __init__(self, policy: Policy, config: RunConfig) -> None:
        learner = config.learner
        self.policy = policy
        self._stage, self._clip = effective_zero_stage(config), learner.grad_clip
        self._norm = float("nan")
        optimizer = torch.optim.AdamW(
            policy.parameters(),
            lr=learner.lr,
            betas=learner.betas,
            eps=learner.eps,
            weight_decay=learner.weight_decay,
            fused=True,
        )
        if self._stage == 0:
            optimizer.register_step_pre_hook(self._clip_reduced)
        self._engine: Any = deepspeed.initialize(model=policy, optimizer=optimizer, config=self._settings(config))[0]

    def __call__(self, rows: Rows, objective: Objective) -> Any:
        """Run a forward pass whose result takes part in backward."""
        return self._engine(rows, objective)

    def backward(self, loss: Tensor) -> None:
        """Add this loss's gradients to those of the step."""
        self._engine.backward(loss)

    def step(self, lr: float) -> float:
        """Reduce, clip and update with learning rate `lr`; return the norm before clipping.

        Raises:
            NonFiniteLoss: on every rank, and no weight changed.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        if self._stage:
            # DeepSpeed has left the weights alone if this is not finite.
            self._norm = float(self._engine.get_global_grad_norm())
            self._require_finite()
        return self._norm

    def discard_gradients(self) -> None:
        """Forget accumulated gradients."""
        self._engine.optimizer.zero_grad()
        self._engine.zero_grad()

    def full_precision_parameters(self) -> dict[str, Tensor]:
        """Return float32 parameters by name: the master weights where the model computes in less. Collective."""
        parameters = dict(self.policy.named_parameters())
        if self.policy.head_VH.dtype == torch.float32:
            return {name: parameter.detach() for name, parameter in parameters.items()}
        full = {name: safe_get_full_fp32_param(parameter) for name, parameter in parameters.items()}
        return {name: tensor for name, tensor in full.items() if tensor is not None}

    def save(self, folder: Path) -> None:
        """Write weights and optimizer state exactly. Collective."""
        self._engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote on the same number of ranks. Collective.

        Raises:
            CheckpointError: DeepSpeed found nothing to load.
        """
        path, _ = self._engine.load_checkpoint(str(folder), tag=_TAG)
        if path is None:
            raise CheckpointError(f"{folder}: no DeepSpeed state; the checkpoint is incomplete")

    def _clip_reduced(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Clip at stage 0, on reduced gradients right before the update: DeepSpeed does not tell the norm there."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._clip))
        self._require_finite()

    def _require_finite(self) -> None:
        if not math.isfinite(self._norm):
            raise NonFiniteLoss(f"the gradient norm is {self._norm}; no weight was changed")

    def _settings(self, config: RunConfig) -> dict[str, Any]:
        is_bfloat16 = config.model.dtype == "bfloat16"
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": self._clip if self._stage else 0.0,
            "zero_optimization": {"stage": self._stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1 << 62,
            "bf16": {"enabled": is_bfloat16, "check_grad_overflow": True},
        }
        if is_bfloat16:
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
        return settings
