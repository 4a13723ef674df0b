"""Checkpoints are complete or not there, training goes on beside them, and nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

import fd_async.pipeline.checkpoints as checkpoints_module
from fd_async.errors import CheckpointError, LearnerError, StallDetected, first_cause
from fd_async.learner.checkpoints import (
    check_arrived,
    find_checkpoint,
    list_checkpoints,
    read_manifest,
    resolve_init_from,
)
from fd_async.pipeline.checkpoints import Checkpoints, forget_after
from tests.fakes.checkpoints import Files, write_checkpoint
from tests.fakes.control_plane import Bench, make_config

pytestmark = pytest.mark.anyio


def leaves(error: BaseException) -> Iterator[BaseException]:
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield from leaves(inner)
    if not isinstance(error, BaseExceptionGroup):
        yield error


async def must_not_write(_: Path) -> None:
    raise AssertionError


async def test_a_complete_checkpoint_is_never_replaced(tmp_path: Path) -> None:
    """A kill while step 4 is written again must not cost the only checkpoint."""
    folder = await write_checkpoint(tmp_path, 4)
    assert await write_checkpoint(tmp_path, 4, must_not_write) == folder


async def test_a_damaged_checkpoint_is_replaced(tmp_path: Path) -> None:
    """One whose files do not fit its manifest is none."""
    folder = await write_checkpoint(tmp_path, 4)
    (folder / "state").write_text("torn off")
    await write_checkpoint(tmp_path, 4)
    assert read_manifest(folder).files == {"state": 5}
    assert sorted(os.listdir(tmp_path)) == ["latest", "step_000004"]


async def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_half_written_one(tmp_path: Path) -> None:
    """A full disk is not filled further, and leftovers of a kill go with the next checkpoint."""
    kept = await write_checkpoint(tmp_path, 2)
    (tmp_path / ".step_000002.tmp").mkdir()

    async def fill(folder: Path) -> None:
        (folder / "state").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(BaseExceptionGroup) as caught:
        await write_checkpoint(tmp_path, 3, fill)
    (error,) = leaves(caught.value)
    assert isinstance(error, CheckpointError)
    assert "step_000003: cannot write the checkpoint: [Errno 28] No space left" in str(error)
    assert sorted(os.listdir(tmp_path)) == ["latest", "step_000002"]
    assert find_checkpoint(tmp_path) == kept


async def test_a_checkpoint_that_would_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """The size is known from the copy in memory; the message has all three figures and what to do."""
    too_much = shutil.disk_usage(tmp_path).free + 2**30
    with pytest.raises(BaseExceptionGroup) as caught:
        await write_checkpoint(tmp_path, 3, must_not_write, num_bytes=too_much, min_free_gib=0.5)
    (error,) = leaves(caught.value)
    assert isinstance(error, CheckpointError)
    for words in ("GiB free", "the checkpoint takes", "checkpoint.min_free_gib = 0.5", "checkpoint.keep_last"):
        assert words in str(error)
    assert os.listdir(tmp_path) == []


async def test_the_newest_good_checkpoint_outlives_the_last_ones(tmp_path: Path) -> None:
    """What an alarm may have to go back to is not pruned; older good ones are."""
    config = make_config(checkpoint={"keep_last": 2})
    checkpoints = Checkpoints(tmp_path, Files(), config, "x", is_good=lambda step: step <= 2)
    async with checkpoints.running():
        for step in (1, 2, 3, 4, 5):
            await checkpoints.take(step)
        await checkpoints.settle()
    assert list(list_checkpoints(tmp_path)) == [2, 4, 5]
    assert (tmp_path / "latest").read_text() == "step_000005\n"
    forget_after(tmp_path, 4)
    assert list(list_checkpoints(tmp_path)) == [2, 4]
    assert (tmp_path / "latest").read_text() == "step_000004\n"


async def test_steps_go_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """Step 3 is taken before the checkpoint of step 2 is on the disk, whose content is step 2 all the same."""
    bench = Bench(make_config(run={"max_steps": 3}, checkpoint={"keep_last": 9}), tmp_path)
    may_end, steps = anyio.Event(), []
    write = bench.learner.write

    async def wait_and_write(folder: Path) -> None:
        if folder.name == ".step_000002.tmp":
            await may_end.wait()
            steps.append(max(bench.learner.batches))
        await write(folder)

    bench.learner.write = wait_and_write  # type: ignore[method-assign]
    bench.learner.on_step = lambda step: may_end.set() if step == 3 else None
    with anyio.fail_after(10):
        assert await bench.run() == 0
    assert steps[0] >= 2
    assert (find_checkpoint(tmp_path / "checkpoints", 2) / "state").read_text() == "state 2"
    assert (find_checkpoint(tmp_path / "checkpoints", 3) / "state").read_text() == "state 3"


async def test_without_background_a_step_waits_for_the_checkpoint(tmp_path: Path) -> None:
    """`checkpoint.background = false`: when step 3 begins, step 2 has its name on the disk."""
    bench = Bench(make_config(run={"max_steps": 3}, checkpoint={"background": False}), tmp_path)
    bench.learner.save_s = 0.05
    seen: list[list[int]] = []
    bench.learner.on_step = lambda step: seen.append(list(list_checkpoints(tmp_path / "checkpoints")))
    with anyio.fail_after(10):
        assert await bench.run() == 0
    assert seen[2] == [2]


async def test_a_second_checkpoint_waits_for_the_first(tmp_path: Path) -> None:
    """Only one copy is in memory, and only one is written, at a time."""
    saver = Files()
    open_now: list[str] = []

    async def slow(folder: Path) -> None:
        open_now.append(folder.name)
        assert len(open_now) == 1
        await anyio.sleep(0.02)
        open_now.remove(folder.name)

    saver.write = slow
    checkpoints = Checkpoints(tmp_path, saver, make_config(checkpoint={"keep_last": 9}), "x")
    async with checkpoints.running():
        for step in (1, 2, 3):
            await checkpoints.take(step)
    assert list(list_checkpoints(tmp_path)) == [1, 2, 3]


async def test_a_write_that_fails_in_the_background_ends_the_run_with_its_own_error(tmp_path: Path) -> None:
    """A run that cannot keep its work does not go on without saying so."""
    bench = Bench(make_config(run={"max_steps": 200}), tmp_path)

    def fail(folder: Path) -> None:
        raise LearnerError("learner rank 1 failed: the disk is gone")

    bench.learner.on_write = fail
    with anyio.fail_after(10), pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert str(first_cause(caught.value)) == "learner rank 1 failed: the disk is gone"
    assert max(bench.learner.batches) < 200


async def test_what_was_taken_is_written_although_the_run_fails(tmp_path: Path) -> None:
    """A failure in step 3 does not cost the checkpoint of step 2."""
    bench = Bench(make_config(), tmp_path)
    bench.learner.save_s = 0.05

    def crash(step: int) -> None:
        if step == 3:
            raise LearnerError("crash")

    bench.learner.on_step = crash
    with anyio.fail_after(10), pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert str(first_cause(caught.value)) == "crash"
    assert list(list_checkpoints(tmp_path / "checkpoints")) == [2]


async def test_a_stop_waits_for_the_write_under_way_within_its_budget(tmp_path: Path) -> None:
    """`run.shutdown_s` covers the checkpoint of before too; then nothing half-written has a name."""
    config = make_config(run={"shutdown_s": 0.2})
    bench = Bench(config, tmp_path)
    bench.learner.save_s = 3600.0
    bench.learner.on_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None
    with anyio.fail_after(10), pytest.raises(BaseExceptionGroup) as caught:
        await bench.run()
    assert isinstance(first_cause(caught.value), StallDetected)
    assert "run.shutdown_s" in str(first_cause(caught.value))
    assert os.listdir(tmp_path / "checkpoints") == []


async def test_a_stop_does_not_wait_for_a_checkpoint_that_waits_for_another(tmp_path: Path) -> None:
    """Step 4 waits for the write of step 2, which hangs, when the request comes: the budget counts from there."""
    bench = Bench(make_config(run={"shutdown_s": 0.2}), tmp_path)
    bench.learner.save_s = 3600.0

    async with anyio.create_task_group() as group:

        async def ask() -> None:
            while 4 not in bench.learner.batches:  # noqa: ASYNC110
                await anyio.sleep(0.01)
            await anyio.sleep(0.2)
            os.kill(os.getpid(), signal.SIGTERM)

        group.start_soon(ask)
        with anyio.fail_after(10), pytest.raises(BaseExceptionGroup) as caught:
            await bench.run()
    assert isinstance(first_cause(caught.value), StallDetected)


def write_and_die(root: Path, instant: str) -> None:
    """Write step 3 in a process of its own that is killed at an instant."""

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def save(folder: Path) -> None:
        (folder / "state").write_text("half" if instant == "shard" else "state")
        if instant == "shard":
            kill()

    if not (pid := os.fork()):
        if instant != "shard":
            setattr(
                checkpoints_module, {"manifest": "_publish", "latest": "_point_to", "prune": "_prune"}[instant], kill
            )
        with contextlib.suppress(BaseException):
            anyio.run(lambda: write_checkpoint(root, 3, save, keep_last=1))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(("instant", "newest"), [("shard", 2), ("manifest", 2), ("latest", 3), ("prune", 3)])
def test_a_kill_at_any_instant_leaves_a_complete_newest_checkpoint(tmp_path: Path, instant: str, newest: int) -> None:
    """SIGKILL between shard and manifest, before `latest` and before pruning; the next checkpoint cleans up."""
    anyio.run(write_checkpoint, tmp_path, 2)
    write_and_die(tmp_path, instant)
    assert find_checkpoint(tmp_path).name == f"step_00000{newest}"
    anyio.run(lambda: write_checkpoint(tmp_path, 4, keep_last=1))
    assert sorted(os.listdir(tmp_path)) == ["latest", "step_000004"]


async def test_files_that_another_node_kept_to_itself_are_named(tmp_path: Path) -> None:
    """A rank's folder of the same name on its own disk is no checkpoint."""
    with pytest.raises(CheckpointError, match=r"shards_00001.*all nodes share"):
        check_arrived(tmp_path, {"learner/shards_00001.safetensors": 9})


async def test_a_run_and_a_checkpoint_folder_both_stand_for_a_checkpoint(tmp_path: Path) -> None:
    """`runs/NAME` is its newest complete one by number, whatever else lies there."""
    root = tmp_path / "checkpoints"
    root.mkdir()
    one, newest = [await write_checkpoint(root, step) for step in (20, 100)]
    (root / "step_000200").mkdir()
    assert resolve_init_from(str(tmp_path)) == newest
    assert resolve_init_from(str(one)) == one
    (one / "state").write_text("torn off")
    with pytest.raises(CheckpointError, match="state is missing or has the wrong size"):
        resolve_init_from(str(one))
    with pytest.raises(CheckpointError, match=r"model\.init_from = .*neither a run folder"):
        resolve_init_from(str(tmp_path / "nothing"))


async def test_a_checkpoint_that_is_pruned_while_it_is_read_is_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process of the run may look for the newest one meanwhile: one line, no surprise."""
    folder = await write_checkpoint(tmp_path, 4)
    is_file = Path.is_file

    def prune(path: Path) -> bool:
        there = is_file(path)
        if there and path.name != "manifest.json":
            path.unlink()
        return there

    monkeypatch.setattr(Path, "is_file", prune)
    with pytest.raises(CheckpointError, match="is missing or has the wrong size"):
        read_manifest(folder)
