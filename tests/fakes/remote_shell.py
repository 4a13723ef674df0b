"""`ssh` and `pdsh` that run the command on this machine, for launches on hosts that do not exist.

`install(folder)` writes both as executables; put the folder first on PATH. Each call is a line of `folder/calls`.
The arguments are those that DeepSpeed's runner and the project's own ssh launch give:

    ssh [-tt] [-o OPTION]... HOST COMMAND
    pdsh -S -f FANOUT -w HOST,HOST,... WORD...      %n in the command is the number of the host

`pkill` through pdsh, DeepSpeed's last resort, is written down and not carried out: it would match by pattern.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def install(folder: Path) -> None:
    """Write the two programs into a folder."""
    for name in ("ssh", "pdsh"):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "{folder}" {name} "$@"\n')
        path.chmod(0o755)


def _ssh(arguments: list[str]) -> int:
    while arguments[0].startswith("-"):
        arguments = arguments[2 if arguments[0] == "-o" else 1 :]
    return subprocess.call(["/bin/bash", "-c", " ".join(arguments[1:])])


def _pdsh(arguments: list[str]) -> int:
    hosts: list[str] = []
    while arguments[0].startswith("-"):
        if arguments[0] == "-w":
            hosts = arguments[1].split(",")
        arguments = arguments[1 if arguments[0] == "-S" else 2 :]
    command = " ".join(arguments)
    if command.startswith("pkill"):
        return 0
    running = [
        subprocess.Popen(["/bin/bash", "-c", command.replace("%n", str(index))]) for index, _ in enumerate(hosts)
    ]
    return max(process.wait() for process in running)


if __name__ == "__main__":
    with (Path(sys.argv[1]) / "calls").open("a") as calls:
        calls.write(" ".join(sys.argv[2:]) + "\n")
    sys.exit(_ssh(sys.argv[3:]) if sys.argv[2] == "ssh" else _pdsh(sys.argv[3:]))
