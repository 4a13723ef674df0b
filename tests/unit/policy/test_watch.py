"""Noticing that an engine is lost; vLLM is played, its processes are real."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from fd_async.config.schema import Policy
from fd_async.policy.watch import end_of
from tests.fakes.collective import without_vllm

pytestmark = pytest.mark.anyio
BEAT_S = 0.1


class Child:
    """A child process as multiprocessing shows one."""

    name = "EngineCore"

    def __init__(self, command: str) -> None:
        self._process = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.PIPE)
        self.pid = self._process.pid
        self.late = 0

    @property
    def exitcode(self) -> int | None:
        if self.late:
            self.late -= 1
            return None
        return self._process.poll()

    def end(self, number: int = signal.SIGKILL) -> None:
        self._process.send_signal(number)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


class World:
    """An engine to watch."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.children: list[Child] = []
        self.llm = SimpleNamespace(errored=False, engine_core=self)
        self.answers, self.num_holds = True, 0

    async def call_utility_all_async(self, method: str) -> list[bool]:
        if not self.answers:
            await anyio.sleep_forever()
        return [False]

    async def end(self, heartbeat_s: float = 0.0) -> str:
        running: Any = SimpleNamespace(llm=self.llm, children=self.children, log=(self.log, 0))
        with anyio.fail_after(10):
            return await end_of(running, Policy(heartbeat_s=heartbeat_s), lambda: self.num_holds)

    def start(self, command: str = "exec sleep 60") -> Child:
        self.children.append(Child(command))
        return self.children[-1]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    without_vllm(monkeypatch)
    world = World(tmp_path / "vllm.log")
    yield world
    for child in world.children:
        child.close()


@pytest.mark.parametrize("victim", [0, 1])
async def test_the_end_of_any_process_is_seen(world: World, victim: int) -> None:
    """The line names the process and the signal."""
    children = world.start(), world.start()
    async with anyio.create_task_group() as group:
        reasons: list[str] = []

        async def wait() -> None:
            reasons.append(await world.end())

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert not reasons
        children[victim].end()
    name = rf"vLLM's process EngineCore (pid {children[victim].pid}) was killed by SIGKILL"
    assert reasons[0].startswith(name)


async def test_how_a_process_ended_is_told_though_another_thread_waits_for_it(world: World) -> None:
    """vLLM's own monitor may have collected the dead and not yet written down how it ended."""
    world.start("exit 3").late = 4
    assert (await world.end()).endswith("ended with exit code 3")


async def test_a_process_that_failed_by_itself_tells_its_last_error(world: World) -> None:
    """From vLLM's log; not the line that only points at another."""
    world.log.write_text(
        "ERROR ValueError: an old refusal\nERROR RuntimeError: out of memory\n"
        "ERROR EngineDeadError: see stack trace (above) for the root cause.\n"
    )
    world.start("exit 3")
    assert (await world.end()).endswith("ended with exit code 3: RuntimeError: out of memory")


async def test_a_front_end_that_failed_is_seen(world: World) -> None:
    """All processes live, and nothing reaches the callers any more."""
    world.start()
    world.llm.errored = True
    assert await world.end() == "vLLM's front end failed"


async def test_silence_is_death(world: World) -> None:
    """A stopped or hung process does not end."""
    world.answers = False
    assert await world.end(BEAT_S) == "the engine did not answer for policy.heartbeat_s = 0.1 s"


async def test_an_engine_that_answers_or_is_held_lives(world: World) -> None:
    """A push has deadlines of its own."""
    with anyio.move_on_after(4 * BEAT_S) as answering:
        await world.end(BEAT_S)
    world.answers, world.num_holds = False, 1
    with anyio.move_on_after(4 * BEAT_S) as held:
        await world.end(BEAT_S)
    assert answering.cancelled_caught
    assert held.cancelled_caught
