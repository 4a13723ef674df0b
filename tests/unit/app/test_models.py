"""Exports: what stands in the way is one line that names the folder and `--to`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fd_async.app.models import export
from fd_async.errors import CheckpointError
from fd_async.learner.checkpoints import Manifest


def make_run(run_dir: Path) -> Path:
    """Return a run folder with one checkpoint that holds a file."""
    folder = run_dir / "checkpoints" / "step_000002"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    manifest = Manifest(step=2, algorithm="fd", ranks=1, config_hash="0", written=0.0, files={"model/config.json": 2})
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return run_dir


def under_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "model"


def a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file"


def full(folder: Path) -> Path:
    (folder / "full").mkdir()
    (folder / "full" / "mine").touch()
    return folder / "full"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (a_file, "is no empty folder"),
        (full, "is no empty folder"),
        (under_a_file, "cannot write the export: Not a directory"),
    ],
)
def test_a_place_that_cannot_take_an_export_is_named(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    """Nothing that was there is touched."""
    run_dir, to = make_run(tmp_path / "run"), make(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{to}: {said}.*--to"):
        export(run_dir, None, to)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_under_an_export_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying tells of every file; one reason says it."""

    def fail(*_: object, **__: object) -> None:
        raise shutil.Error([("a", "b", "[Errno 28] No space left on device"), ("c", "d", "the same")])

    monkeypatch.setattr(shutil, "copytree", fail)
    with pytest.raises(CheckpointError, match=r"cannot write the export: .*No space left on device.*--to") as caught:
        export(make_run(tmp_path / "run"), 2, tmp_path / "out")
    assert "\n" not in str(caught.value)
