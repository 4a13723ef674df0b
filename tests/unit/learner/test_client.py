"""What the controller's side of the learner keeps on this machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from fd_async.config.schema import Policy
from fd_async.learner.client import _staging_folder
from tests.fakes.tiny_policy import tiny_config


def test_folders_of_dead_controllers_of_this_host_alone_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host's name may continue ours, and its process ids mean nothing here."""
    monkeypatch.setattr(platform, "node", lambda: "node")
    ended = subprocess.Popen(["true"])
    ended.wait()
    kept = [f"fd_async-node-1-{ended.pid}-00c0ffee", f"fd_async-node-{os.getpid()}-00c0ffee", "fd_async-node-notes-1"]
    for name in (*kept, f"fd_async-node-{ended.pid}-00c0ffee"):
        (tmp_path / name).mkdir()
    config = replace(tiny_config(), policy=Policy(push="file", push_dir=str(tmp_path)))
    with _staging_folder(config) as folder:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, folder.name])
    assert not folder.exists()
