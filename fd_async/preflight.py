"""What a configuration needs of the machine, and whether it is there. Imports no torch and starts nothing heavy.

Each finding is `ok`, `note` (works, worth knowing) or `missing` (the run would fail), with how to get it.
"""

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
from typing import Literal
from urllib.parse import urlsplit

import psutil
from msgspec import Struct

from fd_async.config.files import CHECKOUT, is_hub_id
from fd_async.config.schema import RunConfig

GIB = 2**30
_PROBE_TIMEOUT_S = 10.0
_SHM_GIB_UNKNOWN_MODEL = 1.0
"""Least shared memory where the size of the model is not known before it is downloaded."""


class Finding(Struct, frozen=True):
    """One line of fd-check."""

    state: Literal["ok", "note", "missing"]
    name: str
    found: str
    advice: str = ""


def inspect(config: RunConfig) -> list[Finding]:
    """Look at everything the configuration needs."""
    probes: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (
        _config,
        _python,
        _packages,
        _gpus,
        _cores,
        _disk,
        _shared_memory,
        _model,
        _feedback_key,
        _verifier,
        _search,
    )
    return [finding for probe in probes for finding in probe(config)]


def _needed(there: bool, name: str, found: str, advice: str) -> Finding:
    return Finding("ok", name, found) if there else Finding("missing", name, found, advice)


def _config(config: RunConfig) -> Iterator[Finding]:
    source = "" if config.algorithm.type == "grpo" else f", feedback {config.feedback.type}"
    yield Finding("ok", "configuration", f"{config.run.name}: {config.algorithm.type}{source}, no problems")


def _python(config: RunConfig) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield _needed((3, 11) <= sys.version_info[:2] <= (3, 13), "python", version, "use Python 3.11, 3.12 or 3.13")


def _packages(config: RunConfig) -> Iterator[Finding]:
    advice = "remove .venv and call any command in bin/: it installs the locked requirements"
    wanted = {"torch": "2.13", "vllm": "0.32", "deepspeed": "0.19", "transformers": "5."}
    for name, version in wanted.items():
        found = _version(name) if find_spec(name) else None
        yield _needed(bool(found and found.startswith(version)), name, found or "not installed", advice)
    vllm = _version("vllm") or ""
    if find_spec("vllm") and vllm.endswith("+cpu") == bool(config.policy.gpus):
        build = "GPU" if config.policy.gpus else "CPU"
        found = f"{vllm}, policy.gpus = {config.policy.gpus}"
        yield Finding(
            "missing", "vllm build", found, f"call it again with FD_DEVICE={build.lower()} for the {build} build"
        )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _gpus(config: RunConfig) -> Iterator[Finding]:
    wanted = sorted(set(config.policy.gpus) | set(config.learner.gpus))
    if not wanted:
        return
    listed = _output(["nvidia-smi", "--query-gpu=index,name,memory.total", "--format=csv,noheader"])
    present = [line for line in (listed or "").splitlines() if line.strip()]
    advice = "change policy.gpus and learner.gpus, or run where an NVIDIA driver shows that many"
    yield _needed(len(present) > wanted[-1], "GPUs", f"{len(present)} of {wanted[-1] + 1}", advice)


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
    yield _needed(memory >= wanted, "memory", f"{memory:.1f} GiB free, at least {wanted:.1f} needed", advice)


def _disk(config: RunConfig) -> Iterator[Finding]:
    place = Path(config.run.dir).absolute()
    while not place.exists():
        place = place.parent
    free, wanted = shutil.disk_usage(place).free / GIB, config.checkpoint.min_free_gib
    advice = "free some, set run.dir to another disk, or lower checkpoint.min_free_gib or checkpoint.keep_last"
    yield _needed(free > wanted, "disk", f"{free:.0f} GiB free in {config.run.dir}/, {wanted:g} must stay free", advice)
    yield _needed(os.access(place, os.W_OK), "run folder", str(config.run.dir), "make it writable or set run.dir")


def _shared_memory(config: RunConfig) -> Iterator[Finding]:
    if config.policy.push != "shm":
        return
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield Finding("note", "/dev/shm", "not there", "weights travel through the temporary folder, slower")
        return
    free = shutil.disk_usage(folder).free / GIB
    size = _model_gib(config)
    wanted = 2 * size if size else _SHM_GIB_UNKNOWN_MODEL
    advice = "two copies of the weights are staged there: docker run --shm-size=..., or mount a larger tmpfs"
    yield _needed(free >= wanted, "/dev/shm", f"{free:.1f} GiB free, {wanted:.1f} needed", advice)


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
    yield _needed(not lacking, "model", found, "set model.path to a folder in Hugging Face format")


def _feedback_key(config: RunConfig) -> Iterator[Finding]:
    table = config.feedback
    usual = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}
    if config.algorithm.type != "fd" or table.type not in usual:
        return
    name = table.api_key_env or usual[table.type]
    if os.environ.get(name):
        yield Finding("ok", "feedback key", f"{name} is set")
    elif table.type == "openai" and table.base_url and not table.api_key_env:
        yield Finding("note", "feedback key", f"{name} is not set", f"fine where {table.base_url} asks for none")
    else:
        yield Finding(
            "missing", "feedback key", f"{name} is not set", f"export {name}=..., or set feedback.api_key_env"
        )


def _verifier(config: RunConfig) -> Iterator[Finding]:
    table = config.verifier
    if table.backend == "minilean":
        lacking = [name for name in ("lark", "z3") if find_spec(name) is None]
        found = f"lacks {', '.join(lacking)}" if lacking else "the small checker, not Lean"
        yield _needed(not lacking, "minilean", found, "remove .venv and call any command in bin/")
    elif table.backend == "kimina":
        yield _kimina(table.url)
        if not os.environ.get(table.api_key_env):
            yield Finding(
                "note", "kimina key", f"{table.api_key_env} is not set", "fine where the server asks for none"
            )
    elif table.command:
        program = table.command[0]
        yield _needed(shutil.which(program) is not None, "REPL", program, "verifier.command[0] must be a program")
    else:
        yield from _lake_project(Path(table.project_dir))


def _kimina(url: str) -> Finding:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_PROBE_TIMEOUT_S):
            return Finding("ok", "kimina", url)
    except OSError as error:
        return Finding("missing", "kimina", f"{url}: {error}", "start the Kimina Lean Server, or change verifier.url")


def _lake_project(project: Path) -> Iterator[Finding]:
    if not project.is_dir():
        project = CHECKOUT / project
    advice = "run lean/setup (needs the internet once), or set verifier.project_dir"
    lake = shutil.which("lake") or shutil.which("lake", path=str(Path.home() / ".elan" / "bin"))
    yield _needed(lake is not None, "lake", lake or "not on PATH", advice)
    there = any((project / name).is_file() for name in ("lakefile.toml", "lakefile.lean"))
    yield _needed(there, "Lake project", str(project) if there else f"none in {project}", advice)
    repl = next(project.glob(".lake/packages/[rR][eE][pP][lL]/.lake/build/bin/repl"), None)
    yield _needed(repl is not None, "Lean REPL", "built" if repl else "not built", advice)


def _search(config: RunConfig) -> Iterator[Finding]:
    if config.verifier.backend == "minilean" and not config.verifier.search_dir:
        return
    folder = Path(config.verifier.search_dir or Path(config.verifier.project_dir) / ".lake" / "packages" / "mathlib")
    if not folder.is_dir():
        state = "missing" if config.verifier.search_dir else "note"
        yield Finding(state, "Mathlib sources", f"none in {folder}", "run lean/setup, or set verifier.search_dir")
        return
    program = shutil.which("rg", path=str(Path(sys.executable).parent)) or shutil.which("rg")
    yield _needed(
        program is not None, "rg", program or "not on PATH", "pip install ripgrep, or the package of your system"
    )
