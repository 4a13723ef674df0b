"""Sixteen ways for a REPL to misbehave: each has its typed outcome, the next check is right, and nothing is left."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from fd_async.errors import VerifierError
from fd_async.types import Statement, Verdict
from fd_async.verifier.backend import LeanAnswer, LeanRequest
from fd_async.verifier.repl.backend import open_repl_backend
from fd_async.verifier.repl.process import (
    HeaderRejected,
    ReplDesync,
    ReplExited,
    ReplFailure,
    ReplSpec,
    ReplTimeout,
    clean_environment,
    open_repl,
)
from fd_async.verifier.sandbox.room import Limits
from fd_async.verifier.sandbox.syscalls import filter_path
from fd_async.verifier.verifier import Verifier, open_verifier
from tests.fakes.repl_faults import (
    AFTERWARDS,
    ESCAPES,
    FAULTS,
    SLOW,
    Fault,
    end,
    left_behind,
    open_descriptors,
    zombies,
)
from tests.fakes.repl_faulty import ROOT, program
from tests.unit.verifier.conftest import STATEMENT, fake_config, proof

pytestmark = pytest.mark.anyio

DEADLINE_S = 1.0
"""Of a check whose deadline has to pass."""


async def settled_descriptors() -> int:
    """Count them once the loop has closed those of processes that have ended: when five looks in a row agree."""
    counts = [open_descriptors()]
    with anyio.move_on_after(5):
        while len(counts) < 5 or len(set(counts[-5:])) > 1:
            await anyio.sleep(0.01)
            counts.append(open_descriptors())
    return counts[-1]


@pytest.fixture
async def token() -> AsyncIterator[str]:
    """Yield a word for the processes' command lines; afterwards no process and no descriptor may be left."""
    word = f"token-{secrets.token_hex(8)}"
    if sys.platform == "linux":
        filter_path()  # the sandbox keeps one descriptor from its first use on
    async with open_repl(ReplSpec(argv=tuple(program()), env=clean_environment()), ""):
        pass  # the loop's own descriptors exist from here on
    before, zombies_before = await settled_descriptors(), zombies()
    yield word
    with anyio.move_on_after(2):
        while left_behind(word):  # noqa: ASYNC110  they are nobody's children; nothing tells of their end
            await anyio.sleep(0.01)
    left = left_behind(word)
    end(left)
    assert (left, zombies(), await settled_descriptors()) == ([], zombies_before, before)


def spec(token: str, *options: str, **changes: Any) -> ReplSpec:
    return ReplSpec(argv=tuple(program(token, *options)), env=clean_environment(), **changes)


@asynccontextmanager
async def verifier_of(token: str, *options: str, **changes: Any) -> AsyncIterator[Verifier]:
    unsandboxed = {"sandbox": "unsandboxed", "audit": "off", "memory_limit_gib": 1.0}
    config = fake_config(command=program(token, *options), **{**unsandboxed, **changes})
    async with open_verifier(config, output_chars=500) as verifier:
        yield verifier


async def judge(verifier: Verifier, words: str, *, header: str = "", caller: str = "") -> Verdict:
    """Check a right proof with these words in it, and one more word, which its verdict must repeat."""
    nonce = f"fake_echo_{secrets.token_hex(4)}"
    statement = Statement(name="foo", formal_statement=STATEMENT.formal_statement, header=header)
    verdict = await verifier.check(proof(f"exact Or.inl hp -- {nonce} {words}"), statement, caller=caller)
    assert verdict.kind != "proved" or nonce in verdict.output or len(verdict.output) >= 490
    return verdict


def named(fault: Fault) -> Any:
    return pytest.param(fault, id=fault.mode, marks=[pytest.mark.slow] if fault.mode in SLOW else [])


@pytest.mark.parametrize("fault", [named(fault) for fault in FAULTS if fault.mode not in ESCAPES])
async def test_every_fault_has_its_verdict_and_spares_the_next_check(fault: Fault, token: str) -> None:
    """Whatever the worker does to one check, the verdict is typed, the next one is right, and nothing is left."""
    deadline = DEADLINE_S if fault.verdict == "timeout" else 10.0
    async with verifier_of(token, check_timeout_s=deadline) as verifier:
        assert (await judge(verifier, f"fake_{fault.mode}")).kind == fault.verdict
        assert [(await judge(verifier, "")).kind for _ in range(2)] == ["proved", "proved"]


@pytest.mark.parametrize("mode", ESCAPES)
async def test_the_sandbox_ends_what_leaves_the_session(mode: str, token: str) -> None:
    """A session of its own is no way out of a pid namespace."""
    tried = await anyio.run_process(["sh", "-c", "bwrap --ro-bind / / --unshare-pid true"], check=False)
    if tried.returncode:
        pytest.skip("bubblewrap does not work here")
    async with verifier_of(token, sandbox="bubblewrap", sandbox_read=[f"{ROOT}/tests"]) as verifier:
        assert not (await judge(verifier, f"fake_{mode}")).is_proved
        assert (await judge(verifier, "")).kind == "proved"


async def test_children_of_a_worker_that_died_later_are_found_too(token: str) -> None:
    """A child in a group of its own is an orphan then, and still of the worker's session."""
    async with verifier_of(token) as verifier:
        assert (await judge(verifier, "fake_child_own_group")).kind == "proved"
        assert (await judge(verifier, "fake_die")).kind == "out_of_memory"


@pytest.mark.parametrize("fault", [named(fault) for fault in FAULTS if fault.failure and fault.mode not in ESCAPES])
async def test_every_failed_exchange_has_its_own_type(fault: Fault, token: str) -> None:
    """The process is not used again, whatever it did."""
    async with open_repl(spec(token, limits=Limits(memory_gib=1.0)), "") as repl:
        timeout_s = DEADLINE_S if fault.failure is ReplTimeout else 10.0
        with pytest.raises(ReplFailure) as caught:
            await repl.command(f"theorem a : p := fake_{fault.mode}", env=repl.header_env, timeout_s=timeout_s)
        assert type(caught.value) is fault.failure
        assert not repl.is_usable()


@pytest.mark.parametrize("mode", ["die", "half_then_exit", "wrong_env", "double", "banner", "refuse"])
async def test_a_fault_in_the_probe_counts_like_one_in_the_body(mode: str, token: str, tmp_path: Path) -> None:
    """Twice is the input's doing; once is not."""
    expected = next(fault.verdict for fault in FAULTS if fault.mode == mode)
    async with verifier_of(token) as verifier:
        assert (await judge(verifier, f"fake_in_probe fake_{mode}")).kind == expected
        once = f"fake_in_probe fake_once_{tmp_path / mode}_ fake_{mode}"
        assert (await judge(verifier, once)).kind == "proved"


@pytest.mark.parametrize("mode", AFTERWARDS)
async def test_what_happens_after_the_last_answer_hurts_nobody(mode: str, token: str) -> None:
    """The check before it has its verdict, and the next one gets another worker."""
    async with verifier_of(token) as verifier:
        for _ in range(3):
            assert (await judge(verifier, f"fake_in_probe fake_{mode}")).kind == "proved"
            assert (await judge(verifier, "")).kind == "proved"


async def test_a_forged_answer_never_makes_a_proof(token: str) -> None:
    """What a file prints in the name of the REPL does not hide its error."""
    async with verifier_of(token) as verifier:
        for mode in ("forged", "forged_early", "forged_both"):
            kind = (await judge(verifier, f"fake_{mode} fake_error")).kind
            assert kind == next(fault.verdict for fault in FAULTS if fault.mode == mode)


@pytest.mark.parametrize(
    ("word", "failure"),
    [
        ("import Nowhere", HeaderRejected),
        ("fake_refuse", HeaderRejected),
        ("fake_no_env", ReplDesync),
        ("fake_wrong_env", ReplDesync),
        ("fake_garbage", ReplDesync),
        ("fake_banner", ReplDesync),
        ("fake_exit", ReplExited),
        ("fake_exit0", ReplExited),
        ("fake_die", ReplExited),
        ("fake_half", ReplTimeout),
    ],
)
async def test_every_failed_header_has_its_own_type(word: str, failure: type[ReplFailure], token: str) -> None:
    """A rejected header is told from a process that broke while it read one."""
    with pytest.raises(ReplFailure) as caught:
        async with open_repl(spec(token, import_timeout_s=DEADLINE_S if failure is ReplTimeout else 10.0), word):
            pass
    assert type(caught.value) is failure


async def test_a_header_that_breaks_workers_is_infrastructure_and_others_go_on(token: str) -> None:
    """The proof is not to blame for what comes before it; one that Lean refuses is the statement's fault."""
    expected = {"import Nowhere": "bad_statement", "-- fake_refuse": "bad_statement", "-- fake_die": "infrastructure"}
    async with verifier_of(token, workers=2) as verifier:
        for header, kind in expected.items():
            assert (await judge(verifier, "", header=header)).kind == kind
            assert (await judge(verifier, "")).kind == "proved"


async def test_a_process_that_does_not_read_ends_at_the_deadline_of_the_check(token: str) -> None:
    """Writing a request is inside the deadline too."""
    async with open_repl(spec(token), "fake_deaf") as repl:
        with pytest.raises(ReplTimeout):
            await repl.command("-- " + "x" * 1_000_000, env=0, timeout_s=DEADLINE_S)


async def test_a_process_that_reads_late_gets_its_request_whole(token: str) -> None:
    """A full pipe is waited for."""
    async with open_repl(spec(token), "fake_slow_reader") as repl:
        answer = await repl.command("-- " + "x" * 1_000_000 + " fake_echo_end", env=0, timeout_s=10)
        assert answer.messages[0].data == "fake_echo_end"


async def test_a_slow_import_costs_nobody_its_verdict(token: str) -> None:
    """Callers wait for the worker that turns to their header."""
    async with verifier_of(token, workers=2) as verifier:
        assert (await judge(verifier, "", header="-- fake_import_slowly")).kind == "proved"


async def test_starts_that_fail_now_and_then_cost_nobody_its_verdict(token: str, tmp_path: Path) -> None:
    """A worker that does not start is started again, also the fresh one that repeats a check."""
    starts = (f"starts={tmp_path / 'starts'}", "every=3")
    async with verifier_of(token, *starts, workers=2, max_uses=2) as verifier:
        for number in range(4):
            words = f"fake_once_{tmp_path / str(number)}_ fake_die"
            assert (await judge(verifier, words)).kind == "proved", number


async def test_a_clock_that_jumps_changes_no_deadline(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the monotonic clock counts."""
    now = time.time
    async with verifier_of(token) as verifier:
        for jump in (86_400.0, -86_400.0):
            monkeypatch.setattr(time, "time", lambda jump=jump: now() + jump)
            verdict = await judge(verifier, "fake_slow")
            assert verdict.kind == "proved"
            assert 0 < verdict.seconds < 60


async def test_waiting_is_reported_apart_from_running(token: str) -> None:
    """The second of two checks on one worker waits while the first one runs."""
    async with open_repl_backend(
        spec(token),
        name="repl",
        toolchain="",
        header="",
        workers=1,
        max_uses=100,
        queue_timeout_s=10,
        check_timeout_s=10,
    ) as backend:
        answers: list[LeanAnswer] = []

        async def check() -> None:
            answers.append(await backend.run(LeanRequest("", "fake_slow")))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(check)
            tasks.start_soon(check)
        first, second = answers
        assert first.seconds > 0.04
        assert second.seconds > 0.04
        assert second.queue_s > 0.04


async def test_one_fast_check_does_not_wait_for_another_callers_queue(token: str) -> None:
    """Of many slow checks that came before it, only a few are served first."""
    async with verifier_of(token, workers=2) as verifier:
        done = 0

        async def slow() -> None:
            nonlocal done
            await judge(verifier, "fake_slow", caller="greedy")
            done += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(16):
                tasks.start_soon(slow)
            with anyio.fail_after(10):
                while verifier.statistics()["waiting"] < 12:  # noqa: ASYNC110  nothing tells of it
                    await anyio.sleep(0.001)
            assert (await judge(verifier, "", caller="modest")).kind == "proved"
            assert done <= 6
    assert done == 16


@pytest.mark.parametrize("mode", ["hang", "stubborn", "slow"])
async def test_closing_resolves_every_check_in_flight(mode: str, token: str) -> None:
    """Those that run and those that wait learn that the verifier is gone; none of them starts a new process."""
    kinds: list[str] = []
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            async with verifier_of(token, workers=2) as verifier:

                async def check() -> None:
                    kinds.append((await judge(verifier, f"fake_{mode}")).kind)

                for _ in range(8):
                    tasks.start_soon(check)
                with anyio.fail_after(10):
                    while verifier.statistics()["busy"] < 2:  # noqa: ASYNC110  nothing tells of it
                        await anyio.sleep(0.001)
    assert len(kinds) == 8
    assert set(kinds) <= {"infrastructure", "proved"}
    assert kinds.count("infrastructure") >= 6


async def test_a_verdict_is_remembered_without_a_worker(token: str) -> None:
    """The same bytes get the same verdict."""
    async with verifier_of(token) as verifier:
        code = proof("exact Or.inl hp -- fake_die")
        first = await verifier.check(code, STATEMENT)
        restarts = verifier.statistics()["restarts"]
        assert await verifier.check(code, STATEMENT) is first
        assert verifier.statistics()["restarts"] == restarts
        rejected = Statement(name="foo", formal_statement=STATEMENT.formal_statement, header="import Nowhere")
        verdicts = [await verifier.check(code, rejected) for _ in range(2)]
        assert [verdict.kind for verdict in verdicts] == ["bad_statement"] * 2
        assert verifier.statistics()["cache_hits"] == 2


async def test_callers_cancelled_at_any_moment_leave_every_place_free(token: str) -> None:
    """In the queue, while writing, reading, starting or being repeated."""
    async with verifier_of(token, workers=2) as verifier:
        async with anyio.create_task_group() as tasks:
            for number in range(60):

                async def check(number: int = number) -> None:
                    with anyio.move_on_after(number / 200):
                        await judge(verifier, ("fake_slow", "fake_die", "fake_half", "")[number % 4])

                tasks.start_soon(check)
        assert [(await judge(verifier, "")).kind for _ in range(4)] == ["proved"] * 4
        figures = verifier.statistics()
        assert (figures["waiting"], figures["busy"]) == (0, 0)


async def test_a_program_that_never_starts_is_infrastructure(token: str) -> None:
    """Nothing that was checked is to blame."""
    with pytest.raises(VerifierError):
        async with open_repl(spec(token, f"starts=/dev/null/{token}"), ""):
            pass
