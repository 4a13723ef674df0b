"""One run, one process: a second one leaves everything of the first as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fd_async.cli.main import main
from fd_async.config.files import CHECKOUT
from fd_async.errors import LedgerError

HOLDER = """\
import sys, pathlib
from fd_async.data.ledger.files import only_writer
with only_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_does_not_write_over_the_configuration_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sweeps at once, or `--resume` with another value while the run goes on."""
    monkeypatch.chdir(CHECKOUT)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    (folder / "config.toml").write_text("# of the run that goes on\n")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / "ledger.db")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    argv = ["run", "--config", "configs/tiny_fd.toml", "--run", "mine", "--resume", "--set", f"run.dir={tmp_path}"]
    code = main([*argv, "--set", "learner.lr=1e-4"])
    holder.communicate(timeout=20)
    assert code == LedgerError.exit_code
    assert "another process runs this run; end it or wait" in capsys.readouterr().err
    assert (folder / "config.toml").read_text() == "# of the run that goes on\n"
    assert not (folder / "trace.json").exists()
