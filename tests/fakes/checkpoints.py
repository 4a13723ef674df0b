"""Checkpoints without a learner: whatever a function writes, under the real manifest and rename."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from fd_async.learner.checkpoints import checkpoint_name
from fd_async.pipeline.checkpoints import Checkpoints
from tests.fakes.control_plane import make_config


async def write_state(folder: Path) -> None:
    (folder / "state").write_text("state")


class Files:
    """A saver whose snapshot is a function that writes files."""

    def __init__(self, save: Callable[[Path], Awaitable[None]] = write_state, num_bytes: int = 5) -> None:
        self.write, self.num_bytes = save, num_bytes

    async def snapshot(self) -> int:
        return self.num_bytes


async def write_checkpoint(
    root: Path, step: int, save: Callable[[Path], Awaitable[None]] = write_state, num_bytes: int = 5, **table: float
) -> Path:
    """Write one checkpoint and return its folder; keywords are keys of `[checkpoint]`."""
    config = make_config(checkpoint={"keep_last": 9, **table})
    checkpoints = Checkpoints(root, Files(save, num_bytes), config, "x")
    with anyio.fail_after(10):
        async with checkpoints.running():
            await checkpoints.take(step)
            await checkpoints.settle()
    return root / checkpoint_name(step)
