"""The trace-driven stand-in keeps to the protocol and to the recorded answers, on which the benchmark relies."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest

from fd_async.verifier.messages import read_axioms
from fd_async.verifier.repl.process import ReplExited, ReplSpec, ReplTimeout, clean_environment, open_repl
from tests.fakes import repl_trace
from tests.fakes.repl_trace import CLOCK, Entry, message

pytestmark = pytest.mark.anyio

HEADER = "import Mathlib\n\nopen Nat"


@pytest.fixture
def spec(tmp_path: Path) -> ReplSpec:
    """Start the stand-in on a small trace, its clock in `clocks`."""
    error = message("error", "unsolved goals", 2)
    entries = [
        Entry("theorem a : p := by\n  simp", 0.0, [error], []),
        Entry("theorem b : p := by\n  omega", None, [], []),
        Entry("theorem c : p := by\n  ring", 0.2, [], []),
    ]
    repl_trace.write_index(str(tmp_path / "index"), entries)
    (tmp_path / "clocks").mkdir()
    program = (sys.executable, "-S", "-E", "-I", repl_trace.__file__, str(tmp_path / "index"))
    return ReplSpec(argv=(*program, "--clock", str(tmp_path / "clocks")), env=clean_environment())


async def test_a_recorded_answer_comes_back_at_the_lines_of_the_request(spec: ReplSpec) -> None:
    """Lines that the client puts before the recorded text move its messages down."""
    async with open_repl(spec, HEADER) as repl:
        plain = await repl.command("theorem a : p := by\n  simp", env=0, timeout_s=10)
        moved = await repl.command("set_option maxHeartbeats 0\n\ntheorem a : p := by\n  simp\n", env=0, timeout_s=10)
    assert [found.pos.line for found in (*plain.messages, *moved.messages)] == [2, 4]
    assert [plain.env, moved.env] == [1, 2]


async def test_the_probe_of_a_judge_is_answered(spec: ReplSpec) -> None:
    """Allowed axioms alone are listed."""
    async with open_repl(spec, HEADER) as repl:
        probe = "theorem fd_probe_1 : p := @_root_.a\n#print axioms fd_probe_1"
        answer = await repl.command(probe, env=0, timeout_s=10)
    assert read_axioms(answer.messages, "fd_probe_1") == ["propext", "Classical.choice", "Quot.sound"]


async def test_a_recorded_timeout_never_answers(spec: ReplSpec) -> None:
    """The client's deadline ends it."""
    async with open_repl(spec, HEADER) as repl:
        with pytest.raises(ReplTimeout):
            await repl.command("theorem b : p := by\n  omega", env=0, timeout_s=0.05)


async def test_a_text_that_was_not_recorded_ends_the_process(spec: ReplSpec) -> None:
    """A benchmark that sends something else must not go on."""
    async with open_repl(spec, HEADER) as repl:
        with pytest.raises(ReplExited, match="no recording"):
            await repl.command("theorem d : p := by\n  rfl", env=0, timeout_s=10)


async def test_a_stopped_process_makes_no_progress(spec: ReplSpec, tmp_path: Path) -> None:
    """What the clock counts is the recorded time, however long the process was stopped in between."""
    async with open_repl(spec, HEADER) as repl:
        clock = tmp_path / "clocks" / str(repl.pid)

        async def stop_and_continue() -> None:
            while CLOCK.unpack(clock.read_bytes())[0] < 0.05:  # noqa: ASYNC110
                await anyio.sleep(0.001)
            os.kill(repl.pid, signal.SIGSTOP)
            await anyio.sleep(0.3)
            os.kill(repl.pid, signal.SIGCONT)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop_and_continue)
            await repl.command("theorem c : p := by\n  ring", env=0, timeout_s=10)
        computed = CLOCK.unpack(clock.read_bytes())[0]
    assert 0.2 <= computed < 0.5, "0.2 s recorded, and 0.3 s stopped that must not count"
