"""Sells feedback over a socket and outlives the runs that are killed.

Every sale is written down before the answer, and the time of the answer after it. A run that is to be killed in silence
is sold to, and gets no answer any more: what it was answered until then is old when the kill comes.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
from anyio.abc import SocketStream, TaskStatus

from bench.crashes.calls import Purchases

_ANSWER_S = (0.005, 0.04)


@contextmanager
def selling(folder: Path) -> Iterator[Path]:
    """Run the seller in a process of its own; yield its socket."""
    socket = folder / "seller.sock"
    pid = os.fork()
    if not pid:
        try:
            anyio.run(serve, folder, socket)
        finally:
            os._exit(1)
    try:
        yield socket
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def purchases(folder: Path, run: str) -> list[Purchases]:
    """Return what each life of a run bought, up to the last that bought anything."""
    path, lives = folder / f"{run}.sales", list[Purchases]()
    for line in path.read_text().splitlines() if path.exists() else ():
        life, key, *delivered_at = line.split()
        while len(lives) <= int(life):
            lives.append(Purchases())
        if delivered_at:
            lives[int(life)].deliver(key, float(delivered_at[0]))
        else:
            lives[int(life)].sold[key] += 1
    return lives


@contextmanager
def silence(folder: Path, run: str) -> Iterator[None]:
    """Leave the questions of a run unanswered; those asked meanwhile stay so."""
    mark = _silence(folder, run)
    mark.touch()
    try:
        yield
    finally:
        mark.unlink()


async def serve(folder: Path, socket: Path, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
    """Answer whoever connects, until cancelled."""

    async def handle(stream: SocketStream) -> None:
        # A buyer that is killed hangs up: before it asked nothing was sold, afterwards its money is spent all the same.
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            async with stream:
                run, life, key = (await stream.receive(4096)).decode().split()
                book = folder / f"{run}.sales"
                _write(book, f"{life} {key}")
                await anyio.sleep(random.uniform(*_ANSWER_S))
                if _silence(folder, run).exists():
                    await stream.receive()  # until it hangs up
                await stream.send(f"1. Do it. ({key})".encode())
                _write(book, f"{life} {key} {time.monotonic()}")

    async with await anyio.create_unix_listener(socket) as listener:
        task_status.started()
        await listener.serve(handle)


def _silence(folder: Path, run: str) -> Path:
    return folder / f"{run}.silent"


def _write(book: Path, line: str) -> None:
    with book.open("a") as file:
        file.write(f"{line}\n")
