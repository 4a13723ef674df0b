"""From which checkpoint of another run a run starts, that it stays that one, and that both runs may move."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from fd_async.app.resuming import Past, keep_start, start_of
from fd_async.config.load import flat
from fd_async.config.schema import RunConfig
from fd_async.errors import CheckpointError, ConfigError
from fd_async.learner.checkpoints import LearnerState, checkpoint_id, find_again, is_start
from fd_async.learner.client import check_learner
from tests.fakes.checkpoints import write_checkpoint
from tests.fakes.control_plane import make_config

pytestmark = pytest.mark.anyio
GRPO = {"algorithm": {"type": "grpo"}, "rollout": {"samples_per_prompt": 2}}


async def checkpoint(run_dir: Path, step: int, **state: str) -> Path:
    """Write a checkpoint of a run; keywords are what its learner knows of its start."""
    root = run_dir / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)

    async def save(folder: Path) -> None:
        (folder / "learner").mkdir()
        learner = LearnerState(
            num_updates=1, num_shards=1, ranks=1, zero_stage=0, dtype="float32", algorithm="grpo", **state
        )
        (folder / "learner" / "learner.json").write_bytes(msgspec.json.encode(learner))

    return await write_checkpoint(root, step, save)


def start_from(init_from: object, **tables: dict[str, object]) -> RunConfig:
    config = make_config(**tables)
    return replace(config, model=replace(config.model, init_from=str(init_from)))


def past_of(config: RunConfig) -> Past:
    """Return what a first life with this configuration wrote down."""
    start = config.model.init_from
    return Past(flat(msgspec.to_builtins(config)), {"model.init_from": checkpoint_id(Path(start))} if start else {})


async def test_a_resume_keeps_the_checkpoint_though_the_other_run_went_on(tmp_path: Path) -> None:
    """config.toml says which one it was; a run folder stands for its newest one at a fresh start alone."""
    first = await checkpoint(tmp_path / "fd", 20)
    asked, run = start_from(tmp_path / "fd"), tmp_path / "grpo"
    fresh, _ = keep_start(asked, run, Past(), None)
    assert fresh.model.init_from == str(first)
    newest = await checkpoint(tmp_path / "fd", 40)
    past = past_of(fresh)
    assert keep_start(asked, run, past, None) == (fresh, [])
    assert keep_start(fresh, run, past, None) == (fresh, [])
    assert keep_start(asked, run, Past(), None)[0].model.init_from == str(newest)
    with pytest.raises(ConfigError, match=rf'init_from = ".*000040": the run began with {first}; set it back'):
        keep_start(start_from(newest), run, past, None)
    with pytest.raises(ConfigError, match=f"init_from is not set: the run began with {first}"):
        keep_start(start_from(""), run, past, None)
    with pytest.raises(ConfigError, match=r"the run began with model\.path"):
        keep_start(asked, run, past_of(start_from("")), None)


def test_a_run_folder_names_its_checkpoints_and_no_others() -> None:
    """What a sweep says is compared with what the run wrote down."""
    assert is_start("runs/fd", str(Path("runs/fd/checkpoints/step_000020").absolute()))
    assert is_start("runs/fd/checkpoints/step_000020", "runs/fd/checkpoints/step_000020")
    assert not is_start("runs/fd", "runs/fd_2/checkpoints/step_000020")
    assert not is_start("runs/fd/checkpoints/step_000040", "runs/fd/checkpoints/step_000020")


@pytest.mark.parametrize("is_noted", [True, False], ids=["noted", "by_an_earlier_version"])
async def test_runs_that_moved_together_find_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_noted: bool
) -> None:
    """A container's /runs on the host: the reference is the checkpoint beside the run, whatever names it today."""
    first = await checkpoint(tmp_path / "old" / "fd", 20)
    began = start_from(first, **GRPO)
    noted = {"origin": str(first), "origin_id": checkpoint_id(first) if is_noted else ""}
    await checkpoint(tmp_path / "old" / "grpo", 3, **noted)
    past = past_of(began) if is_noted else Past(past_of(began).keys)
    (tmp_path / "old").rename(tmp_path / "runs")
    await checkpoint(tmp_path / "runs" / "fd", 40)  # the other run went on
    run, moved = tmp_path / "runs" / "grpo", tmp_path / "runs" / "fd" / "checkpoints" / "step_000020"
    newest = run / "checkpoints" / "step_000003"
    monkeypatch.chdir(tmp_path)
    for named in (first, "runs/fd", moved):
        config, (said,) = keep_start(start_from(named, **GRPO), run, past, newest)
        assert config.model.init_from == str(moved)
        assert said == f"model.init_from: {first} lies at {moved} now"
        assert check_learner(config, newest) == moved
    assert check_learner(began, newest) == moved, "the next life of the learner, and who asks it alone"
    assert start_of(began, run) == moved


async def test_another_checkpoint_under_the_same_names_is_not_taken(tmp_path: Path) -> None:
    """Names are not enough where the run has noted which one it was; a copy of it may lie anywhere."""
    first = await checkpoint(tmp_path / "fd", 20)
    began, run = start_from(first, **GRPO), tmp_path / "grpo"
    past, copy = past_of(began), tmp_path / "kept" / "it"
    shutil.copytree(first, copy)
    shutil.rmtree(tmp_path / "fd")
    other = await checkpoint(tmp_path / "fd", 20)
    newest = await checkpoint(run, 3, origin=str(first), origin_id=past.found["model.init_from"])
    with pytest.raises(
        CheckpointError, match=f"began with the checkpoint {first} .*the one at {other} is not it.* Put"
    ):
        keep_start(began, run, past, newest)
    with pytest.raises(CheckpointError, match=r"say where it lies now with --set model\.init_from=FOLDER"):
        check_learner(began, newest)
    config, said = keep_start(start_from(copy, **GRPO), run, past, newest)
    assert (config.model.init_from, len(said)) == (str(copy), 1)
    assert check_learner(config, newest) == copy


async def test_a_start_that_is_gone_is_missed_only_where_it_is_needed(tmp_path: Path) -> None:
    """The reference of GRPO, and step 0, need it; a run of FD with a checkpoint does not, nor GRPO without its KL."""
    first = await checkpoint(tmp_path / "fd", 20)
    run, noted = tmp_path / "second", {"origin": str(first), "origin_id": checkpoint_id(first)}
    newest = await checkpoint(run, 3, **noted)
    free = {**GRPO, "algorithm": {"type": "grpo", "kl_weight": 0.0}}
    past = past_of(start_from(first))
    shutil.rmtree(tmp_path / "fd")
    for tables in ({}, free):
        config, (said,) = keep_start(start_from(first, **tables), run, past, newest)
        assert (config.model.init_from, check_learner(config, newest)) == (str(first), None)
        assert said.endswith("is gone; the run needs it no more")
    for config, at in ((start_from(first), None), (start_from(first, **GRPO), newest)):
        with pytest.raises(
            CheckpointError, match=f"began with the checkpoint {first} and needs it again: there is none"
        ):
            keep_start(config, run, past, at)


async def test_a_damaged_start_is_named_as_that(tmp_path: Path) -> None:
    """Who only reads that it is gone would look for it in vain."""
    first = await checkpoint(tmp_path / "fd", 20)
    (first / "learner" / "learner.json").unlink()
    with pytest.raises(CheckpointError, match=r"learner\.json is missing or has the wrong size"):
        find_again(str(first), checkpoint_id(first), run_dir=tmp_path / "grpo")
