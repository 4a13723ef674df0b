"""metrics.jsonl and status.json survive crashes, resumes and full disks."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from fd_async.errors import PreflightError
from fd_async.telemetry import sinks, status
from fd_async.telemetry.metrics import METRICS
from fd_async.telemetry.sinks import MetricsFile, read_rows
from fd_async.telemetry.status import StatusFile

pytestmark = pytest.mark.anyio


async def written(path: Path, steps: range, resume_step: int | None = None) -> None:
    """Append one row per step."""
    file = MetricsFile(path)
    await file.open(resume_step)
    for step in steps:
        await file.append({"step": step, "loss": step / 10, "lr": None})
    await file.aclose()


async def test_rows_are_one_json_object_per_line(tmp_path: Path) -> None:
    """Every column of the contract is there, null without data."""
    await written(tmp_path / "metrics.jsonl", range(1, 3))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    always = [metric.key for metric in METRICS if metric.always]
    assert rows == [dict.fromkeys(always) | {"step": step, "loss": step / 10} for step in (1, 2)]


async def test_a_resume_drops_rows_after_the_checkpoint_and_goes_on(tmp_path: Path) -> None:
    """No step stands twice and no row of the abandoned history is left."""
    path = tmp_path / "metrics.jsonl"
    await written(path, range(1, 8))
    await written(path, range(5, 7), resume_step=4)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4, 5, 6]


async def test_a_line_cut_by_a_crash_is_removed_on_resume(tmp_path: Path) -> None:
    """Half a row is neither read nor continued."""
    path = tmp_path / "metrics.jsonl"
    await written(path, range(1, 4))
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    await written(path, range(4, 5), resume_step=4)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4]


async def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    """The file and the line number stand in the message."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nrubbish\n{"step": 3}\n')
    with pytest.raises(PreflightError, match=r"metrics\.jsonl:2: not a JSON object"):
        await MetricsFile(path).open(3)


async def test_a_new_run_refuses_a_file_with_rows(tmp_path: Path) -> None:
    """Re-using a name never overwrites silently."""
    path = tmp_path / "metrics.jsonl"
    await written(path, range(1, 3))
    with pytest.raises(PreflightError, match="use --resume or another --run name"):
        await MetricsFile(path).open()


async def test_a_full_disk_gives_one_clear_error_and_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half-written row is taken back."""
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    await file.open()
    await file.append({"step": 1})
    real_write = os.write

    def full_after_three_bytes(fd: int, data: bytes) -> int:
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(fd, data[:3])

    monkeypatch.setattr(sinks.os, "write", full_after_three_bytes)
    with pytest.raises(PreflightError, match="the disk is full; free space there"):
        await file.append({"step": 22})
    monkeypatch.undo()
    await file.append({"step": 2})
    await file.aclose()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


async def test_status_is_replaced_whole_and_names_the_process(tmp_path: Path) -> None:
    """A reader finds a complete object and no temporary file stays."""
    file = StatusFile(tmp_path / "status.json")
    for step in range(3):
        await file.write({"step": step, "phase": "learning"})
    found = json.loads((tmp_path / "status.json").read_text())
    assert (found["step"], found["phase"], found["pid"]) == (2, "learning", os.getpid())
    assert os.listdir(tmp_path) == ["status.json"]


async def test_a_status_that_cannot_be_written_warns_once_and_never_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outage is logged once, and again only after a success."""
    warnings: list[str] = []
    monkeypatch.setattr(status.log, "warning", lambda event, **_: warnings.append(event), raising=False)
    file = StatusFile(tmp_path / "missing" / "status.json")
    await file.write({})
    await file.write({})
    assert warnings == ["status_not_written"]
    (tmp_path / "missing").mkdir()
    await file.write({})
    (tmp_path / "missing" / "status.json").unlink()
    (tmp_path / "missing").rmdir()
    await file.write({})
    assert len(warnings) == 2


def test_what_killed_processes_left_half_written_goes_and_what_live_ones_write_stays(tmp_path: Path) -> None:
    """The pid in the name tells; a name that is not ours is nobody's business."""
    path = tmp_path / "status.json"
    names = {".status.json.999999999.tmp": False, f".status.json.{os.getppid()}.tmp": True, ".status.json.x.tmp": True}
    for name in names:
        (tmp_path / name).touch()
    sinks.replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert {name: (tmp_path / name).exists() for name in names} == names


async def test_rows_that_cannot_be_written_name_file_and_reason(tmp_path: Path) -> None:
    """Another reason than a full disk."""
    (tmp_path / "file").touch()
    with pytest.raises(PreflightError, match=r"metrics\.jsonl: cannot be written: (Not a directory|File exists)"):
        await MetricsFile(tmp_path / "file" / "metrics.jsonl").open(resume_step=None)
