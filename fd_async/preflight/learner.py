"""The learner, before it starts: hosts of its ranks, and the memory of one rank against its device. Looks only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil

from fd_async.config.schema import RunConfig
from fd_async.errors import PreflightError
from fd_async.learner.memory_plan import GIB, gib, plan_of, refusal, table
from fd_async.learner.model_shape import Shape, read_shape, text_config
from fd_async.preflight.findings import Finding
from fd_async.preflight.gpus import engines_on_a_gpu
from fd_async.preflight.nvidia import driver


def _hosts(config: RunConfig) -> Iterator[Finding]:
    if not config.learner.hostfile:
        return
    from fd_async.learner import hosts  # brings the event loop, which one machine does without

    try:
        found = hosts.check(config)
    except PreflightError as error:
        yield Finding("missing", "learner hosts", str(error), "docs/learner.md, several nodes")
        return
    words = ", ".join(f"{host.name} ({host.slots})" for host in found)
    yield Finding("ok", "learner hosts", f"{words} through {config.learner.launcher}")


def _memory(config: RunConfig) -> Iterator[Finding]:
    """Compare the plan of a rank with the smallest device; the rank does it again with true numbers."""
    if config.learner.memory_check == "off":
        return
    shape = read_shape(config.model.path)
    if shape is None:
        yield Finding("note", "learner memory", "not known before the model is here", "the learner checks at its start")
        return
    needed = plan_of(config, shape)
    available = available_bytes(config, shape)
    if available is None:
        yield Finding("note", "learner memory", f"a rank needs about {gib(needed.device)}", "no GPU of it answers here")
        return
    line = refusal(config, shape, available)
    if not line:
        yield Finding("ok", "learner memory", f"a rank needs about {gib(needed.device)} of {gib(available)}")
        return
    what, _, change = line.partition("; ")
    yield Finding("missing" if config.learner.memory_check == "refuse" else "note", "learner memory", what, change)


def _kernels(config: RunConfig) -> Iterator[Finding]:
    """Say so where transformers would compute gated delta layers on a GPU without the kernels made for them."""
    text = text_config(config.model.path) if config.learner.gpus else None
    if text is None or "linear_num_value_heads" not in text or find_spec("fla"):
        return
    found = (
        "flash-linear-attention is not installed: the learner computes gated delta layers with transformers' "
        "reference, on an H100 more than ten times slower by its own account, and with more memory than planned"
    )
    advice = "`.venv/bin/pip install flash-linear-attention`, or a smaller learner.micro_batch_tokens for the memory"
    yield Finding("note", "gated delta", found, advice)


def memory_table(config: RunConfig) -> list[str]:
    """Return the memory plan of a rank as lines, for `--dry-run`."""
    shape = read_shape(config.model.path)
    if shape is None:
        return ["not known: the model is neither a folder here nor in the Hugging Face cache"]
    header = f"{shape.num_params / 1e6:,.1f} million parameters, {shape.source}; per rank:"
    available = available_bytes(config, shape)
    lines = [header, *table(plan_of(config, shape), available)]
    if available is not None and (line := refusal(config, shape, available)):
        lines.append(line)
    return lines


def available_bytes(config: RunConfig, shape: Shape) -> int | None:
    """Return what one rank may use of its device; None where its GPU is not on this machine.

    On CPU, what is free after the engine has its weights and cache, split over the ranks. On a GPU that vLLM uses too,
    what vLLM leaves.
    """
    learner, policy = config.learner, config.policy
    if not learner.gpus:
        ranks_here = learner.ranks
        if learner.hostfile:
            from fd_async.learner import hosts

            try:
                found = hosts.read_hostfile(Path(learner.hostfile))
            except PreflightError:
                return None
            ranks_here = max(host.slots for host in found)
        width = 2 if config.model.dtype == "bfloat16" else 4
        engine = policy.kv_cache_gib * GIB + width * shape.num_params
        return max(0, int(psutil.virtual_memory().available - engine) // ranks_here)
    there = driver().gpus
    if any(gpu not in there for gpu in learner.gpus):
        return None
    taken = policy.gpu_memory_utilization * engines_on_a_gpu(config)
    shared = set(policy.gpus) if policy.engine == "local" else set()
    return min(int(there[gpu].total * max(0.0, 1 - taken * (gpu in shared))) for gpu in learner.gpus)


PROBES: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (_hosts, _memory, _kernels)
"""In the order of the report."""
