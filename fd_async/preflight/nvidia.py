"""What the NVIDIA driver says of this machine: one call of `nvidia-smi`, bounded in time. No CUDA, no torch."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import lru_cache
from typing import NamedTuple

MIB = 2**20
_TIMEOUT_S = 15.0
"""A driver without persistence mode wakes eight GPUs in several seconds; one that hangs never answers."""
_FIELDS = "index,name,memory.total,memory.used,compute_cap,mig.mode.current,driver_version"


class Gpu(NamedTuple):
    """One GPU, as the driver counts it."""

    index: int
    name: str
    total: int
    """Bytes."""
    used: int
    """Bytes that are taken now, by any process."""
    capability: float
    """Compute capability, e.g. 9.0; 0 where the driver does not say."""
    is_split: bool
    """Whether MIG divides it into instances."""


class Driver(NamedTuple):
    """The answer of the driver; without GPUs, `problem` says why."""

    gpus: dict[int, Gpu]
    version: str
    problem: str


def driver() -> Driver:
    """Ask the driver, once per program on PATH. Blocks for as long as it takes, at most `_TIMEOUT_S`."""
    program = shutil.which("nvidia-smi")
    return _ask(program) if program else Driver({}, "", "no NVIDIA driver here: nvidia-smi is not on PATH")


@lru_cache(maxsize=1)
def _ask(program: str) -> Driver:
    argv = [program, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Driver({}, "", f"nvidia-smi did not answer within {_TIMEOUT_S:g} s: the driver hangs")
    except OSError as error:
        return Driver({}, "", f"{program}: {error.strerror}")
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    if done.returncode != 0 or not rows:
        said = (done.stdout + done.stderr).strip().splitlines()
        return Driver({}, "", f"nvidia-smi: {said[0][:200] if said else f'no GPU (exit code {done.returncode})'}")
    gpus = []
    for row in rows:
        try:
            gpus.append(_gpu(row))
        except (ValueError, IndexError):
            return Driver({}, "", f"nvidia-smi: cannot read {', '.join(row)[:200]!r}")
    return Driver({gpu.index: gpu for gpu in gpus}, rows[0][-1], "")


def _gpu(row: list[str]) -> Gpu:
    index, *name, total, used, capability, mig, _ = row  # a name may have a comma
    known = re.fullmatch(r"\d+\.\d+", capability)
    return Gpu(
        int(index),
        ", ".join(name),
        int(total) * MIB,
        int(used) * MIB if used.isdecimal() else 0,
        float(capability) if known else 0.0,
        mig == "Enabled",
    )
