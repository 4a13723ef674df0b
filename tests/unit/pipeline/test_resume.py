"""What a resume starts from, before anything heavy is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from fd_async.app import running
from fd_async.config.load import dump_toml
from fd_async.errors import CheckpointError, ConfigError
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.control_plane import make_config

pytestmark = pytest.mark.anyio


async def checkpoint(run_dir: Path, step: int) -> Path:
    root = run_dir / "checkpoints"
    root.mkdir(exist_ok=True)
    return await write_checkpoint(root, step)


async def test_max_steps_before_the_checkpoint_is_refused(tmp_path: Path) -> None:
    """Nothing would be trained: say so before the engine starts, and leave the run's configuration alone."""
    await checkpoint(tmp_path, 6)
    (tmp_path / "config.toml").write_text("")
    with pytest.raises(ConfigError, match=r"run\.max_steps = 3 lies before step 6"):
        await running.run_experiment(make_config(run={"max_steps": 3}), tmp_path, True)
    assert (tmp_path / "config.toml").read_text() == ""


async def test_damaged_checkpoints_are_no_reason_to_start_over(tmp_path: Path) -> None:
    """A run whose only checkpoint is damaged does not quietly begin at step 0."""
    folder = await checkpoint(tmp_path, 4)
    (folder / "state").write_text("torn off")
    with pytest.raises(CheckpointError, match="damaged: step_000004"):
        running._checkpoint_to_resume(tmp_path, True)


async def test_a_run_killed_before_its_first_checkpoint_starts_at_step_0(tmp_path: Path) -> None:
    """Its ledger is kept; there is no checkpoint to name."""
    (tmp_path / "checkpoints").mkdir()
    assert running._checkpoint_to_resume(tmp_path, True) == (None, [])


def test_a_changed_configuration_is_named_and_the_old_one_kept(tmp_path: Path) -> None:
    """A resume may change keys; it never loses what the run was started with."""
    path = tmp_path / "config.toml"
    first = dump_toml(make_config())
    assert running._keep_config(path, first) == []
    assert running._keep_config(path, first) == []
    second = dump_toml(make_config(run={"max_steps": 9}, learner={"prompts_per_step": 2}))
    assert running._keep_config(path, second) == ["learner.prompts_per_step", "run.max_steps"]
    assert path.read_text() == second
    assert (tmp_path / "config.before.toml").read_text() == first


@pytest.mark.parametrize("damage", ["no manifest", "torn manifest", "torn shard", "missing shard"])
async def test_the_newest_complete_checkpoint_is_taken_and_the_damaged_one_named(tmp_path: Path, damage: str) -> None:
    """Whatever a kill or a full disk left of the newest one; `latest` may point anywhere."""
    good, bad = await checkpoint(tmp_path, 2), await checkpoint(tmp_path, 4)
    (tmp_path / "checkpoints" / "latest").write_text("step_000099\n")
    if damage == "no manifest":
        (bad / "manifest.json").unlink()
    elif damage == "torn manifest":
        (bad / "manifest.json").write_bytes((bad / "manifest.json").read_bytes()[:20])
    elif damage == "torn shard":
        (bad / "state").write_text("sta")
    else:
        (bad / "state").unlink()
    found, (note,) = running._checkpoint_to_resume(tmp_path, True)
    assert found == good
    assert note.startswith(str(bad))
    assert note.endswith("continuing from step_000002, the newest complete one")


async def test_what_a_kill_left_of_a_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    """A folder under its temporary name is neither taken nor named."""
    good = await checkpoint(tmp_path, 2)
    (tmp_path / "checkpoints" / ".step_000004.tmp").mkdir()
    assert running._checkpoint_to_resume(tmp_path, True) == (good, [])
