"""`open_verifier` on the fake REPL: retries, the cache, and clear words when something is missing."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import structlog

from fd_async.errors import PreflightError
from fd_async.verifier.locate import locate_repl, read_toolchain
from fd_async.verifier.repl.process import ReplProcess
from fd_async.verifier.verifier import Verifier, open_verifier
from tests.unit.verifier.conftest import STATEMENT, fake_config, proof

pytestmark = pytest.mark.anyio


async def kind_of(verifier: Verifier, tactics: str) -> str:
    return (await verifier.check(proof(tactics), STATEMENT)).kind


def _deadline(marker: str) -> float:
    """Short only where it has to pass."""
    return 1.0 if marker in ("fake_hang", "fake_spin") else 5.0


@pytest.mark.parametrize(
    ("marker", "kind"),
    [
        ("fake_die", "out_of_memory"),
        ("fake_memory", "out_of_memory"),
        ("fake_abort", "crash"),
        ("fake_exit", "crash"),
        ("fake_double", "crash"),
        ("fake_garbage", "crash"),
        ("fake_refuse", "crash"),
        ("fake_hang", "timeout"),
        ("fake_spin", "timeout"),
        ("fake_stderr", "proved"),
        ("fake_slow", "proved"),
    ],
)
async def test_what_happens_twice_is_held_against_the_input(marker: str, kind: str) -> None:
    """A poison pill costs a worker and two fresh ones, has its own verdict, and is not tried again."""
    async with open_verifier(fake_config(check_timeout_s=_deadline(marker)), output_chars=500) as verifier:
        assert await kind_of(verifier, f"exact {marker}") == kind
        restarts = verifier.statistics()["restarts"]
        assert await kind_of(verifier, f"exact {marker}") == kind
        assert verifier.statistics()["cache_hits"] == 1
        assert await kind_of(verifier, "exact Or.inl hp") == "proved"
        assert verifier.statistics()["restarts"] <= restarts + 1


@pytest.mark.parametrize("marker", ["fake_die", "fake_exit", "fake_garbage", "fake_double", "fake_hang"])
async def test_what_happens_once_is_not_held_against_the_input(marker: str, tmp_path: Path) -> None:
    """The input is tried again in a fresh process and gets its true verdict."""
    async with open_verifier(fake_config(check_timeout_s=_deadline(marker)), output_chars=500) as verifier:
        assert await kind_of(verifier, f"exact fake_once_{tmp_path / 'seen'}_ {marker}") == "proved"


async def test_the_same_file_is_judged_once_also_at_the_same_time() -> None:
    """Groups of attempts repeat themselves; only the first one costs a check."""
    async with open_verifier(fake_config(workers=2), output_chars=500) as verifier:
        kinds: list[str] = []

        async def check() -> None:
            kinds.append(await kind_of(verifier, "exact fake_slow"))

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(check)
        assert kinds == ["proved"] * 10
        assert verifier.statistics()["cache_hits"] == 9
        assert verifier.statistics()["checks"] == 10


async def test_infrastructure_is_never_remembered() -> None:
    """The next attempt is judged, not told about the last one's bad luck."""
    config = fake_config(queue_timeout_s=0.01, check_timeout_s=0.3)
    async with open_verifier(config, output_chars=500) as verifier:
        kinds: list[str] = []

        async def check(tactics: str) -> None:
            kinds.append(await kind_of(verifier, tactics))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(check, "exact fake_slow")
            await anyio.lowlevel.checkpoint()
            tasks.start_soon(check, "exact Or.inl hp")
        assert sorted(kinds) == ["infrastructure", "proved"]
        assert verifier.statistics()["infra_errors"] == 1
        assert await kind_of(verifier, "exact Or.inl hp") == "proved"


async def test_statistics_have_the_promised_keys() -> None:
    """What the pipeline reads is always there."""
    async with open_verifier(fake_config(), output_chars=500) as verifier:
        keys = {"checks", "infra_errors", "cache_hits", "waiting", "busy", "restarts", "desyncs"}
        assert keys <= verifier.statistics().keys()


async def test_minilean_announces_itself() -> None:
    """Nobody may take the small checker for Lean."""
    log: Any = structlog.testing.CapturingLogger()
    async with open_verifier(fake_config(backend="minilean"), output_chars=500, log=log) as verifier:
        assert verifier.toolchain == "minilean"
    assert "minilean judges proofs, not Lean" in log.calls[0].args[0]


def test_missing_parts_are_named_with_the_way_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Project, Lean and REPL are asked for in turn; each message says what to do."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    config = fake_config(command=[], project_dir=str(tmp_path / "lean"))
    with pytest.raises(PreflightError, match=r"no Lake project in .*lean/setup.*verifier\.project_dir"):
        locate_repl(config)
    project = tmp_path / "lean"
    project.mkdir()
    (project / "lakefile.toml").touch()
    (project / "lean-toolchain").write_text("leanprover/lean4:v4.33.0\n")
    with pytest.raises(PreflightError, match="Lean is not installed"):
        locate_repl(config)
    (tmp_path / "bin").mkdir()
    lake = tmp_path / "bin" / "lake"
    lake.write_text("#!/bin/sh\nprintf 'LEAN_PATH=/x\\0LEAN_SYSROOT=/y\\0PATH=/bin\\0SECRET_KEY=s\\0'\n")
    lake.chmod(0o755)
    with pytest.raises(PreflightError, match="REPL is not built"):
        locate_repl(config)
    program = project / ".lake/packages/REPL/.lake/build/bin/repl"
    program.parent.mkdir(parents=True)
    program.touch()
    spec, toolchain = locate_repl(config)
    assert spec.argv == (str(program),)
    assert spec.env["LEAN_PATH"] == "/x"
    assert "SECRET_KEY" not in spec.env
    assert toolchain == read_toolchain(project) == "leanprover/lean4:v4.33.0"


def test_a_command_that_is_not_there_is_named() -> None:
    """The key and the program are in the message."""
    with pytest.raises(PreflightError, match=r"verifier\.command.*no-such-repl"):
        locate_repl(fake_config(command=["no-such-repl"]))


async def test_a_worker_that_does_not_start_ends_the_preflight() -> None:
    """A run does not begin with a verifier that cannot work."""
    with pytest.raises(PreflightError, match="does not start"):
        async with open_verifier(fake_config(header="import Nowhere"), output_chars=500):
            pass


async def test_a_used_worker_that_dies_counts_against_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier file left in it may have killed it: the input still has two processes of its own to break."""
    async with open_verifier(fake_config(spares=0), output_chars=500) as verifier:
        for number in range(4):
            await kind_of(verifier, f"exact h{number}")
        pool = verifier._judge.backend._pool  # type: ignore[attr-defined]
        lease, killed = pool.lease, list[int]()

        @asynccontextmanager
        async def dying(*args: Any, **kwargs: Any) -> AsyncIterator[ReplProcess]:
            async with lease(*args, **kwargs) as repl:
                if repl.uses > 0:
                    killed.append(repl.pid)
                    os.kill(repl.pid, signal.SIGKILL)
                yield repl

        monkeypatch.setattr(pool, "lease", dying)
        assert await kind_of(verifier, f"exact fake_once_{tmp_path / 'seen'}_ fake_exit") == "proved"
        assert killed
        assert await kind_of(verifier, "exact fake_exit") == "crash"
