"""A checkpoint's round trip through any numbers of ranks, and the thread that writes it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch

from fd_async.errors import CheckpointError, LearnerError
from fd_async.learner import saving
from fd_async.learner.checkpoints import LearnerState, learner_folder, read_state
from fd_async.learner.store import shard_path
from tests.fakes.split_engine import SplitEngine, wholes
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.tiny_policy import tiny_policy

ALONE = [0.0]
UNEVEN = [0.0, 0.07]
"""The cut goes through the tied embedding."""
THREE = [0.0, 0.5, 0.5]
"""The second rank holds nothing."""
FOUR = [0.0, 0.25, 0.5, 0.75]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("model")))


def state_of(engine: SplitEngine, ranks: int, **changes: object) -> LearnerState:
    state = LearnerState(
        num_updates=0, num_shards=0, ranks=ranks, zero_stage=0, dtype="float32", algorithm="fd",
        origin="/runs/first", objective={"gain": 0.25},
    )  # fmt: skip
    return msgspec.structs.replace(state, **changes)


def ranks_of(cuts: Sequence[float], seed: int, *, num_updates: int) -> list[SplitEngine]:
    return [SplitEngine(tiny_policy(seed), cuts, rank, num_updates=num_updates) for rank in range(len(cuts))]


def save(folder: Path, engines: list[SplitEngine], source: str, **changes: object) -> None:
    """Write a checkpoint from all ranks."""
    folder.mkdir()
    for rank, engine in enumerate(engines):
        state = state_of(engine, len(engines), **changes)
        snapshot = saving.take(engine, engine.teacher, state, rank=rank, bucket_bytes=2000)  # type: ignore[arg-type]
        written = saving.write(snapshot, folder, source=source, shard_gib=1.0)
        assert sum(written.values()) > snapshot.num_bytes > 0


def load(folder: Path, engines: list[SplitEngine], **changes: object) -> LearnerState:
    """Restore into all ranks and return what the last one learnt of the run."""
    for rank, engine in enumerate(engines):
        state = state_of(engine, len(engines), **changes)
        found = saving.restore(folder, engine, engine.teacher, state, rank=rank)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("writers", [ALONE, UNEVEN, THREE], ids=["1", "2", "3"])
@pytest.mark.parametrize("readers", [ALONE, UNEVEN, THREE, FOUR], ids=["1", "2", "3", "4"])
def test_any_ranks_continue_what_any_ranks_saved(
    tmp_path: Path, source: str, writers: list[float], readers: list[float]
) -> None:
    """Weights, moments and teacher are equal bit by bit, whatever was in the new ranks before."""
    first = ranks_of(writers, seed=0, num_updates=5)
    save(tmp_path / "c", first, source)
    second = ranks_of(readers, seed=1, num_updates=0)
    found = load(tmp_path / "c", second)
    expected, got = wholes(first), wholes(second)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert (found.num_updates, found.ranks) == (5, len(readers))
    assert (found.origin, found.objective) == ("/runs/first", {"gain": 0.25})


def test_a_checkpoint_before_the_first_update_has_no_moments(tmp_path: Path, source: str) -> None:
    """Rolling back to step 0 forgets the moments that the optimizer has by then."""
    save(tmp_path / "c", ranks_of(UNEVEN, seed=0, num_updates=0), source)
    engines = ranks_of(UNEVEN, seed=1, num_updates=9)
    assert load(tmp_path / "c", engines).num_updates == 0
    assert all(engine.num_updates == 0 for engine in engines)


def test_a_replicated_engine_is_written_once(tmp_path: Path, source: str) -> None:
    """Under ZeRO 0 the ranks hold the same: one shard file, and the random state of each."""
    engines = [SplitEngine(tiny_policy(), ALONE, 0, num_updates=1) for _ in range(2)]
    save(tmp_path / "c", engines, source)
    names = sorted(path.name for path in learner_folder(tmp_path / "c").iterdir())
    assert names == ["learner.json", "rng_00000.safetensors", "rng_00001.safetensors", "shards_00000.safetensors"]
    assert read_state(tmp_path / "c").num_shards == 1


def test_random_state_continues_on_the_same_ranks_alone(tmp_path: Path, source: str) -> None:
    """Each rank has its own stream; another number of ranks keeps the streams that it was started with."""
    engines, folder = ranks_of(UNEVEN, seed=0, num_updates=1), tmp_path / "c"
    fewer = ranks_of(ALONE, seed=0, num_updates=1)
    torch.manual_seed(3)
    save(folder, engines, source)
    expected = torch.rand(4)
    load(folder, engines)
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(11)
    load(folder, fewer)
    assert torch.equal(torch.rand(4), torch.rand(4, generator=torch.Generator().manual_seed(11)))


def test_what_was_saved_does_not_change_with_later_steps(tmp_path: Path, source: str) -> None:
    """The copy is taken when it is asked for, and written when the weights have moved on."""
    engine = SplitEngine(tiny_policy(), ALONE, 0, num_updates=1)
    before = {key: tensor.clone() for key, tensor in wholes([engine]).items()}
    state = state_of(engine, 1)
    snapshot = saving.take(engine, engine.teacher, state, rank=0, bucket_bytes=1)  # type: ignore[arg-type]
    state.objective["gain"] = -1.0
    with torch.no_grad():
        for held in (*engine.states().values(), engine.teacher.fragments):
            for fragment in held.values():
                fragment.values.add_(1.0)
        for parameter in engine.policy.parameters():
            parameter.add_(1.0)
    (tmp_path / "c").mkdir()
    saving.write(snapshot, tmp_path / "c", source=source, shard_gib=1.0)
    again = SplitEngine(tiny_policy(1), ALONE, 0)
    assert load(tmp_path / "c", [again]).objective == {"gain": 0.25}
    assert all(torch.equal(tensor, before[key]) for key, tensor in wholes([again]).items())


@pytest.mark.parametrize(
    ("key", "name", "value"), [("model.dtype", "dtype", "bfloat16"), ("algorithm.type", "algorithm", "grpo")]
)
def test_another_type_or_algorithm_is_refused(tmp_path: Path, source: str, key: str, name: str, value: str) -> None:
    """Both values and the key stand in the message."""
    save(tmp_path / "c", ranks_of(ALONE, seed=0, num_updates=1), source)
    with pytest.raises(CheckpointError, match=rf"written with {key} = .*, the configuration says '{value}'"):
        load(tmp_path / "c", ranks_of(ALONE, seed=0, num_updates=0), **{name: value})


def test_a_damaged_checkpoint_changes_nothing(tmp_path: Path, source: str) -> None:
    """Everything is read before the first weight is written: a shard cut short leaves the ranks as they were."""
    save(tmp_path / "c", ranks_of(UNEVEN, seed=0, num_updates=1), source)
    path = shard_path(learner_folder(tmp_path / "c"), 1)
    path.write_bytes(path.read_bytes()[:-8])
    engines = ranks_of(ALONE, seed=1, num_updates=1)
    before = wholes(engines)
    with pytest.raises(CheckpointError, match=r"shards_00001\.safetensors: cannot be read"):
        load(tmp_path / "c", engines)
    assert all(torch.equal(tensor, before[key]) for key, tensor in wholes(engines).items())


class Answers:
    """Collects what the writer's thread answers."""

    def __init__(self) -> None:
        self.results: list[dict[str, int] | BaseException] = []
        self._come = threading.Event()

    def __call__(self, result: dict[str, int] | BaseException) -> None:
        self.results.append(result)
        self._come.set()

    def wait(self) -> dict[str, int] | BaseException:
        assert self._come.wait(30)
        return self.results[0]


def snapshot_of(rank: int = 0) -> saving.Snapshot:
    engine = SplitEngine(tiny_policy(), ALONE, 0)
    return saving.take(engine, engine.teacher, state_of(engine, 1), rank=rank, bucket_bytes=1)  # type: ignore[arg-type]


def test_the_writer_answers_when_the_files_are_there(tmp_path: Path, source: str) -> None:
    """The answer names every file with its size; a snapshot is written once."""
    writer = saving.Writer(source=source, shard_gib=1.0)
    with pytest.raises(LearnerError, match="not taken"):
        writer.start(tmp_path, Answers())
    writer.hold(snapshot_of())
    answers = Answers()
    writer.start(tmp_path, answers)
    files = answers.wait()
    assert isinstance(files, dict)
    assert {"learner/learner.json", "learner/shards_00000.safetensors", "model/config.json"} <= files.keys()
    assert all((tmp_path / name).stat().st_size == size for name, size in files.items())
    with pytest.raises(LearnerError, match="not taken"):
        writer.start(tmp_path, Answers())


def test_the_writer_answers_what_went_wrong_and_goes_on(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is one line; the next checkpoint is written."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    writer, answers = saving.Writer(source=source, shard_gib=1.0), Answers()
    with monkeypatch.context() as patch:
        patch.setattr("fd_async.learner.store.save_file", full)
        writer.hold(snapshot_of())
        writer.start(tmp_path, answers)
        error = answers.wait()
    assert isinstance(error, CheckpointError)
    assert "cannot be written: No space left on device; free some disk or lower checkpoint.keep_last" in str(error)
    again = Answers()
    writer.hold(snapshot_of())
    writer.start(tmp_path, again)
    assert isinstance(again.wait(), dict)


def test_two_writes_at_once_are_refused(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller waits for the first; if it did not, files of two steps would mix."""
    go, answers = threading.Event(), Answers()
    monkeypatch.setattr(saving, "write", lambda *_, **__: go.wait(30) and {})
    writer = saving.Writer(source=source, shard_gib=1.0)
    writer.hold(snapshot_of())
    writer.start(tmp_path, answers)
    writer.hold(snapshot_of())
    with pytest.raises(LearnerError, match="still being written"):
        writer.start(tmp_path, Answers())
    go.set()
    assert answers.wait() == {}
