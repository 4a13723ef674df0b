"""Sells feedback over a socket and writes every sale down before it answers; outlives the runs that are killed."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
from anyio.abc import SocketStream

_ANSWER_S = (0.005, 0.04)


@contextmanager
def selling(folder: Path) -> Iterator[Path]:
    """Run the seller in a process of its own; yield its socket."""
    socket = folder / "seller.sock"
    pid = os.fork()
    if not pid:
        try:
            anyio.run(_serve, folder, socket)
        finally:
            os._exit(1)
    try:
        yield socket
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def sales(folder: Path, run: str) -> list[Counter[str]]:
    """Return for each life of a run: question -> number of times that it bought the answer."""
    path, lives = folder / f"{run}.sales", list[Counter[str]]()
    for line in path.read_text().splitlines() if path.exists() else ():
        life, key = line.split()
        while len(lives) <= int(life):
            lives.append(Counter())
        lives[int(life)][key] += 1
    return lives


async def _serve(folder: Path, socket: Path) -> None:
    async def handle(stream: SocketStream) -> None:
        # A buyer that is killed hangs up: before it asked nothing was sold, afterwards its money is spent all the same.
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            async with stream:
                run, life, key = (await stream.receive(4096)).decode().split()
                with (folder / f"{run}.sales").open("a") as file:
                    file.write(f"{life} {key}\n")
                await anyio.sleep(random.uniform(*_ANSWER_S))
                await stream.send(f"1. Do it. ({key})".encode())

    listener = await anyio.create_unix_listener(socket)
    await listener.serve(handle)
