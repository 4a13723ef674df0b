"""From which checkpoint of another run a run starts, and that it stays that one."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from fd_async.app.running import _with_start
from fd_async.config.load import dump_toml
from fd_async.config.schema import RunConfig
from fd_async.learner.checkpoints import is_start
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.control_plane import make_config

pytestmark = pytest.mark.anyio


async def test_a_resume_keeps_the_checkpoint_though_the_other_run_went_on(tmp_path: Path) -> None:
    """config.toml says which one it was; a run folder stands for its newest one at a fresh start alone."""
    root = tmp_path / "fd" / "checkpoints"
    root.mkdir(parents=True)
    first = await write_checkpoint(root, 20)
    asked = start_from(str(tmp_path / "fd"))
    fresh = _with_start(asked, None)
    assert fresh.model.init_from == str(first)
    kept = tmp_path / "config.toml"
    kept.write_text(dump_toml(fresh))
    newest = await write_checkpoint(root, 40)
    assert _with_start(asked, kept).model.init_from == str(first)
    assert _with_start(fresh, kept).model.init_from == str(first)
    assert _with_start(start_from(str(newest)), kept).model.init_from == str(newest), "another one was asked for"
    assert _with_start(asked, None).model.init_from == str(newest)


def test_a_run_folder_names_its_checkpoints_and_no_others() -> None:
    """What a sweep says is compared with what the run wrote down."""
    assert is_start("runs/fd", str(Path("runs/fd/checkpoints/step_000020").absolute()))
    assert is_start("runs/fd/checkpoints/step_000020", "runs/fd/checkpoints/step_000020")
    assert not is_start("runs/fd", "runs/fd_2/checkpoints/step_000020")
    assert not is_start("runs/fd/checkpoints/step_000040", "runs/fd/checkpoints/step_000020")


def start_from(init_from: str) -> RunConfig:
    config = make_config()
    return replace(config, model=replace(config.model, init_from=init_from))
