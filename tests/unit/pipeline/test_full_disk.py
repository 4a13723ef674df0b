"""A disk that fills up under the run: one clear line, the right exit code, and files that a resume goes on from."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio
import pytest

from fd_async.learner.checkpoints import list_checkpoints
from fd_async.telemetry.sinks import read_rows
from tests.fakes.control_plane import Bench, make_config

pytestmark = pytest.mark.anyio

RUN = """
import os, resource, sys
from pathlib import Path
import anyio
from fd_async.cli.shared import ErrorLog
from fd_async.cli.main import report
from tests.fakes.control_plane import Bench, make_config

run_dir = Path(sys.argv[1])
bench = Bench(make_config(), run_dir)

def fill(*_):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))

bench.runner.on_run = lambda ticket: fill() if ticket.ordinal == 13 else None
try:
    sys.exit(anyio.run(bench.run))
except Exception as error:
    log = ErrorLog()
    log.path = run_dir / "logs" / "error.log"
    sys.exit(report(error, "fd-run", log, debug=False))
"""


async def test_a_full_disk_is_one_line_and_a_resume_loses_nothing(tmp_path: Path) -> None:
    """Whichever file meets it first: no traceback on the console, and every prompt is trained once in the end."""
    done = await anyio.run_process([sys.executable, "-c", RUN, str(tmp_path)], check=False)
    said = done.stderr.decode()
    assert done.returncode in (3, 5), said
    assert "Traceback" not in said
    last = said.splitlines()[-1]
    assert last.startswith(f"fd-run: {tmp_path}"), said
    assert "full" in last or "too large" in last, said
    step = max(list_checkpoints(tmp_path / "checkpoints"), default=0)
    second = Bench(make_config(), tmp_path)
    assert await second.run(step=step, resume=True) == 0
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["tokens/trained"] == 24 * 3
    assert max(list_checkpoints(tmp_path / "checkpoints")) == 6


async def test_a_status_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """The old one stays whole, and no half of a new one lies beside it."""
    bench = Bench(make_config(run={"max_steps": 2}), tmp_path)
    (tmp_path / "status.json").mkdir()
    assert await bench.run() == 0
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".status")]
