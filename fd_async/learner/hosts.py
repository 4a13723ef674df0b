"""Ranks on several nodes, started by DeepSpeed's launcher from its hostfile. No torch.

    hostfile ▸ check ▸ listen on controller_address ▸ launcher ▸ on each host: deepspeed.launcher.launch ▸ `entry`
    end: ranks leave because their connection closed ▸ launcher ends ▸ SIGTERM ▸ SIGKILL of its session

Every node must see the run folder, the checkout and the Python environment under the same paths, as DeepSpeed asks.
Rank numbers follow the order of the hostfile; `learner.gpus` names the GPU of each rank on its own host.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec
import structlog
from anyio.abc import Process

from fd_async.config.schema import RunConfig
from fd_async.errors import LearnerRankDied, PreflightError
from fd_async.learner import entry
from fd_async.learner.ranks import LEAVE_S, free_port, log_tail, settings

log = structlog.get_logger(__name__)

_LINE = re.compile(r"(\S+)\s+slots\s*=\s*(\d+)")
_PROGRAMS = {"pdsh": "pdsh", "ssh": "ssh", "openmpi": "mpirun", "mpich": "mpirun", "slurm": "srun"}
_FORWARDED = (
    "NCCL_",
    "GLOO_",
    "UCX_",
    "FI_",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "TRITON_",
    "PYTORCH_",
)
"""Prefixes of variables of this process that every rank gets."""
_RANK_SPEAKS_FIRST_S = 1.0
"""A launcher ends because a rank died, and the rank's own end says more; wait this long for it."""


class Host(NamedTuple):
    """A line of the hostfile."""

    name: str
    slots: int


def read_hostfile(path: Path) -> list[Host]:
    """Parse a DeepSpeed hostfile: `HOST slots=N` lines, `#` comments.

    Raises:
        PreflightError: the file or a line of it cannot be used.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise PreflightError(f"learner.hostfile = {str(path)!r}: cannot read it ({error.strerror})") from error
    hosts: list[Host] = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None or int(match[2]) < 1:
            raise PreflightError(
                f"learner.hostfile = {str(path)!r}, line {number}: expected `HOST slots=N`, got {text!r}"
            )
        if any(host.name == match[1] for host in hosts):
            raise PreflightError(
                f"learner.hostfile = {str(path)!r}, line {number}: host {match[1]} stands there "
                "twice; give it one line with all its slots"
            )
        hosts.append(Host(match[1], int(match[2])))
    if not hosts:
        raise PreflightError(f"learner.hostfile = {str(path)!r} names no host; write `HOST slots=N` lines")
    return hosts


def is_this_machine(name: str) -> bool:
    """Whether a host name or address leads to this machine."""
    if name in ("localhost", socket.gethostname(), socket.getfqdn()):
        return True
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, _, _, address in found:
        with socket.socket(family, kind) as probe, contextlib.suppress(OSError):
            probe.bind((address[0], 0))
            return True
    return False


def check(config: RunConfig) -> list[Host]:
    """Read the hostfile and refuse what cannot start with it. May ask the name service.

    Raises:
        PreflightError: with the key to change.
    """
    learner = config.learner
    hosts = read_hostfile(Path(learner.hostfile))
    slots = sum(host.slots for host in hosts)
    if slots != learner.ranks:
        raise PreflightError(
            f"learner.ranks = {learner.ranks}, but learner.hostfile has {slots} slots; make them equal"
        )
    program = _PROGRAMS[learner.launcher]
    if len(hosts) > 1 and shutil.which(program) is None:
        raise PreflightError(
            f'learner.launcher = "{learner.launcher}" needs {program} on PATH; install it or take "ssh"'
        )
    if learner.launcher in ("mpich", "slurm") and len({host.slots for host in hosts}) > 1:
        raise PreflightError(
            f'learner.launcher = "{learner.launcher}" needs the same slots on every host of the hostfile; '
            "make them equal"
        )
    if not learner.controller_address and not all(is_this_machine(host.name) for host in hosts):
        raise PreflightError(
            "learner.hostfile names other machines: set learner.controller_address to a name or address of this one "
            "that they reach"
        )
    if config.policy.push == "shm" and not is_this_machine(hosts[0].name):
        raise PreflightError(
            f'policy.push = "shm" needs rank 0 on this machine, and the first host of learner.hostfile is '
            f'{hosts[0].name}: put this machine first, or take policy.push = "file" or "nccl"'
        )
    _check_gpus(config, hosts)
    return hosts


def _check_gpus(config: RunConfig, hosts: Sequence[Host]) -> None:
    gpus, here = iter(config.learner.gpus), set(config.policy.gpus)
    for host in hosts if config.learner.gpus else []:
        taken = [gpu for gpu, _ in zip(gpus, range(host.slots), strict=False)]
        if len(set(taken)) < len(taken):
            raise PreflightError(
                f"learner.gpus gives host {host.name} the GPUs {taken}: name another one for each slot"
            )
        if config.policy.push == "nccl" and here & set(taken) and is_this_machine(host.name):
            raise PreflightError(
                f'policy.push = "nccl" cannot join two processes on one GPU: {sorted(here & set(taken))}; '
                'take other GPUs, or "shm"'
            )


def names_of_ranks(hosts: Sequence[Host]) -> list[str]:
    """Return the host of every rank."""
    return [host.name for host in hosts for _ in range(host.slots)]


def endpoint(config: RunConfig) -> tuple[str, int]:
    """Return host and port to listen on; port 0 takes a free one.

    Raises:
        PreflightError: `learner.controller_address` is no HOST or HOST:PORT.
    """
    text = config.learner.controller_address or "127.0.0.1"
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s:\[\]]+))(?::(\d{1,5}))?", text)
    if match is None or int(match[3] or 0) > 65535:
        raise PreflightError(f"learner.controller_address = {text!r}: expected HOST, HOST:PORT or [IPV6]:PORT")
    return match[1] or match[2], int(match[3] or 0)


def address_of_rank_0(config: RunConfig) -> str:
    """Return where rank 0 is reached: this machine without a hostfile, else the hostfile's first host."""
    if not config.learner.hostfile:
        return "127.0.0.1"
    first = read_hostfile(Path(config.learner.hostfile))[0].name
    return endpoint(config)[0] if is_this_machine(first) else first


def link_file(config: RunConfig, hosts: Sequence[Host], address: str, secret: str, logs: Path) -> entry.LinkFile:
    """Describe controller and ranks for the processes on the hosts."""
    is_local = all(is_this_machine(host.name) for host in hosts)
    forwarded = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}
    return entry.LinkFile(
        address=address,
        secret=secret,
        master_addr=address_of_rank_0(config),
        master_port=free_port(),
        log_dir=str(logs.absolute()),
        settings=forwarded | settings(config, on_one_machine=is_local),
        gpus=config.learner.gpus,
    )


def commands(config: RunConfig, hosts: Sequence[Host], link: entry.LinkFile, link_path: Path) -> list[list[str]]:
    """Return the launcher's argv: DeepSpeed's runner, or with `ssh` one DeepSpeed launch for each host."""
    learner = config.learner
    master = [f"--master_addr={link.master_addr}", f"--master_port={link.master_port}", "--no_local_rank"]
    script = [entry.__file__, "--link", str(link_path)]
    if learner.launcher != "ssh":
        runner = [sys.executable, "-u", "-m", "deepspeed.launcher.runner", "--no_ssh_check"]
        where = ["--hostfile", str(Path(learner.hostfile).absolute()), "--launcher", learner.launcher]
        return [[*runner, *where, *master, *script]]
    world = base64.urlsafe_b64encode(
        msgspec.json.encode({host.name: list(range(host.slots)) for host in hosts})
    ).decode()
    result = []
    for node, host in enumerate(hosts):
        launch = [
            sys.executable,
            "-u",
            "-m",
            "deepspeed.launcher.launch",
            f"--world_info={world}",
            f"--node_rank={node}",
        ]
        argv = [*launch, *master, *script]
        if not is_this_machine(host.name):
            # With a terminal of its own, whatever runs there ends when this connection does.
            remote = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(argv)}"
            argv = ["ssh", "-tt", "-o", "BatchMode=yes", host.name, remote]
        result.append(argv)
    return result


class Launcher:
    """The launcher's processes, each in a session of its own."""

    def __init__(self, log_path: Path) -> None:
        self.processes: list[Process] = []
        self._log_path = log_path

    async def start(self, argvs: Sequence[Sequence[str]], environment: dict[str, str]) -> None:
        """Start all processes; `end` ends those that did start, whatever happens."""
        with self._log_path.open("ab") as log_file:
            for argv in argvs:
                process = await anyio.open_process(
                    list(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    start_new_session=True,
                )
                self.processes.append(process)

    async def watch(self, process: Process, died: anyio.Event) -> None:
        """Wait for one of the processes to end.

        Raises:
            LearnerRankDied: always, unless cancelled first.
        """
        code = await process.wait()
        await anyio.sleep(_RANK_SPEAKS_FIRST_S)
        died.set()
        tail = await anyio.to_thread.run_sync(log_tail, self._log_path)
        raise LearnerRankDied(
            f"the learner's launcher (pid {process.pid}) ended with code {code}; last lines of {self._log_path}:\n"
            f"{tail}"
        )

    async def end(self) -> None:
        """Wait until the launcher has left, as it does when all ranks have, or end it."""
        async with anyio.create_task_group() as group:
            for process in self.processes:
                group.start_soon(_end, process)


async def _end(process: Process) -> None:
    """Give a launcher time to leave by itself, then end its whole session, and wait no longer than that takes."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        with anyio.move_on_after(LEAVE_S):
            await process.wait()
            break
    # A stopped rank may be left in the session after its launcher.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        log.warning("launcher_cannot_be_killed", pid=process.pid, reason="it hangs in the kernel")
    else:
        await process.aclose()
