"""What a run leaves in its ledger so that a replay can say where it differs, and why: weights and machine."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import msgspec

from fd_async.config.schema import RunConfig
from fd_async.types import StagedWeights

_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers")


def digest(staged: StagedWeights) -> str:
    """Return 128 bits that differ where a weight differs, from the digests that staging took and the probe's scores.

    Weights that travel without a file have the scores alone.
    """
    parts = msgspec.msgpack.encode((staged.names, staged.sha256, staged.probe_logprobs))
    return hashlib.sha256(parts).hexdigest()[:32]


def fingerprint(config: RunConfig) -> str:
    """Return what else the last bit of a sum depends on: versions, processor, threads."""
    facts = [f"{package} {_version(package)}" for package in _PACKAGES]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = config.learner.cpu_threads or os.environ.get("OMP_NUM_THREADS") or cores
    where = "GPU" if config.learner.gpus else f"{_processor()}, {threads} threads per rank"
    return ", ".join([*facts, where])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line for line in file.read(4096).splitlines() if line.startswith("model name")), "")
    except OSError:
        name = ""
    return name.partition(":")[2].strip() or platform.machine()
