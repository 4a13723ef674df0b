"""A request through the whole backend: what is measured, what is passed on, and whose fault a failure is."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from fd_async.errors import VerifierError
from fd_async.verifier.backend import CheckTimeout, LeanRequest
from fd_async.verifier.repl.backend import ReplBackend, open_repl_backend
from fd_async.verifier.repl.process import ReplSpec, clean_environment, open_repl
from fd_async.verifier.repl.tree import cpu_seconds, own_bytes, process_tree
from tests.unit.verifier.conftest import FAKE_REPL

pytestmark = pytest.mark.anyio

_TREE = """
import json, sys
number = 0
for line in sys.stdin:
    if line.strip():
        tree = [{"asked": json.loads(line)["infotree"]}] if "infotree" in line else None
        print(json.dumps({"env": number} | ({"infotree": tree} if tree else {})), end="\\n\\n", flush=True)
        number += 1
"""


@asynccontextmanager
async def backend_of(*argv: str, check_timeout_s: float = 5.0, **limits: Any) -> AsyncIterator[ReplBackend]:
    spec = ReplSpec(argv=argv or (sys.executable, "-S", "-E", FAKE_REPL), env=clean_environment())
    settings: dict[str, Any] = {"workers": 1, "max_uses": 100, "queue_timeout_s": 10.0, "header": "", **limits}
    async with open_repl_backend(
        spec, name="repl", toolchain="none", check_timeout_s=check_timeout_s, **settings
    ) as backend:
        yield backend


def request(text: str, **fields: Any) -> LeanRequest:
    return LeanRequest("", f"theorem t : p := {text}", **fields)


async def test_waiting_is_told_apart_from_running() -> None:
    """The one that queued says so, and its seconds are its own."""
    async with backend_of() as backend:
        answers = []

        async def check() -> None:
            answers.append(await backend.run(request("fake_slow")))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(check)
        waits = sorted(answer.queue_s for answer in answers)
        shortest = min(answer.seconds for answer in answers)
        assert waits[0] < waits[1] < waits[2]
        assert waits[2] > shortest / 2
        assert backend.statistics()["queue_p95_s"] > 0


async def test_a_set_aside_check_counts_only_the_seconds_that_it_ran() -> None:
    """While it is stopped others run; that time is waiting, not its own."""
    async with backend_of(first_budget_s=0.01, spares=1) as backend:
        while backend.statistics()["idle"] < 2:  # noqa: ASYNC110  nothing tells of it
            await anyio.sleep(0.005)
        answers, began = {}, anyio.current_time()

        async def check(name: str, text: str) -> None:
            answers[name] = await backend.run(request(text, caller=name, cost_key=name))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(check, "long", "fake_slow fake_slow")
            await anyio.sleep(0.01)
            for number in range(6):
                tasks.start_soon(check, f"short{number}", "fake_slow")
        assert len(answers) == 7
        assert backend.statistics()["set_aside"] >= 1
        assert max(answer.queue_s for answer in answers.values()) > 0.05
        ran_s = sum(answer.seconds for answer in answers.values())
        assert ran_s < anyio.current_time() - began + 0.02, "one at a time: what was stopped did not run meanwhile"
        assert backend.statistics()["restarts"] == 0


async def test_the_tree_of_the_elaborator_is_asked_for_and_handed_on_as_it_came() -> None:
    """Only for the body, and only when it was asked for."""
    async with backend_of(sys.executable, "-c", _TREE) as backend:
        answer = await backend.run(request("h", infotree=True))
        assert answer.infotree is not None
        assert bytes(answer.infotree) == b'[{"asked": "full"}]'
        assert (await backend.run(request("h"))).infotree is None


async def test_a_fresh_run_uses_no_worker_and_leaves_none() -> None:
    """Its process is nobody else's; a timeout in it is the input's own."""
    async with backend_of(check_timeout_s=1.0, audit_workers=1) as backend:
        before = backend.statistics()
        assert (await backend.run_fresh(request("h"))).messages == []
        with pytest.raises(CheckTimeout):
            await backend.run_fresh(request("fake_hang"))
        assert backend.statistics() == before


async def test_a_fresh_worker_that_does_not_start_is_not_held_against_the_input(tmp_path: Path) -> None:
    """A check that broke its worker, and then found no other one, has no verdict."""
    marker = tmp_path / "once"
    script = f"[ -e {marker} ] && exit 3; : > {marker}; exec {sys.executable} -S -E {FAKE_REPL}"
    async with backend_of("/bin/sh", "-c", script) as backend:
        with pytest.raises(VerifierError, match=r"fresh verifier worker did not start in 5 tries.*exit code 3"):
            await backend.run(request("fake_die"))


async def test_whoever_waits_or_runs_learns_that_the_verifier_is_closed() -> None:
    """Nobody hangs, and nothing is started any more."""
    errors: list[str] = []

    async def check(backend: ReplBackend, is_fresh: bool) -> None:
        try:
            await (backend.run_fresh if is_fresh else backend.run)(request("fake_hang"))
        except VerifierError as error:
            errors.append(str(error))

    async with anyio.create_task_group() as tasks:
        async with backend_of(audit_workers=2) as backend:
            for number in range(5):
                tasks.start_soon(check, backend, number == 0)
            while backend.statistics()["waiting"] < 3:  # noqa: ASYNC110  nothing tells of it
                await anyio.sleep(0.005)
        with pytest.raises(VerifierError, match="closed"):
            await backend.run(request("h"))
    assert errors == ["the verifier is closed"] * 5


async def test_time_and_memory_are_those_of_the_whole_tree() -> None:
    """A launcher that stays does not hide the program behind it, not even in another session."""
    spec = ReplSpec(argv=("/bin/sh", "-c", f"setsid {sys.executable} -S -E {FAKE_REPL}; true"), env=clean_environment())
    async with open_repl(spec, "") as repl:
        tree = process_tree(repl.pid)
        assert len(tree) == 2
        with anyio.fail_after(20):  # the clock ticks a hundred times a second
            while not cpu_seconds(repl.pid):
                await repl.command("theorem t : p := fake_huge", env=0, timeout_s=10)
        assert own_bytes(repl.pid) > own_bytes(tree[1]) > 0
        repl.pause()
        repl.resume()
        await repl.command("theorem t : p := h", env=0, timeout_s=5)
    with anyio.fail_after(5):
        while any(cpu_seconds(pid, [pid]) is not None and not is_zombie(pid) for pid in tree):  # noqa: ASYNC110
            await anyio.sleep(0.005)


def is_zombie(pid: int) -> bool:
    """Nobody may reap orphans in a container; they are dead all the same."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
