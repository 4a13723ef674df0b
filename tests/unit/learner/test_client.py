"""What the controller's side of the learner keeps on this machine."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from fd_async.config.schema import Policy
from fd_async.errors import PreflightError
from fd_async.learner.client import _staging_folder
from fd_async.learner.hosts import Launcher
from fd_async.learner.ranks import RankProcess
from fd_async.learner.starting import _spawn_all
from tests.fakes.tiny_policy import tiny_config


def test_folders_of_dead_controllers_of_this_host_alone_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host's name may continue ours, and its process ids mean nothing here."""
    monkeypatch.setattr(platform, "node", lambda: "node")
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine = "fd_async-staging-node"
    kept = [f"{mine}-1-{ended.pid}-00c0ffee", f"{mine}-{os.getpid()}-00c0ffee", f"{mine}-notes-1"]
    for name in (*kept, f"{mine}-{ended.pid}-00c0ffee"):
        (tmp_path / name).mkdir()
    config = replace(tiny_config(), policy=Policy(push="file", push_dir=str(tmp_path)))
    with _staging_folder(config) as folder:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, folder.name])
    assert not folder.exists()


@pytest.mark.anyio
async def test_a_temporary_folder_too_deep_for_a_socket_is_named(tmp_path: Path) -> None:
    """The system allows 107 bytes; no rank is started."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    async with anyio.create_task_group() as group:
        with pytest.raises(PreflightError, match="set TMPDIR to a short local path"):
            await _spawn_all(tiny_config(), [], deep, tmp_path, group, anyio.Event(), {})


@pytest.mark.anyio
async def test_a_rank_that_cannot_be_killed_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hangs in a driver does not end; who restarts or ends the learner goes on without it."""
    killed: list[bool] = []
    process: Any = SimpleNamespace(
        pid=7, returncode=None, wait=anyio.sleep_forever, kill=lambda: killed.append(True), aclose=anyio.sleep_forever
    )
    monkeypatch.setattr("fd_async.learner.ranks.LEAVE_S", 0.01)
    with anyio.fail_after(5):
        await RankProcess(0, tmp_path / "learner-0.log", process).end()
    assert killed


@pytest.mark.anyio
async def test_a_launcher_that_cannot_be_killed_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its whole session is told to end and then killed; what is left of it is named."""
    sent: list[tuple[int, int]] = []
    process: Any = SimpleNamespace(pid=7, returncode=None, wait=anyio.sleep_forever, aclose=anyio.sleep_forever)
    monkeypatch.setattr("fd_async.learner.hosts.LEAVE_S", 0.01)
    monkeypatch.setattr(os, "killpg", lambda pid, number: sent.append((pid, number)))
    launcher = Launcher(tmp_path / "learner-launcher.log")
    launcher.processes.append(process)
    with capture_logs() as logs, anyio.fail_after(5):
        await launcher.end()
    assert sent[:2] == [(7, signal.SIGTERM), (7, signal.SIGKILL)]
    assert [(line["event"], line["pid"]) for line in logs] == [("launcher_cannot_be_killed", 7)]
