"""Opening the servers of a run: all are asked once what they are, then looked after until the block ends."""

from __future__ import annotations

import os
import resource
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from fd_async.config.schema import RunConfig
from fd_async.errors import ConfigError, PreflightError
from fd_async.policy.contract import fingerprint, read_contract
from fd_async.policy.servers.fleet import Fleet
from fd_async.policy.servers.member import Member
from fd_async.policy.servers.pushing import FAILURES
from fd_async.policy.servers.watching import Watcher
from fd_async.policy.servers.wire import Link, Unsuited, make_session

_SPARE_FILES = 256
_CONTROL_CONNECTIONS = 16


@asynccontextmanager
async def open_servers(
    config: RunConfig,
    *,
    stop_token_ids: list[int],
    log_dir: Path,
    on_event: Callable[[str, str], None],
) -> AsyncIterator[Fleet]:
    """Use the servers of `policy.servers` for the length of the block.

    Args:
        config: of the run.
        stop_token_ids: a completion ends after any of these.
        log_dir: not used: the servers keep their own logs.
        on_event: told of servers that leave and come back, as (kind, one line).

    Raises:
        PreflightError: a server that answers was not started for this run.
        EngineDied: none answered within `policy.start_timeout_s`.
        ConfigError: the variable with the servers' key is empty.
    """
    policy = config.policy
    key = _key(policy.servers_key_env)
    contract = await anyio.to_thread.run_sync(read_contract, config.model.path)
    watcher = Watcher(config, await anyio.to_thread.run_sync(fingerprint, config.model.path), on_event)
    members: list[Member] = []
    fleet = Fleet(members, watcher, policy, contract, stop_token_ids)
    run_label = secrets.token_hex(4)
    failure: Exception | None = None
    async with (
        make_session(key, _connections(config)) as requests,
        make_session(key, _CONTROL_CONNECTIONS) as control,
    ):
        links = [Link(url.rstrip("/"), requests, control) for url in policy.servers]
        members += [Member(link, run_label, fleet.on_change) for link in links]
        await _look_once(watcher, members)
        async with anyio.create_task_group() as group:
            for member in members:
                group.start_soon(watcher.watch, member)
            try:
                await fleet.wait_until_reachable()
                yield fleet
            except Exception as error:  # raised again below, as itself and not as a group of one
                failure = error
            group.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _look_once(watcher: Watcher, members: list[Member]) -> None:
    """Ask all servers what they are.

    Raises:
        PreflightError: names those that are not for this run.
    """
    unsuited: list[str] = []

    async def look(member: Member) -> None:
        try:
            await watcher.admit(member)
        except Unsuited as error:
            unsuited.append(f"{member.name}: {error}")
        except FAILURES as error:
            watcher.miss(member, str(error))

    async with anyio.create_task_group() as group:
        for member in members:
            group.start_soon(look, member)
    if unsuited:
        raise PreflightError(f"policy.servers: {'; '.join(sorted(unsuited))}")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "") if variable else ""
    if variable and not key:
        raise ConfigError(f"policy.servers_key_env names {variable}, which is not set: export the key in it")
    return key


def _connections(config: RunConfig) -> int:
    """Return how many streams each server may have: all attempts at once, if this process may open so many files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return config.rollout.concurrency
    share = max(1, (soft - _SPARE_FILES) // max(1, len(config.policy.servers)))
    return min(config.rollout.concurrency, share)
