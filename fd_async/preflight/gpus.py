"""The GPUs that a configuration names: there, free, whole, new enough; and what vLLM can hold on them. Looks only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from fd_async.config.schema import RunConfig
from fd_async.errors import PreflightError
from fd_async.learner.memory_plan import gib
from fd_async.learner.model_shape import read_shape, text_config
from fd_async.preflight.costs import longest_question
from fd_async.preflight.findings import Finding, needed
from fd_async.preflight.kv_room import GIB, WORKSPACE, cache_of, room
from fd_async.preflight.nvidia import Driver, Gpu, driver

_OLDEST_DRIVER = {"12": 525, "13": 580}
"""First branch of the driver that runs a CUDA major version (NVIDIA's compatibility table)."""
_BFLOAT16 = 8.0
"""Compute capability from which vLLM takes bfloat16 (Ampere)."""
_CUDA_BYTES = GIB
"""What each vLLM engine must find free beside its share: the context of CUDA, captured graphs. A guess."""
_IDLE_BYTES = GIB
"""Memory that a GPU may show as used with nobody on it."""


def roles(config: RunConfig) -> dict[str, list[int]]:
    """Return the GPUs of this machine under the keys that name them."""
    policy, learner = config.policy, config.learner
    here = learner.gpus
    if learner.hostfile:
        from fd_async.learner import hosts  # brings the event loop, which one machine does without

        try:
            ranks = hosts.names_of_ranks(hosts.read_hostfile(Path(learner.hostfile)))
        except PreflightError:
            ranks = []
        here = [gpu for gpu, host in zip(here, ranks, strict=False) if hosts.is_this_machine(host)]
    named = {"policy.gpus": policy.gpus if policy.engine == "local" else [], "learner.gpus": here}
    return {key: gpus for key, gpus in named.items() if gpus}


def engines_on_a_gpu(config: RunConfig) -> int:
    """Count the vLLM engines on one of `policy.gpus`: two where a frozen copy of the model gives feedback."""
    tables = [config.feedback, *([config.fallback] if config.feedback.outage == "fallback" else [])]
    return 2 if config.algorithm.type == "fd" and any(table.type == "self" for table in tables) else 1


def _present(config: RunConfig) -> Iterator[Finding]:
    named = roles(config)
    if not named:
        return
    answer, advice = driver(), "run it where the driver shows them, or change {}"
    if answer.problem:
        where = " and ".join(f"{key} = {gpus}" for key, gpus in named.items())
        yield Finding("missing", "GPUs", answer.problem, f"{where} need a driver; in Docker: --gpus all")
        return
    for key, gpus in named.items():
        lacking = [gpu for gpu in gpus if gpu not in answer.gpus]
        there = f"{len(answer.gpus)} GPU(s) ({_listed(answer.gpus)})"
        found = f"no GPU {_listed(lacking)}: the driver shows {there}" if lacking else _kinds(answer, gpus)
        yield needed(not lacking, key, found, advice.format(key))
    yield from _runtime(answer)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not {str(gpu) for gpus in named.values() for gpu in gpus} <= set(visible.split(",")):
        found = f"CUDA_VISIBLE_DEVICES = {visible!r} does not list all of {' and '.join(named)}"
        yield Finding("note", "visible GPUs", found, "the keys count as nvidia-smi does, whatever the variable says")


def _kinds(answer: Driver, gpus: Iterable[int]) -> str:
    kinds: dict[tuple[str, str], list[int]] = {}
    for gpu in gpus:
        kinds.setdefault((answer.gpus[gpu].name, gib(answer.gpus[gpu].total)), []).append(gpu)
    return "; ".join(f"{len(of)} x {name}, {size} ({_listed(of)})" for (name, size), of in kinds.items())


def _listed(gpus: Iterable[int]) -> str:
    return ", ".join(map(str, gpus))


def _runtime(answer: Driver) -> Iterator[Finding]:
    """Compare the driver with the CUDA runtime that the environment brings; nothing to say on a CPU build."""
    try:
        cuda = metadata.version("nvidia-cuda-runtime")
    except metadata.PackageNotFoundError:
        return
    oldest = _OLDEST_DRIVER.get(cuda.partition(".")[0])
    branch = answer.version.partition(".")[0]
    if oldest and branch.isdecimal():
        found = f"{answer.version}, CUDA {cuda}"
        advice = f"CUDA {cuda.partition('.')[0]} needs driver {oldest} or newer: update the driver of the machine"
        yield needed(int(branch) >= oldest, "driver", found, advice)


def _fit_for_use(config: RunConfig) -> Iterator[Finding]:
    """Yield what is wrong with GPUs that are there; nothing where all is well."""
    named, there = roles(config), driver().gpus
    keys = {gpu: " and ".join(key for key, of in named.items() if gpu in of) for of in named.values() for gpu in of}
    gpus = [there[index] for index in sorted(keys) if index in there]
    if split := [gpu.index for gpu in gpus if gpu.is_split]:
        found = f"GPU {_listed(split)} is split by MIG, and {keys[split[0]]} counts whole GPUs"
        advice = f"`nvidia-smi -i {','.join(map(str, split))} -mig 0`, or take other GPUs"
        yield Finding("missing", "MIG", found, advice)
    old = [gpu for gpu in gpus if 0 < gpu.capability < _BFLOAT16]
    if old and config.model.dtype == "bfloat16":
        which = f"GPU {_listed(gpu.index for gpu in old)} ({old[0].name})"
        found = f"{which} has compute capability {old[0].capability}, bfloat16 needs {_BFLOAT16}"
        yield Finding("missing", "bfloat16", found, 'set model.dtype = "float32", or take newer GPUs')
    for gpu in gpus:
        if gpu.used > _IDLE_BYTES:
            yield _in_use(config, gpu, is_vllms=gpu.index in named.get("policy.gpus", []), keys=keys[gpu.index])


def _in_use(config: RunConfig, gpu: Gpu, *, is_vllms: bool, keys: str) -> Finding:
    share = config.policy.gpu_memory_utilization
    found = f"GPU {gpu.index} has {gib(gpu.total - gpu.used)} of {gib(gpu.total)} free: another program is on it"
    advice = f"end it (nvidia-smi names it), or take another GPU in {keys}"
    if is_vllms and gpu.total - gpu.used < share * gpu.total:
        found += f", and vLLM asks for policy.gpu_memory_utilization = {share:g} of the whole"
        return Finding("missing", "GPU in use", found, advice)
    return Finding("note", "GPU in use", found, advice)


def _shared(config: RunConfig) -> Iterator[Finding]:
    """Two engines, or an engine and a rank, on one GPU; an engine that leaves nothing for CUDA itself."""
    policy, share, engines = config.policy, config.policy.gpu_memory_utilization, engines_on_a_gpu(config)
    if policy.engine == "local" and policy.gpus:
        there = [gpu.total for index, gpu in driver().gpus.items() if index in policy.gpus]
        is_full = engines * share > 1 or (there and (1 - engines * share) * min(there) < engines * _CUDA_BYTES)
        if is_full and engines > 1:
            found = f'feedback.type = "self" starts a second vLLM on policy.gpus: twice {share:g} of their memory'
            yield Finding("missing", "second engine", found, "set policy.gpu_memory_utilization to 0.45 or less")
        elif is_full:
            found = f"policy.gpu_memory_utilization = {share:g} leaves CUDA itself less than {gib(_CUDA_BYTES)}"
            yield Finding("missing", "GPU memory", found, "set it to 0.95 or less")
    if engines > 1:
        yield from _tutor(config)
    both = sorted(set(roles(config).get("policy.gpus", [])) & set(roles(config).get("learner.gpus", [])))
    if both:
        left = max(0.0, 1 - engines_on_a_gpu(config) * share)
        found = f"GPU {_listed(both)} for vLLM and learner: policy.gpu_memory_utilization leaves the learner {left:.0%}"
        yield Finding("note", "shared GPUs", found, "GPUs of their own let both work at the same time")


def _tutor(config: RunConfig) -> Iterator[Finding]:
    """Room for the answer of the frozen copy after the longest attempt."""
    table = config.feedback if config.feedback.type == "self" else config.fallback
    left = max(0, config.policy.max_model_len - longest_question(table, config.rollout.max_response_tokens))
    if left < table.max_output_tokens:
        found = (
            f"policy.max_model_len = {config.policy.max_model_len} leaves the frozen copy {left} tokens to answer the "
            f"longest attempt, max_output_tokens = {table.max_output_tokens}"
        )
        advice = "raise it, or add --config configs/experiments/self_tutor.toml: answers that are cut off are dropped"
        yield Finding("note", "tutor", found, advice)


def _parallel(config: RunConfig) -> Iterator[Finding]:
    """Tensor parallelism against the heads that it divides, as vLLM demands."""
    size, text = config.policy.tensor_parallel_size, text_config(config.model.path)
    if size == 1 or text is None:
        return
    keys = ("num_attention_heads", "linear_num_value_heads", "linear_num_key_heads")
    for key in keys:
        if isinstance(text.get(key), int) and text[key] % size:
            found = f"policy.tensor_parallel_size = {size} does not divide the model's {text[key]} {key}"
            divisors = [str(n) for n in range(1, 9) if all(not text.get(k, 0) % n for k in keys)]
            advice = f"take {', '.join(divisors)}, and policy.data_parallel_size for the other GPUs"
            yield Finding("missing", "tensor parallel", found, advice)
            return


def _cache(config: RunConfig) -> Iterator[Finding]:
    policy, shape, text = config.policy, read_shape(config.model.path), text_config(config.model.path)
    if policy.engine != "local":
        return
    cache = cache_of(
        text or {}, dtype=config.model.dtype, parallel=policy.tensor_parallel_size, prefix_caching=policy.prefix_caching
    )
    there = driver().gpus if policy.gpus else {}
    if shape is None or cache is None:
        yield Finding("note", "KV cache", "not known before the model is here", "vLLM checks at its start")
        return
    if any(gpu not in there for gpu in policy.gpus):
        found = f"{gib(cache.of(policy.max_model_len))} for a sequence of {policy.max_model_len} tokens"
        yield Finding("note", "KV cache", found, "no GPU of policy.gpus answers here")
        return
    smallest = min((there[gpu].total for gpu in policy.gpus), default=None)
    has = room(config, shape, cache, smallest)
    kept = f"about {gib(max(0, has.bytes))} beside the weights" if policy.gpus else f"{gib(has.bytes)}"
    if not has.sequences:
        found = f"{kept}, one sequence of policy.max_model_len = {policy.max_model_len} takes {gib(has.sequence)}"
        yield Finding("missing", "KV cache", found, _more_cache(config))
        return
    engines, wanted = policy.data_parallel_size, config.rollout.concurrency
    found = f"{kept}: room for {has.sequences} x {policy.max_model_len} tokens, {engines} engine(s)"
    batched = min(has.sequences, policy.max_num_seqs) * engines
    if batched >= wanted:
        yield Finding("ok", "KV cache", f"{found}, rollout.concurrency = {wanted}")
    elif has.sequences < policy.max_num_seqs:
        found += f"; rollout.concurrency = {wanted} fill it when all are long, and attempts then wait"
        yield Finding("note", "KV cache", found, f"{_more_cache(config)}, or lower rollout.concurrency")
    else:
        found += f"; policy.max_num_seqs = {policy.max_num_seqs} holds back rollout.concurrency = {wanted}"
        yield Finding("note", "KV cache", found, "raise policy.max_num_seqs or lower rollout.concurrency")


def _more_cache(config: RunConfig) -> str:
    if not config.policy.gpus:
        return "raise policy.kv_cache_gib, or lower policy.max_model_len"
    return (
        "raise policy.gpu_memory_utilization or policy.tensor_parallel_size, or lower policy.max_model_len"
        f" (counted with {gib(WORKSPACE)} for what vLLM needs besides)"
    )


PROBES: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (_present, _fit_for_use, _shared, _parallel, _cache)
"""In the order of the report."""
