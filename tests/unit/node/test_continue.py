"""bin/fd-continue: one command that starts a run and continues it, whatever has happened in between."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bin folder whose fd-run plans as the true one does and writes down how it is called for the rest."""
    (tmp_path / "bin").mkdir()
    shutil.copy(CHECKOUT / "bin" / "fd-continue", tmp_path / "bin")
    fake = tmp_path / "bin" / "fd-run"
    fake.write_text(
        '#!/bin/bash\nif [[ " $* " == *" --dry-run "* ]]; then\n'
        f'  exec "{sys.executable}" -m fd_async.cli run "$@"\nfi\necho "$*" >calls\nexit 130\n'
    )
    fake.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    return tmp_path


def call(*words: str) -> subprocess.CompletedProcess[str]:
    argv = ["bin/fd-continue", "--config", str(CHECKOUT / "configs" / "tiny_fd.toml"), *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=dict(os.environ))


@pytest.mark.parametrize("entry", ["", "ledger.db", "checkpoints", "config.toml"])
def test_a_run_that_has_begun_is_resumed_and_no_other(place: Path, entry: str) -> None:
    """What fd-run itself takes for a beginning; the exit code is fd-run's."""
    folder = place / "elsewhere, far" / "mine"
    if entry:
        folder.mkdir(parents=True)
        (folder / entry).touch()
    done = call("--run", "mine", "--set", f"run.dir={folder.parent}")
    assert done.returncode == 130
    is_resumed = entry in ("ledger.db", "checkpoints")
    assert Path("calls").read_text().endswith(" --resume\n") == is_resumed
    assert done.stderr == f"fd-continue: {'continuing' if is_resumed else 'starting'} {folder}\n"


def test_a_wrong_configuration_ends_with_its_own_words(place: Path) -> None:
    """Exit 2, and nothing is started."""
    done = call("--set", "learner.lr=often")
    assert done.returncode == 2
    assert "learner.lr" in done.stderr
    assert not Path("calls").exists()
