"""Brings all ranks up to their greeting: as children of this process, or through DeepSpeed's launcher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import anyio
from anyio.abc import SocketAttribute, TaskGroup

from fd_async.config.schema import RunConfig
from fd_async.errors import LearnerError, PreflightError
from fd_async.learner import hosts
from fd_async.learner.entry import LinkFile
from fd_async.learner.ranks import RankProcess, accept_all, free_port, new_secret, settings, spawn, write_link_file


async def start_ranks(
    config: RunConfig,
    ranks: list[RankProcess],
    launcher: hosts.Launcher,
    private: Path,
    run_dir: Path,
    group: TaskGroup,
    died: anyio.Event,
    environment: Mapping[str, str],
) -> None:
    """Start every rank, add it to `ranks` at once, watch it in `group`, and wait for its greeting.

    Raises:
        PreflightError: the hostfile or the controller's address cannot be used.
        LearnerError: a rank did not greet within `learner.start_timeout_s`.
    """
    logs = run_dir / "logs"
    with _deadline(config, ranks, logs):
        if config.learner.hostfile:
            await _launch_all(config, launcher, ranks, logs, group, died, environment)
        else:
            await _spawn_all(config, ranks, private, logs, group, died, environment)


@contextmanager
def _deadline(config: RunConfig, ranks: Sequence[RankProcess], logs: Path) -> Iterator[None]:
    timeout_s = config.learner.start_timeout_s
    try:
        with anyio.fail_after(timeout_s):
            yield
    except TimeoutError:
        absent = ", ".join(rank.name for rank in ranks if not rank.is_attached)
        raise LearnerError(
            f"a learner rank did not connect within learner.start_timeout_s = {timeout_s:g} s; see {logs}: {absent}"
        ) from None


async def _spawn_all(
    config: RunConfig,
    ranks: list[RankProcess],
    private: Path,
    logs: Path,
    group: TaskGroup,
    died: anyio.Event,
    environment: Mapping[str, str],
) -> None:
    link = LinkFile(
        address=str(private / "learner.sock"),
        secret=new_secret(),
        master_addr="127.0.0.1",
        master_port=free_port(),
        settings=settings(config, on_one_machine=True),
        gpus=config.learner.gpus,
    )
    link_path = private / "link.json"
    write_link_file(link_path, link)
    try:
        listener = await anyio.create_unix_listener(link.address)
    except OSError as error:
        raise PreflightError(f"cannot listen on {link.address} ({error}); set TMPDIR to a short local path") from error
    async with listener:
        for rank in range(config.learner.ranks):
            ranks.append(await spawn(config, rank, link_path, logs / f"learner-{rank}.log", environment))
            group.start_soon(ranks[-1].watch, died)
        await accept_all(ranks, listener, link.secret, group, died)


async def _launch_all(
    config: RunConfig,
    launcher: hosts.Launcher,
    ranks: list[RankProcess],
    logs: Path,
    group: TaskGroup,
    died: anyio.Event,
    environment: Mapping[str, str],
) -> None:
    found = await anyio.to_thread.run_sync(hosts.check, config)
    for index, name in enumerate(hosts.names_of_ranks(found)):
        ranks.append(RankProcess(index, logs / f"learner-{index}.log", host=name))
    host, port = hosts.endpoint(config)
    try:
        listener = await anyio.create_tcp_listener(local_host=host, local_port=port)
    except OSError as error:
        raise PreflightError(
            f"learner.controller_address: cannot listen on {host}:{port} ({error.strerror or error}); "
            "name an address of this machine and a free port"
        ) from error
    async with listener:
        address = f"[{host}]:{listener.extra(SocketAttribute.local_port)}"
        link = await anyio.to_thread.run_sync(lambda: hosts.link_file(config, found, address, new_secret(), logs))
        link_path = await anyio.to_thread.run_sync((logs.parent / "learner-link.json").absolute)
        try:
            write_link_file(link_path, link)
            await launcher.start(hosts.commands(config, found, link, link_path), dict(environment) | link.settings)
            for process in launcher.processes:
                group.start_soon(launcher.watch, process, died)
            await accept_all(ranks, listener, link.secret, group, died)
        finally:
            link_path.unlink(missing_ok=True)
