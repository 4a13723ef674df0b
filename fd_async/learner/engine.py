"""The DeepSpeed engine around the policy: gradients, clipping, optimizer, its part of a checkpoint.

The only file that imports deepspeed. Gradients accumulate over any number of backward calls; `step` reduces them
over ranks (mean), clips and updates. An update with a gradient that is not finite never happens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor

from fd_async.config.schema import RunConfig
from fd_async.errors import CheckpointError, NonFiniteLoss
from fd_async.learner.batching import Rows
from fd_async.learner.model import Objective, Policy

_TAG = "deepspeed"


def init_distributed(backend: str, timeout_s: float) -> None:
    """Join the process group described by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""
    from datetime import timedelta

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
        optimizer.register_step_pre_hook(self._before_update)
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
            NonFiniteLoss: on every rank, before any weight changed.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.step()
        return self._norm if self._stage == 0 else float(self._engine.get_global_grad_norm())

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

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Run on reduced gradients right before the optimizer touches a weight."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if self._stage == 0:
            norm = torch.nn.utils.clip_grad_norm_(parameters, self._clip)
            self._norm = float(norm)
        else:
            norms = [parameter.grad.norm() for parameter in parameters if parameter.grad is not None]
            norm = torch.stack(norms).sum() if norms else torch.zeros((), device=self.policy.device)
        bad = (~norm.isfinite()).float()
        dist.all_reduce(bad)
        if bad > 0:
            raise NonFiniteLoss("the gradient norm is not finite; no weight was changed")

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
            "bf16": {"enabled": is_bfloat16},
        }
        if is_bfloat16:
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
        return settings
