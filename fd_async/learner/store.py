"""Fragments of parameters in files that any number of ranks can read, whichever ranks wrote them.

    learner/shards_00000.safetensors   float32 tensors "KIND/NAME" (master, exp_avg, exp_avg_sq, teacher), flat
    learner/rng_00000.safetensors      the random state of a rank: "cpu", "cuda"

A tensor of a shard file is a run of elements of the flattened parameter NAME; the file's metadata `starts` says where
each begins. Together the files hold every element of every kind exactly once: a gap or an overlap is an error. A
reader asks for elements [start, stop) and gets them from whichever files hold them.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fd_async.errors import CheckpointError

if TYPE_CHECKING:
    from fd_async.learner.shards import Fragment


class Run(NamedTuple):
    """Elements [start, stop) of a parameter, and the open file that holds them."""

    start: int
    stop: int
    path: Path
    file: Any


def shard_path(folder: Path, index: int) -> Path:
    """Return the file of one rank's fragments."""
    return folder / f"shards_{index:05d}.safetensors"


def random_path(folder: Path, rank: int) -> Path:
    """Return the file of one rank's random state."""
    return folder / f"rng_{rank:05d}.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file and wait until it is on the disk. The GIL is free meanwhile.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    with failing_clearly(path):
        save_file(dict(tensors), path, metadata=dict(metadata or {}))
        path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes files that only their owner may read
        with path.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def failing_clearly(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a write into one line that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        hint = "the earlier checkpoints are untouched"
        if not path.parent.is_dir():
            hint = "it is not there on this node: run.dir must lie on a disk that all learner ranks share"
        elif re.search("No space|too large|quota", reason):
            hint = f"free some disk or lower checkpoint.keep_last; {hint}"
        raise CheckpointError(f"{path}: cannot be written: {reason}; {hint}") from error


def write_shard(folder: Path, index: int, fragments: Mapping[str, Fragment]) -> Path:
    """Write this rank's fragments, keyed KIND/NAME; empty ones are left out. Return the file."""
    held = {key: fragment for key, fragment in fragments.items() if len(fragment.values)}
    starts = json.dumps({key: fragment.start for key, fragment in held.items()})
    path = shard_path(folder, index)
    write_tensors(path, {key: fragment.values for key, fragment in held.items()}, {"starts": starts})
    return path


class Store:
    """The fragments of all ranks of one checkpoint; made by `open_store`."""

    def __init__(self, folder: Path, runs: Mapping[str, list[Run]]) -> None:
        self._folder, self._runs = folder, runs

    def check(self, kinds: Mapping[str, Mapping[str, int]]) -> None:
        """Compare with what the model needs: kind -> parameter name -> number of elements.

        Raises:
            CheckpointError: a parameter is missing or unknown, or its elements have a gap or an overlap.
        """
        wanted = {f"{kind}/{name}": num for kind, counts in kinds.items() for name, num in counts.items() if num}
        for key in sorted(wanted.keys() ^ self._runs.keys()):
            what = "has no" if key in wanted else "has an unknown"
            raise CheckpointError(f"{self._folder}: {what} {key}; it was written for another model or algorithm")
        for key, count in wanted.items():
            position, before = 0, None
            for run in self._runs[key]:
                if run.start < position:
                    assert before is not None
                    raise CheckpointError(
                        f"{run.path}: elements {run.start} to {min(position, run.stop)} of {key} are also in "
                        f"{before.path.name}; the checkpoint is damaged"
                    )
                if run.start > position:
                    break
                position, before = run.stop, run
            if position != count:
                end = next((run.start for run in self._runs[key] if run.start > position), count)
                raise CheckpointError(
                    f"{self._folder}: elements {position} to {end} of {key} are in no shards_* file; "
                    f"the model has {count}; the checkpoint is damaged or of another model"
                )

    def read(self, key: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of KIND/NAME as a flat float32 tensor on the CPU; `check` comes first."""
        values = torch.empty(stop - start, dtype=torch.float32)
        for run in self._runs[key]:
            first, last = max(start, run.start), min(stop, run.stop)
            if first < last:
                part = run.file.get_slice(key)[first - run.start : last - run.start]
                values[first - start : last - start] = part
        return values


@contextmanager
def open_store(folder: Path, num_shards: int) -> Iterator[Store]:
    """Open all shard files of a checkpoint's `learner` folder.

    Raises:
        CheckpointError: a file is missing, cut short or not ours; names it.
    """
    runs: dict[str, list[Run]] = defaultdict(list)
    with ExitStack() as stack:
        for index in range(num_shards):
            path = shard_path(folder, index)
            with unreadable(path):
                file: Any = stack.enter_context(safe_open(path, framework="pt"))
                for key, start in json.loads(file.metadata()["starts"]).items():
                    (length,) = file.get_slice(key).get_shape()
                    runs[key].append(Run(start, start + length, path, file))
        yield Store(folder, {key: sorted(parts, key=lambda run: run.start) for key, parts in runs.items()})


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Name the file that cannot be read."""
    try:
        yield
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; the checkpoint is damaged") from error


def random_state() -> dict[str, Tensor]:
    """Copy torch's random state."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def read_random_state(path: Path) -> dict[str, Tensor]:
    """Read what a rank wrote."""
    with unreadable(path), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Let torch continue from a random state."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
