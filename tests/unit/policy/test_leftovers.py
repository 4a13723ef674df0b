"""Shared memory that outlives its process."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil

from fd_async.policy.leftovers import remove_shared_files, shared_files


def _hold(pipe: Connection) -> None:
    """Be an engine's process: hold a block and a semaphore until killed."""
    lock, block = multiprocessing.Lock(), SharedMemory(create=True, size=100)
    pipe.send([f"/dev/shm/sem.{lock._semlock.name.removeprefix('/')}", f"/dev/shm/{block.name}"])  # type: ignore[attr-defined]
    time.sleep(60)


def test_what_a_killed_process_held_is_removed_and_nothing_else() -> None:
    """A semaphore, which is mapped under another name, and a block; not what has the same kind of name."""
    other = Path("/dev/shm") / f"psm_{os.getpid()}_not_mapped"
    other.touch()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_hold, args=(there,))
    child.start()
    try:
        held = {Path(path) for path in here.recv()}
        files = shared_files([psutil.Process(child.pid)])
        assert held <= set(files)
        child.kill()
        child.join()
        assert all(file.exists() for file in held)
        remove_shared_files(files)
        remove_shared_files(files)
        assert not any(file.exists() for file in held)
        assert other.exists()
    finally:
        child.kill()
        other.unlink()


def test_a_process_that_is_gone_holds_nothing() -> None:
    """It may end between being listed and being looked at."""
    child = psutil.Popen(["/bin/true"])
    child.wait()
    assert shared_files([child]) == []
