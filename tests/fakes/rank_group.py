"""Runs a function on several local processes that form one process group, without a controller."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def _enter(function: Callable[..., Any], rank: int, world_size: int, port: int, pipe: Connection, args: Any) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    try:
        import torch

        from fd_async.learner.engine import init_distributed

        torch.set_num_threads(1)
        init_distributed("gloo", 120)
        pipe.send((function(*args), ""))
    except BaseException:
        pipe.send((None, traceback.format_exc()))
        raise


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, timeout_s: float = 400.0) -> list[Any]:
    """Call `function(*args)` on every rank; return results in rank order. They travel pickled: no live tensors.

    Raises:
        AssertionError: a rank raised or was silent for `timeout_s`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(world_size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_enter, args=(function, rank, world_size, port, theirs, args), daemon=True)
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        results = []
        for rank, pipe in enumerate(pipes):
            assert pipe.poll(timeout_s), f"rank {rank} was silent for {timeout_s:g} s"
            result, error = pipe.recv()
            assert not error, f"rank {rank}:\n{error}"
            results.append(result)
        return results
    finally:
        for process in processes:
            process.kill()
            process.join()
