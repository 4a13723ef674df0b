"""The DeepSpeed engine around the policy: gradients, clipping, optimizer, and whose weights the module computes with.

Gradients accumulate over any number of backward calls; `step` reduces them over ranks (mean), clips and updates. An
update with a gradient that is not finite never happens. Parameter names are those of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID, DeepSpeedZeroOptimizer
from torch import Tensor, nn

from fd_async.config.schema import RunConfig
from fd_async.errors import LearnerError, NonFiniteLoss
from fd_async.learner.batching import Rows
from fd_async.learner.memory_plan import effective_zero_stage
from fd_async.learner.model import Objective, Policy
from fd_async.learner.shadow import Shadow
from fd_async.learner.shards import Fragment, find_shards, fragments

_MOMENTS = ("exp_avg", "exp_avg_sq")
_MAX_BUCKET = 200_000_000
"""Elements that gradients are reduced in; DeepSpeed holds a buffer of that size. Larger tensors go without it."""


def init_distributed(backend: str, timeout_s: float) -> None:
    """Join the process group described by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT."""
    # The CPU accelerator would compile a shared-memory kernel with g++ that only inference uses.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(backend, timeout=timedelta(seconds=timeout_s), verbose=False)


class Engine:
    """One optimizer over one policy on all ranks."""

    def __init__(self, policy: Policy, config: RunConfig) -> None:
        learner = config.learner
        self.policy = policy
        self._parameters: dict[str, nn.Parameter] = dict(policy.lm.named_parameters())
        self.shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        """Whole shapes by name, under every ZeRO stage."""
        self._stage, self._clip = effective_zero_stage(config), learner.grad_clip
        self._norm, self._broken = float("nan"), False
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
        settings = zero_settings(config, self.shapes)
        self._engine: Any = deepspeed.initialize(model=policy, optimizer=optimizer, config=settings)[0]
        if self._stage == 3:
            # `Policy.forward` uses the head outside of the module that owns it.
            deepspeed.zero.register_external_parameter(policy, policy.output_weight)
        self._torch_optimizer = self._engine.optimizer.optimizer if self._stage else self._engine.optimizer
        self.shards = find_shards(self._stage, self._parameters, self._engine.optimizer)

    def __call__(self, rows: Rows, objective: Objective) -> Any:
        """Run a forward pass; its result takes part in backward unless gradients are off. Collective under ZeRO 3."""
        self._require_own_weights()
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
        """Forget accumulated gradients, those that have been reduced included."""
        inner = self._engine.optimizer
        inner.zero_grad()
        self._engine.zero_grad()
        if isinstance(inner, DeepSpeedZeroOptimizer):
            # ZeRO 1 and 2 keep sums of their own, which only an update, made or refused by DeepSpeed itself, clears.
            inner._release_preflattened_grad_buffers()
            for sums in (inner.averaged_gradients, inner.all_grad_tensors):
                sums.update(dict.fromkeys(sums))
            inner.micro_step_id = INITIAL_MICRO_STEP_ID
            if inner.cpu_offload:
                inner.reset_cpu_buffers()
                inner._offload_accumulated_param_ids = set()

    @contextmanager
    def wearing(self, shadow: Shadow) -> Iterator[None]:
        """Compute with the shadow's weights inside the block, without gradients; then with the student's again.

        Exact in both directions: the student's float32 weights are not touched, and rounding them gives the module
        back what the last update gave it. Collective.
        """
        self.shards.publish(shadow.flats)
        self.policy.eval()
        try:
            with torch.no_grad():
                yield
        except BaseException:
            # Putting the weights back is collective, and the other ranks are not there.
            self._broken = True
            raise
        self.policy.train()
        self.shards.publish(self.shards.flats)

    @property
    def replicated(self) -> bool:
        """Tell whether every rank holds everything (ZeRO 0)."""
        return self._stage == 0

    @property
    def num_updates(self) -> int:
        """Optimizer updates so far."""
        state = self._torch_optimizer.state.get(self.shards.keys[0])
        return int(state["step"]) if state else 0

    def states(self) -> dict[str, dict[str, Fragment]]:
        """Return this rank's share: `master`, and after the first update `exp_avg` and `exp_avg_sq`, live."""
        flats = {"master": self.shards.flats}
        if self.num_updates:
            for moment in _MOMENTS:
                flats[moment] = [self._torch_optimizer.state[key][moment].view(-1) for key in self.shards.keys]
        return {kind: fragments(self.shards.pieces, tensors) for kind, tensors in flats.items()}

    @torch.no_grad()
    def restore(self, states: Mapping[str, Mapping[str, Tensor]], num_updates: int) -> None:
        """Take over weights and moments with the names and lengths of `states()`. Collective."""
        for key in self.shards.keys:
            self._torch_optimizer.state[key] = {
                "step": torch.tensor(float(num_updates), device=key.device),
                **{moment: torch.zeros_like(key) for moment in _MOMENTS},
            }
        if not num_updates:
            self._torch_optimizer.state.clear()
        for kind, mine in self.states().items():
            for name, fragment in mine.items():
                fragment.values.copy_(states[kind][name])
        self.shards.publish(self.shards.flats)

    @contextmanager
    def gathered(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Yield whole parameters in the module's type, for reading inside the block. Collective under ZeRO 3."""
        self._require_own_weights()
        chosen = {name: self._parameters[name] for name in names}
        with deepspeed.zero.GatheredParameters(list(chosen.values()), enabled=self._stage == 3):
            yield {name: parameter.detach() for name, parameter in chosen.items()}

    def _clip_reduced(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Clip at stage 0, on reduced gradients right before the update: DeepSpeed does not tell the norm there."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._norm = float(torch.nn.utils.clip_grad_norm_(parameters, self._clip))
        self._require_finite()

    def _require_own_weights(self) -> None:
        if self._broken:
            raise LearnerError("the learner broke off while its module held other weights; start it again")

    def _require_finite(self) -> None:
        if not math.isfinite(self._norm):
            raise NonFiniteLoss(f"the gradient norm is {self._norm}; no weight was changed")


def zero_settings(config: RunConfig, shapes: Mapping[str, torch.Size]) -> dict[str, Any]:
    """Return DeepSpeed's configuration."""
    stage, offload = effective_zero_stage(config), config.learner.offload
    is_bfloat16 = config.model.dtype == "bfloat16"
    bucket = min(sum(shape.numel() for shape in shapes.values()), _MAX_BUCKET)
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": bool(config.learner.gpus)}
    if stage == 3:
        # Whoever swaps shards must find every parameter in them.
        zero |= {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": bucket}
        if offload == "optimizer_and_parameters":
            zero["offload_param"] = {"device": "cpu", "pin_memory": bool(config.learner.gpus)}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.learner.grad_clip if stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 62,
        "bf16": {"enabled": is_bfloat16, "check_grad_overflow": True},
    }
    if is_bfloat16:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings
