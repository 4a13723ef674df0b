"""Disk and shared memory: what a run will write, against what is free. Leaves nothing behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fd_async.config.schema import RunConfig
from fd_async.learner.memory_plan import gib
from fd_async.learner.model_shape import Shape, read_shape
from fd_async.preflight.findings import Finding, needed

GIB = 2**30
_LEDGER_BYTES_PER_TOKEN = 16
"""An id, a log-probability, and its share of the text; an upper estimate."""
_SHM_UNKNOWN_MODEL = GIB
"""Least shared memory where the size of the model is not known before it is downloaded."""


def checkpoint_bytes(config: RunConfig, shape: Shape) -> int:
    """Return the size of one checkpoint: the model, and float32 weights, Adam's moments and teacher in shards."""
    width = 2 if config.model.dtype == "bfloat16" else 4
    return shape.num_params * (width + 12 + (4 if config.algorithm.type == "fd" else 0))


def _run_folder(config: RunConfig) -> Iterator[Finding]:
    """Write a file where the run will; the rights alone do not tell of read-only disks and quotas."""
    place, run_dir = _existing(Path(config.run.dir)), Path(config.run.dir) / config.run.name
    advice = "make the folder writable for this user, or set run.dir to one that is"
    if file := next((path for path in (run_dir, *run_dir.parents) if path.is_file()), None):
        yield Finding("missing", "run folder", f"{file} is a file, no folder", "set run.dir or --run to another place")
        return
    try:
        with tempfile.TemporaryFile(dir=_existing(run_dir)) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        yield Finding("missing", "run folder", f"cannot write to {error.filename or place}: {error.strerror}", advice)
        return
    if (run_dir / "metrics.jsonl").is_file() or any((run_dir / "checkpoints").glob("step_*")):
        yield Finding("note", "run folder", f"{run_dir} holds a run", "add --resume, or another name with --run")
    else:
        yield Finding("ok", "run folder", str(run_dir))


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _disk(config: RunConfig) -> Iterator[Finding]:
    table, shape = config.checkpoint, read_shape(config.model.path)
    free, reserve = shutil.disk_usage(_existing(Path(config.run.dir))).free, int(table.min_free_gib * GIB)
    where = f"{gib(free)} free for {config.run.dir}/"
    advice = "free some, set run.dir to a larger disk, or lower checkpoint.keep_last or checkpoint.min_free_gib"
    if shape is None:
        found = f"{where}, {gib(reserve)} must stay free; checkpoints not known before the model is here"
        yield needed(free > reserve, "disk", found, advice)
        return
    one = checkpoint_bytes(config, shape)
    copies = table.keep_last + (1 if table.every_steps else 0)  # a new one is whole before the oldest goes
    written = _size(Path(config.run.dir) / config.run.name / "checkpoints")
    more = max(0, copies * one - written)
    found = f"{where}; {copies} checkpoints (checkpoint.keep_last + 1) of {gib(one)} and {gib(reserve)} that stay free"
    if free < more + reserve:
        yield Finding("missing", "disk", f"{found} need {gib(more + reserve)}", advice)
        return
    grows = growth(config)
    if free < more + reserve + grows:
        found += f"; ledger and trace may grow by {gib(grows)}, which does not fit too"
        yield Finding("note", "disk", found, "lower telemetry.ledger_max_gib, or use a larger disk for a long run")
    else:
        yield Finding("ok", "disk", found)


def growth(config: RunConfig) -> int:
    """Return what ledger and trace may take by the end of the run: every attempt as long as it may be."""
    rollout, telemetry = config.rollout, config.telemetry
    attempts = config.run.max_steps * config.learner.prompts_per_step * rollout.samples_per_prompt
    ledger = attempts * (rollout.max_prompt_tokens + rollout.max_response_tokens) * _LEDGER_BYTES_PER_TOKEN
    if telemetry.ledger_max_gib:
        ledger = min(ledger, int(telemetry.ledger_max_gib * GIB))
    return ledger + (2 * telemetry.trace_max_mib << 20 if telemetry.trace else 0)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


def _staging(config: RunConfig) -> Iterator[Finding]:
    if config.policy.push == "nccl":
        return
    is_shared = config.policy.push == "shm"
    folder = Path("/dev/shm") if is_shared else Path(config.policy.push_dir)
    if not folder.is_dir() and is_shared:
        yield Finding("note", "/dev/shm", "not there", "weights travel through the temporary folder, slower")
        return
    cure = "docker run --shm-size=..., or mount a larger tmpfs" if is_shared else "make policy.push_dir a larger folder"
    if not _can_write(folder):
        yield Finding("missing", str(folder), "not a folder that can be written", cure)
        return
    free, shape = shutil.disk_usage(folder).free, read_shape(config.model.path)
    width = 2 if config.model.dtype == "bfloat16" else 4
    wanted = 2 * width * shape.num_params if shape else _SHM_UNKNOWN_MODEL
    found = f"{gib(free)} free, {gib(wanted)} needed{'' if shape else ' at least'}"
    yield needed(free >= wanted, str(folder), found, f"two copies of the weights are staged there: {cure}")


def _can_write(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


PROBES: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (_run_folder, _disk, _staging)
"""In the order of the report."""
