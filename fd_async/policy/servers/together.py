"""One push to many servers: all prepare while they serve, then those that are ready change at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

import anyio
from msgspec import Struct

from fd_async.config.schema import Policy
from fd_async.errors import PushRefused
from fd_async.policy.servers.member import Member
from fd_async.policy.servers.pushing import FAILURES, Weights, commit, prepare, verify
from fd_async.types import PushReport


class Taken(Struct, frozen=True):
    """A push that a server took; seconds, and nats."""

    prepared: float
    """When all were ready, on the clock of `time.perf_counter`."""
    stall_s: float
    commit_s: float
    probe_s: float
    max_abs: float


async def push_to_all(
    members: list[Member], weights: Weights, config: Policy, lose: Callable[[Member, str], None]
) -> dict[Member, Taken | Exception]:
    """Push to all servers that can be reached and take no other push; return what came of each.

    Args:
        members: all servers.
        weights: to push.
        config: the `[policy]` table.
        lose: told of each that died or is in doubt, with the reason.
    """
    targets = [member for member in members if member.state != "away" and not member.pushing.locked()]
    results: dict[Member, Taken | Exception] = {}
    with ExitStack() as stack:
        for member in targets:
            member.pushing.acquire_nowait()
            stack.callback(member.pushing.release)
        try:
            ready = await _prepare_all(targets, weights, config, results)
            await _take_all(ready, weights, config, results)
        finally:
            for member in targets:
                error = results.get(member)
                if isinstance(error, Exception) and not isinstance(error, PushRefused):
                    lose(member, str(error))
                elif not member.verified.is_set():
                    lose(member, "a push to it was given up")
    return results


async def _prepare_all(
    targets: list[Member], weights: Weights, config: Policy, results: dict[Member, Taken | Exception]
) -> list[Member]:
    ready: list[Member] = []

    async def get_ready(member: Member) -> None:
        try:
            await prepare(member, weights, config)
            ready.append(member)
        except FAILURES as error:
            results[member] = error

    async with anyio.create_task_group() as group:
        for member in targets:
            group.start_soon(get_ready, member)
    return ready


async def _take_all(
    ready: list[Member], weights: Weights, config: Policy, results: dict[Member, Taken | Exception]
) -> None:
    prepared = time.perf_counter()

    async def take(member: Member) -> None:
        try:
            stall = await commit(member, weights, config)
            began = time.perf_counter()
            max_abs = await verify(member, weights, config)
            results[member] = Taken(prepared, stall.stall_s, stall.commit_s, time.perf_counter() - began, max_abs)
        except FAILURES as error:
            results[member] = error

    async with anyio.create_task_group() as group:
        for member in ready:
            group.start_soon(take, member)


def report(weights: Weights, took: list[Taken], began: float) -> PushReport:
    """Report the slowest of all servers; zeros where one took the weights only when it came back."""
    return PushReport(
        version=weights.version,
        stage_s=max((taken.prepared for taken in took), default=began) - began,
        stall_s=max((taken.stall_s for taken in took), default=0.0),
        commit_s=max((taken.commit_s for taken in took), default=0.0),
        probe_s=max((taken.probe_s for taken in took), default=0.0),
        probe_max_abs=max((taken.max_abs for taken in took), default=0.0),
    )
