"""Checkpoints of a run: taken between two steps, written beside the next ones, and complete or not there at all.

    take    the ranks copy weights, optimizer and teacher to memory; training goes on
    write   disk checked ▸ ranks write into `.step_000050.tmp` ▸ manifest ▸ rename ▸ `latest` renamed ▸ old ones pruned

One at a time: the next waits for the one before. A failure ends the run and leaves the earlier checkpoints as they
are; what a kill leaves behind is removed by the next checkpoint. What lies in one: `learner.checkpoints`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

import anyio
import anyio.to_thread
import msgspec
import structlog

from fd_async.config.schema import RunConfig
from fd_async.errors import CheckpointError
from fd_async.learner.checkpoints import Manifest, checkpoint_name, list_checkpoints, read_manifest

log = structlog.get_logger(__name__)


class Saver(Protocol):
    """What of the learner makes a checkpoint."""

    async def snapshot(self) -> int: ...
    async def write(self, folder: Path) -> None: ...


class Checkpoints:
    """Takes and writes the checkpoints of one run, inside `running`."""

    def __init__(
        self,
        root: Path,
        saver: Saver,
        config: RunConfig,
        config_hash: str,
        *,
        is_good: Callable[[int], bool] = lambda step: True,
    ) -> None:
        """Prune all but the last `checkpoint.keep_last` and the newest of a step that `is_good`."""
        self._root, self._saver, self._config, self._config_hash = root, saver, config, config_hash
        self._is_good = is_good
        self._taken, self._written, self._idle = anyio.Event(), anyio.Event(), anyio.Event()
        self._written.set()
        self._idle.set()
        self._step, self._num_bytes = 0, 0

    async def take(self, step: int) -> None:
        """Copy the learner's state of `step` to be written, once the checkpoint before is written.

        A complete checkpoint of the same step is kept as it is: a kill while it is replaced could cost the only one.
        """
        await self.settle()
        if await anyio.to_thread.run_sync(_is_complete, self._root / checkpoint_name(step)):
            return
        self._step, self._num_bytes = step, await self._saver.snapshot()
        self._written, self._idle = anyio.Event(), anyio.Event()
        self._taken.set()

    async def settle(self) -> None:
        """Wait until what was taken has its name on the disk."""
        await self._written.wait()

    def give_up(self) -> None:
        """Leave without waiting for what is being written."""
        self._idle.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write what is taken inside the block; a write under way ends first, within `run.shutdown_s`.

        Raises:
            CheckpointError: at once, too little disk, or writing failed.
        """
        async with anyio.create_task_group() as writing:
            writing.start_soon(self._write_all)
            try:
                yield
            finally:
                with anyio.move_on_after(self._config.run.shutdown_s, shield=True):
                    await self._idle.wait()
                writing.cancel_scope.cancel()

    async def _write_all(self) -> None:
        while True:
            await self._taken.wait()
            try:
                await self._write(self._step, self._num_bytes)
            finally:
                self._idle.set()
            self._taken = anyio.Event()
            self._written.set()

    async def _write(self, step: int, num_bytes: int) -> None:
        final = self._root / checkpoint_name(step)
        aside = self._root / f".{final.name}.tmp"
        config, started = self._config, time.monotonic()
        try:
            await anyio.to_thread.run_sync(_prepare, aside, num_bytes, config.checkpoint.min_free_gib)
            try:
                await self._saver.write(aside)
                manifest = Manifest(
                    step=step,
                    algorithm=config.algorithm.type,
                    ranks=config.learner.ranks,
                    config_hash=self._config_hash,
                    written=time.time(),
                    files={},
                )
                await anyio.to_thread.run_sync(_publish, final, aside, manifest)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.to_thread.run_sync(lambda: shutil.rmtree(aside, ignore_errors=True))
            await anyio.to_thread.run_sync(_prune, self._root, config.checkpoint.keep_last, self._is_known_good(step))
        except OSError as error:
            raise CheckpointError(f"{final}: cannot write the checkpoint: {error}") from error
        seconds = round(time.monotonic() - started, 3)
        log.info("checkpoint_written", step=step, folder=str(final), num_bytes=num_bytes, seconds=seconds)

    def _is_known_good(self, newest: int) -> Callable[[int], bool]:
        """Leave out the checkpoint just written where an alarm acts: the next step is the first to judge it."""
        if self._config.alarms.action == "warn":
            return self._is_good
        return lambda step: step != newest and self._is_good(step)


def forget_after(root: Path, step: int) -> None:
    """Remove the checkpoints after `step`, since a resume from there makes another history, and what a kill left."""
    _sweep(root)
    found = list_checkpoints(root)
    kept = [earlier for earlier in found if earlier <= step]
    if kept:
        _point_to(found[max(kept)])
    for later in found.keys() - kept:
        _remove(found[later])


def _is_complete(folder: Path) -> bool:
    with suppress(CheckpointError):  # a damaged one is replaced
        read_manifest(folder)
        return True
    return False


def _prepare(aside: Path, num_bytes: int, min_free_gib: float) -> None:
    """Make the folder to write into, if the disk has room."""
    root = aside.parent
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    free_gib, needed_gib = shutil.disk_usage(root).free / 2**30, num_bytes / 2**30
    if free_gib < needed_gib + min_free_gib:
        raise CheckpointError(
            f"{root}: {free_gib:.1f} GiB free, the checkpoint takes {needed_gib:.1f} and checkpoint.min_free_gib = "
            f"{min_free_gib:g} must stay; free some disk or lower checkpoint.keep_last"
        )
    aside.mkdir()


def _sweep(root: Path) -> None:
    """Remove folders that a kill left half written or half removed."""
    for left_by_a_kill in root.glob(".step_*.tmp"):
        shutil.rmtree(left_by_a_kill, ignore_errors=True)


def _publish(final: Path, aside: Path, manifest: Manifest) -> None:
    """Sync what was saved, list it, rename the folder."""
    root, paths = final.parent, sorted(aside.rglob("*"))
    files = {str(path.relative_to(aside)): path.stat().st_size for path in paths if path.is_file()}
    listing = msgspec.json.encode(msgspec.structs.replace(manifest, files=files))
    (aside / "manifest.json").write_bytes(msgspec.json.format(listing))
    for path in (*paths, aside / "manifest.json", aside):
        _fsync(path)
    _remove(final)
    aside.replace(final)
    _fsync(root)
    _point_to(final)


def _prune(root: Path, keep_last: int, is_good: Callable[[int], bool]) -> None:
    found = list_checkpoints(root)
    steps = sorted(found)
    newest_good = max(filter(is_good, steps), default=None)
    for old in steps[:-keep_last]:
        if old != newest_good:
            _remove(found[old])


def _point_to(folder: Path) -> None:
    """Let `latest` name this checkpoint."""
    pointer = folder.with_name(".latest.tmp")
    pointer.write_text(folder.name + "\n")
    pointer.replace(folder.with_name("latest"))


def _remove(folder: Path) -> None:
    """Take the name away first: a kill in between leaves a folder that the next checkpoint removes."""
    if folder.is_dir():
        going = folder.with_name(f".{folder.name}.old.tmp")
        shutil.rmtree(going, ignore_errors=True)
        folder.replace(going)
        shutil.rmtree(going, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
