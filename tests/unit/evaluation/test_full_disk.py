"""A disk that fills up during an evaluation: one clear line, and nothing that was recorded is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fd_async.data.ledger.evaluated import read_evaluated
from tests.fakes.evaluation_world import World

RUN = """
import resource, sys
from pathlib import Path
import pytest
from fd_async.cli.main import report
from fd_async.cli.shared import ErrorLog
from tests.fakes.evaluation_world import World

patch = pytest.MonkeyPatch()
world = World(Path(sys.argv[1]), patch)

def fill(caller):
    if caller == "eval-s-0000001-02":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    return False

world.judge.failure = fill
try:
    world.evaluate()
except Exception as error:
    log = ErrorLog()
    log.path = world.root / "out/logs/error.log"
    sys.exit(report(error, "fd-eval", log, debug=False))
"""


def test_a_full_disk_is_one_line_and_the_next_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever file meets it first; afterwards the result is that of an evaluation in one piece."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    command = [sys.executable, "-c", RUN, str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stderr
    assert done.returncode in (3, 5), said
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith(f"fd-eval: {tmp_path}"), said
    assert "full" in last or "too large" in last, said
    recorded = len(read_evaluated(tmp_path / "a/out/ledger.db"))
    assert 0 < recorded < 24
    world = World(tmp_path / "b", monkeypatch)
    (tmp_path / "a/out").rename(tmp_path / "b/out")
    went_on = world.evaluate()
    assert f"{recorded} of them taken over" in world.said[0]
    whole = world.evaluate("whole")
    assert went_on.document == whole.document
