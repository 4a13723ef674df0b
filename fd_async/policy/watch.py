"""Noticing that an engine is of no use any more: a process of it ended, its front end failed, or it answers nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Coroutine
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from fd_async.config.schema import Policy
from fd_async.policy.launch import RunningEngine, logged_errors

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_LOOK_S = 0.2
"""How often to ask vLLM's front end, whose failure makes no event."""
_BEATS = 4
"""Questions per `policy.heartbeat_s` to an engine that answers at once."""


async def end_of(running: RunningEngine, config: Policy, num_holds: Callable[[], int]) -> str:
    """Wait until the engine is lost and return why, in one line.

    Args:
        running: the engine.
        config: `heartbeat_s`, 0 for none.
        num_holds: counts when a push begins and when it ends; odd while the engine may hold still for one, which has
            deadlines of its own.
    """
    reasons: list[str] = []
    async with anyio.create_task_group() as group:

        async def look(wait: Callable[..., Coroutine[Any, Any, str]], *arguments: Any) -> None:
            reasons.append(await wait(*arguments))
            group.cancel_scope.cancel()

        for child in running.children:
            group.start_soon(look, _process_end, child, running.log)
        group.start_soon(look, _front_end, running.llm)
        if config.heartbeat_s:
            group.start_soon(look, _silence, running.llm, config.heartbeat_s, num_holds)
    return reasons[0]


async def _process_end(child: BaseProcess, log: tuple[Any, int]) -> str:
    try:
        descriptor = os.pidfd_open(child.pid or -1)
    except ProcessLookupError:
        pass  # it ended, and has been waited for
    else:
        try:
            await anyio.wait_readable(descriptor)
        finally:
            os.close(descriptor)
    with anyio.move_on_after(_LOOK_S / 2):
        while child.exitcode is None:  # noqa: ASYNC110  # a thread of vLLM waits for it too, and may be about to say
            await anyio.sleep(_LOOK_S / 20)
    return f"vLLM's process {child.name} (pid {child.pid}) {await _describe(child.exitcode, log)}"


async def _describe(exit_code: int | None, log: tuple[Any, int]) -> str:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")
    errors = await anyio.to_thread.run_sync(logged_errors, *log)
    ended = "ended" if exit_code is None else f"ended with exit code {exit_code}"
    return f"{ended}: {errors[-1]}" if errors else ended


async def _front_end(llm: AsyncLLM) -> str:
    while not llm.errored:  # noqa: ASYNC110  # no event tells of it
        await anyio.sleep(_LOOK_S)
    await anyio.sleep(_LOOK_S)  # whose process ended knows more
    return "vLLM's front end failed"


async def _silence(llm: AsyncLLM, heartbeat_s: float, num_holds: Callable[[], int]) -> str:
    """Ask a cheap question again and again; count how often the last answer was still the last.

    Counted, not timed: after this process itself was stopped for a while, the answer is given time to come in.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    core: Any = llm.engine_core
    answers = 0

    async def ask() -> None:
        nonlocal answers
        while True:
            try:
                await core.call_utility_all_async("is_scheduler_paused")
            except EngineDeadError:
                await anyio.sleep_forever()  # whose process ended knows more
            answers += 1
            await anyio.sleep(heartbeat_s / _BEATS)

    silent, before = 0, (0, 0)
    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        while silent < _BEATS:
            await anyio.sleep(heartbeat_s / _BEATS)
            now = answers, num_holds()
            silent = 0 if now != before or now[1] % 2 else silent + 1
            before = now
        group.cancel_scope.cancel()
    return f"the engine did not answer for policy.heartbeat_s = {heartbeat_s:g} s"
