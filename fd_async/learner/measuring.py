"""Compares the memory plan with what this rank's device really has, once model and optimizer are built."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil
import structlog
import torch

from fd_async.config.schema import RunConfig
from fd_async.errors import PreflightError
from fd_async.learner.memory_plan import gib, plan_of, refusal
from fd_async.learner.model_shape import Shape, shape_of_model

log = structlog.stdlib.get_logger(__name__)


def available_bytes(device: torch.device) -> int:
    """Return what this rank may use in all, what it uses already included.

    On a CPU that is what is free, split over the ranks of this node. The other ranks and the engine may already hold
    some of theirs.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    ranks_here = int(os.environ.get("LOCAL_SIZE", os.environ.get("WORLD_SIZE", "1")))
    return psutil.virtual_memory().available // ranks_here + used_bytes(device)


def used_bytes(device: torch.device) -> int:
    """Return what this rank uses now."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return psutil.Process().memory_info().rss


def check_memory(
    config: RunConfig, model_config: dict[str, object], shapes: Mapping[str, torch.Size], device: torch.device
) -> Shape | None:
    """Refuse or warn when the plan for the true parameters does not fit, as `learner.memory_check` says.

    Raises:
        PreflightError: it does not fit, under "refuse".
    """
    shape = shape_of_model(model_config, {name: size.numel() for name, size in shapes.items()})
    if shape is None or config.learner.memory_check == "off":
        return shape
    available = available_bytes(device)
    line = refusal(config, shape, available)
    if line and config.learner.memory_check == "refuse":
        raise PreflightError(f'{line}; or set learner.memory_check = "warn"')
    if line:
        log.warning(line)
    log.info(
        "memory plan of this rank",
        planned=gib(plan_of(config, shape).device),
        used=gib(used_bytes(device)),
        available=gib(available),
    )
    return shape
