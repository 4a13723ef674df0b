"""Temporary folders outlive no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from fd_async.scratch import make_folder, remove_all, scratch_folder


def test_a_folder_is_private_and_gone_after_its_block(tmp_path: Path) -> None:
    """Others of this machine cannot look inside."""
    with scratch_folder("test", tmp_path) as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_swept_by_the_next(tmp_path: Path) -> None:
    """Folders of another kind stay for whoever makes that kind."""
    script = (
        "import os, sys, pathlib; from fd_async.scratch import make_folder;"
        "root = pathlib.Path(sys.argv[1]);"
        "make_folder('test', root); make_folder('other', root); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    with scratch_folder("test", tmp_path) as folder:
        left = sorted(path.name.split("-")[1] for path in tmp_path.iterdir() if path != folder)
    assert left == ["other"]


def test_a_process_that_cannot_leave_its_blocks_removes_all_at_once(tmp_path: Path) -> None:
    """Only its own."""
    theirs = tmp_path / f"fd_async-test-host-{os.getppid()}-00c0ffee"
    theirs.mkdir()
    make_folder("test", tmp_path)
    remove_all()
    assert list(tmp_path.iterdir()) == [theirs]
