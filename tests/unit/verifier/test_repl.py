"""One REPL process, through every way in which it can misbehave."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import anyio
import pytest

from fd_async.errors import VerifierError
from fd_async.verifier.repl.process import (
    HeaderRejected,
    ReplDesync,
    ReplExited,
    ReplFailure,
    ReplProcess,
    ReplSpec,
    ReplTimeout,
    clean_environment,
    open_repl,
)
from fd_async.verifier.sandbox.room import Limits
from tests.unit.verifier.conftest import FAKE_REPL

pytestmark = pytest.mark.anyio


def spec(**changes: object) -> ReplSpec:
    argv = (sys.executable, "-S", "-E", FAKE_REPL)
    return ReplSpec(argv=argv, env=clean_environment(), import_timeout_s=10.0, **changes)  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_the_header_is_environment_zero_and_commands_count_up() -> None:
    """The header runs once; each command gets the next environment."""
    async with open_repl(spec(), "open Nat") as repl:
        assert repl.header_env == 0
        assert (await repl.command("theorem a : p := h", env=0, timeout_s=5)).env == 1
        assert (await repl.command("theorem b : p := h", env=0, timeout_s=5)).env == 2
        assert repl.is_usable()


async def test_a_process_loads_its_header_only_once() -> None:
    """A second import in the same process would run out of memory maps."""
    async with open_repl(spec(), "") as repl:
        with pytest.raises(ReplDesync, match="only once"):
            await repl.load_header("import Mathlib")


async def test_a_bad_header_is_told_from_a_broken_process() -> None:
    """An error message for the header is a rejection with Lean's own words."""
    with pytest.raises(HeaderRejected, match="import Nowhere"):
        async with open_repl(spec(), "import Nowhere"):
            pass


@pytest.mark.parametrize(
    ("marker", "failure", "words"),
    [
        ("fake_die", ReplExited, "signal 9"),
        ("fake_abort", ReplExited, "signal 6"),
        ("fake_exit", ReplExited, "exit code 1.*uncaught exception"),
        ("fake_hang", ReplTimeout, "no answer"),
        ("fake_half", ReplTimeout, "no answer"),
        ("fake_double", ReplDesync, "bytes after"),
        ("fake_wrong_env", ReplDesync, "expected 1"),
        ("fake_garbage", ReplDesync, "unreadable answer"),
        ("fake_grandchild ", ReplExited, "signal 9"),
    ],
)
async def test_misbehaviour_is_typed_and_ends_the_process(marker: str, failure: type[ReplFailure], words: str) -> None:
    """Whatever goes wrong has its own type, the process is never used again, and it is gone afterwards."""
    async with open_repl(spec(), "") as repl:
        with pytest.raises(failure, match=words):
            await repl.command(f"theorem a : p := {marker}", env=0, timeout_s=0.2 if failure is ReplTimeout else 5.0)
        assert not repl.is_usable()
        with pytest.raises(ReplDesync):
            await repl.command("theorem b : p := h", env=0, timeout_s=5)
        pid = repl.pid
    assert not is_alive(pid)


async def test_bytes_that_come_late_are_found_before_the_next_request() -> None:
    """An answer that nobody asked for is never taken for the next one's."""
    async with open_repl(spec(), "") as repl:
        await repl.command("theorem a : p := fake_late", env=0, timeout_s=5)
        with anyio.fail_after(5):
            while repl.is_usable():  # noqa: ASYNC110  the pipe is only looked at, never awaited
                await anyio.sleep(0.005)
        with pytest.raises(ReplDesync):
            await repl.command("theorem b : p := h", env=0, timeout_s=5)


async def test_a_stderr_flood_does_not_block_and_only_its_end_is_kept() -> None:
    """Two megabytes on stderr pass while the answer is awaited."""
    async with open_repl(spec(), "") as repl:
        answer = await repl.command("theorem a : p := fake_stderr", env=0, timeout_s=10)
        assert answer.env == 1
        assert len(repl.stderr_tail) <= 4096


async def test_answers_of_megabytes_and_of_single_bytes_are_read() -> None:
    """No line limit, no assumption on how the bytes are split, CRLF included."""
    async with open_repl(spec(), "") as repl:
        answer = await repl.command("theorem a : p := fake_huge", env=0, timeout_s=10)
        assert len(answer.messages[0].data) == 3_000_000
        answer = await repl.command("theorem b : p := fake_bytewise fake_error_é", env=0, timeout_s=10)
        assert answer.errors[0].data == "unknown identifier 'fake_error_é'"


async def test_an_answer_over_the_cap_ends_the_process() -> None:
    """Memory stays bounded whatever the process writes."""
    async with open_repl(spec(max_answer_bytes=100_000), "") as repl:
        with pytest.raises(ReplDesync, match="longer than 100000 bytes"):
            await repl.command("theorem a : p := fake_huge", env=0, timeout_s=10)


async def test_a_request_larger_than_the_pipe_is_written_in_full() -> None:
    """Writing waits for the reader instead of failing."""
    async with open_repl(spec(), "") as repl:
        assert (await repl.command("theorem a : p := h" + " " * 1_000_000, env=0, timeout_s=10)).env == 1


async def test_cancellation_in_flight_leaves_no_process() -> None:
    """A cancelled request marks the process broken, and leaving the block kills it."""
    async with open_repl(spec(), "") as repl:
        with anyio.move_on_after(0.1):
            await repl.command("theorem a : p := fake_hang", env=0, timeout_s=10)
        assert not repl.is_usable()
        pid = repl.pid
    assert not is_alive(pid)


async def test_no_descriptor_is_left_open() -> None:
    """Starting, failing and killing processes gives every descriptor back."""
    async with open_repl(spec(), ""):
        pass  # the loop's own descriptors exist from here on
    before = len(os.listdir("/proc/self/fd"))
    for marker in ("h", "fake_die", "fake_double"):
        with pytest.raises(ReplFailure) if marker != "h" else anyio.CancelScope():
            async with open_repl(spec(), "") as repl:
                await repl.command(f"theorem a : p := {marker}", env=0, timeout_s=5)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_limits_hold_in_the_process_itself() -> None:
    """Niceness and address space are set before the program starts."""
    async with open_repl(spec(limits=Limits(nice=7, memory_gib=2.0)), "") as repl:
        limits = await anyio.Path(f"/proc/{repl.pid}/limits").read_text()
        row = next(line for line in limits.splitlines() if line.startswith("Max address space"))
        assert row.split()[3] == str(2 * 1024**3)
        assert os.getpriority(os.PRIO_PROCESS, repl.pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7)
        assert os.getpgid(repl.pid) == repl.pid


def test_no_secret_reaches_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only variables that programs need to start are passed on."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    assert not any("KEY" in name for name in clean_environment())


async def test_a_program_that_is_not_there_is_an_infrastructure_failure(tmp_path: Path) -> None:
    """The launcher's own words are in the message."""
    missing = ReplSpec(argv=(str(tmp_path / "none"),), env=clean_environment())
    with pytest.raises(VerifierError, match="exit code 127"):
        async with open_repl(missing, ""):
            pass


async def test_a_paused_process_has_no_deadline_until_it_goes_on() -> None:
    """Stopped seconds count neither against the request nor as running; pausing twice is pausing once."""
    async with open_repl(spec(), "") as repl:
        began, wall, environments = repl.running_s, anyio.current_time(), []
        async with anyio.create_task_group() as tasks:

            async def stop_for_a_while() -> None:
                await anyio.sleep(0.02)
                repl.pause()
                repl.pause()
                await anyio.sleep(0.6)
                repl.resume()
                repl.resume()

            tasks.start_soon(stop_for_a_while)
            environments += [(await repl.command("theorem a : p := fake_slow", env=0, timeout_s=10)).env]
        assert environments == [1]
        assert repl.running_s - began < anyio.current_time() - wall - 0.5
        with pytest.raises(ReplTimeout):
            await repl.command("theorem b : p := fake_hang", env=0, timeout_s=0.05)


async def test_a_paused_process_can_die_and_can_be_killed() -> None:
    """SIGKILL needs no running process, and whoever waits for the answer learns of it."""
    for end in ("condemn", "kill"):
        async with open_repl(spec(), "") as repl:
            repl.pause()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_expect_exit, repl)
                await anyio.sleep(0.01)
                if end == "condemn":
                    repl.condemn("too large")
                else:
                    await repl.kill()
        assert not is_alive(repl.pid)


async def _expect_exit(repl: ReplProcess) -> None:
    with pytest.raises(ReplExited, match=r"too large|was ended"):
        await repl.command("theorem a : p := h", env=0, timeout_s=0.001)


async def test_running_out_of_descriptors_is_said_and_leaks_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names the limit; the pipes made before are closed."""
    before, pipe, made = len(os.listdir("/proc/self/fd")), os.pipe, []

    def scarce() -> tuple[int, int]:
        if len(made) == 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        made.append(pipe())
        return made[-1]

    monkeypatch.setattr(os, "pipe", scarce)
    with pytest.raises(VerifierError, match=r"Too many open files; raise `ulimit -n`"):
        async with open_repl(spec(), ""):
            pass
    assert len(made) == 2
    assert len(os.listdir("/proc/self/fd")) == before
