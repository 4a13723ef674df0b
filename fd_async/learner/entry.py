"""How a rank process begins: find its place, greet the controller, only then import torch. Run as a script.

    environment (ours, DeepSpeed's, MPI's or Slurm's) ▸ link file ▸ log ▸ hello ▸ `rank.serve`

A rank that cannot import or load what it needs is thus a connection that ends, which the controller sees at once.
The link file lies in a folder of the controller's user alone, or has mode 600; it brings what no command line may
show. SIGUSR1 prints all stacks.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    # A script's own folder comes first otherwise, and its files would hide other modules of the same name.
    sys.path[0] = str(Path(__file__).parents[2])

import msgspec


class LinkFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank needs to find the controller and the other ranks."""

    address: str
    """Path of a Unix socket, or HOST:PORT."""
    secret: str
    master_addr: str
    master_port: int
    log_dir: str = ""
    """Folder for `learner-N.log`; empty where the standard output already is that file."""
    settings: dict[str, str] = {}
    """More environment variables."""
    gpus: list[int] = []
    """GPU index by rank; empty where the environment already chose, or on CPU."""


class Place(NamedTuple):
    """Where a process stands among the ranks."""

    rank: int
    world_size: int
    local_rank: int


_SOURCES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
"""Variables of DeepSpeed (and MPICH through it), Open MPI, Slurm. A job inside a Slurm job has several: first wins."""


def find_place(environment: Mapping[str, str]) -> Place:
    """Read a rank's place from whatever started it."""
    for names in _SOURCES:
        if all(name in environment for name in names):
            return Place(*(int(environment[name]) for name in names))
    raise SystemExit("this process knows no RANK, WORLD_SIZE and LOCAL_RANK: learner ranks are started by fd-run")


def prepare(link: LinkFile, place: Place) -> None:
    """Set the environment that torch and DeepSpeed read when they are imported."""
    os.environ.update(link.settings)
    os.environ.update(
        RANK=str(place.rank),
        WORLD_SIZE=str(place.world_size),
        LOCAL_RANK=str(place.local_rank),
        MASTER_ADDR=link.master_addr,
        MASTER_PORT=str(link.master_port),
    )
    if link.gpus:
        os.environ.update(CUDA_VISIBLE_DEVICES=str(link.gpus[place.rank]), LOCAL_RANK="0")


def _log_into(path: Path) -> None:
    with path.open("ab", buffering=0) as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(log.fileno(), stream.fileno())


def main() -> None:
    """Greet the controller and serve."""
    parser = argparse.ArgumentParser(description="A learner rank; started by fd-run.")
    parser.add_argument("--link", required=True, help="File that says where the controller is.")
    arguments = parser.parse_args()
    link = msgspec.json.decode(Path(arguments.link).read_bytes(), type=LinkFile)
    place = find_place(os.environ)
    prepare(link, place)
    if link.log_dir:
        _log_into(Path(link.log_dir) / f"learner-{place.rank}.log")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A scheduler may signal every process of a job. The controller decides; a rank leaves when it hangs up.
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    from fd_async.learner.link import RankSocket

    connection = RankSocket(link.address, place.rank, link.secret)
    from fd_async.learner.rank import serve

    serve(connection, place.rank, place.world_size)


if __name__ == "__main__":
    main()
