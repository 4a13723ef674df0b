"""One push to many servers: all prepare while they serve, then those that are ready change at once."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial

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
            await _at_all(targets, partial(prepare, weights=weights, config=config), results, lose)
            prepared = time.perf_counter()
            ready = [member for member in targets if member not in results]
            await _at_all(ready, partial(_take, weights=weights, config=config, prepared=prepared), results, lose)
        finally:
            for member in targets:
                if not member.verified.is_set():
                    lose(member, "a push to it was given up")
    return results


async def _at_all(
    members: list[Member],
    step: Callable[[Member], Awaitable[Taken | None]],
    results: dict[Member, Taken | Exception],
    lose: Callable[[Member, str], None],
) -> None:
    """Do a step at all servers side by side, and note what ends a server's push."""

    async def one(member: Member) -> None:
        try:
            taken = await step(member)
            if taken is not None:
                results[member] = taken
        except FAILURES as error:
            results[member] = error
            if not isinstance(error, PushRefused):
                lose(member, str(error))

    async with anyio.create_task_group() as group:
        for member in members:
            group.start_soon(one, member)


async def _take(member: Member, weights: Weights, config: Policy, prepared: float) -> Taken:
    stall = await commit(member, weights, config)
    began = time.perf_counter()
    max_abs = await verify(member, weights, config)
    return Taken(prepared, stall.stall_s, stall.commit_s, time.perf_counter() - began, max_abs)


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
