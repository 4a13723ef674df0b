"""Fragments survive the disk whoever writes and whoever reads; damage is named by file and parameter."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from fd_async.errors import CheckpointError
from fd_async.learner.store import open_store, shard_path, write_shard, write_tensors
from tests.fakes.split_engine import Fragment

SIZES = {"a.weight": 7, "b.bias": 1, "c.weight": 12}


def whole(name: str) -> torch.Tensor:
    return torch.arange(SIZES[name], dtype=torch.float32) + len(name) / 8


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_ranks_read_what_any_ranks_wrote(tmp_path: Path, data: st.DataObject) -> None:
    """Random cuts of every parameter, empty fragments included; random ranges come back bit by bit."""
    num = data.draw(st.integers(1, 4), label="writers")
    ranks: list[dict[str, Fragment]] = [{} for _ in range(num)]
    for name, size in SIZES.items():
        cuts = sorted(data.draw(st.lists(st.integers(0, size), min_size=num - 1, max_size=num - 1)))
        for rank, (start, stop) in enumerate(zip([0, *cuts], [*cuts, size], strict=True)):
            ranks[rank][f"master/{name}"] = Fragment(start, whole(name)[start:stop])
    for rank, fragments in enumerate(ranks):
        write_shard(tmp_path, rank, fragments)
    with open_store(tmp_path, num) as store:
        store.check({"master": SIZES})
        for name, size in SIZES.items():
            start = data.draw(st.integers(0, size))
            stop = data.draw(st.integers(start, size))
            assert torch.equal(store.read(f"master/{name}", start, stop), whole(name)[start:stop])


def write(folder: Path, *ranks: tuple[int, int]) -> None:
    """Let each rank hold elements [start, stop) of one parameter of 12."""
    for rank, (start, stop) in enumerate(ranks):
        write_shard(folder, rank, {"master/c.weight": Fragment(start, whole("c.weight")[start:stop])})


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([(0, 5), (6, 12)], r"elements 5 to 6 of master/c\.weight are in no shards_\* file"),
        ([(0, 5), (5, 11)], r"elements 11 to 12 of master/c\.weight are in no shards_\* file"),
        ([(2, 5), (5, 12)], r"elements 0 to 2 of master/c\.weight are in no"),
        ([(0, 7), (5, 12)], r"shards_00001\S+: elements 5 to 7 of master/c\.weight are also in shards_00000"),
        ([(0, 12), (3, 5)], r"shards_00001\S+: elements 3 to 5 of master/c\.weight are also in shards_00000"),
    ],
)
def test_a_gap_or_an_overlap_is_named(tmp_path: Path, ranks: list[tuple[int, int]], message: str) -> None:
    """File, parameter and elements stand in the message."""
    write(tmp_path, *ranks)
    with open_store(tmp_path, len(ranks)) as store, pytest.raises(CheckpointError, match=message):
        store.check({"master": {"c.weight": 12}})


def test_another_model_is_named(tmp_path: Path) -> None:
    """A parameter too many, one too few, a kind that is not there, another size."""
    write(tmp_path, (0, 12))
    with open_store(tmp_path, 1) as store:
        for kinds, message in (
            ({"master": {"c.weight": 12, "d": 1}}, "has no master/d"),
            ({"master": {}}, r"has an unknown master/c\.weight"),
            ({"master": {"c.weight": 12}, "teacher": {"c.weight": 12}}, r"has no teacher/c\.weight"),
            ({"master": {"c.weight": 11}}, "the model has 11"),
        ):
            with pytest.raises(CheckpointError, match=message):
                store.check(kinds)


@pytest.mark.parametrize("damage", ["short", "empty", "gone", "strange"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    """Cut short, emptied, removed, or a safetensors file of something else: refused when it is opened."""
    write(tmp_path, (0, 6), (6, 12))
    path = shard_path(tmp_path, 1)
    if damage == "gone":
        path.unlink()
    elif damage == "strange":
        write_tensors(path, {"x": torch.zeros(2)})
    else:
        path.write_bytes(path.read_bytes()[: -4 if damage == "short" else 0])
    with pytest.raises(CheckpointError, match=r"shards_00001\.safetensors: cannot be read: .+"):
        with open_store(tmp_path, 2):
            pass


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    """The system's own refusal, by a limit on file size, names the file and what to do."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(CheckpointError, match=r"shards_00000\S+: cannot be written: .*too large.*keep_last"):
            write_shard(tmp_path, 0, {"master/a": Fragment(0, torch.zeros(10_000))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_folder_that_is_not_on_this_node_is_said_so(tmp_path: Path) -> None:
    """Ranks of other nodes must see the run folder."""
    with pytest.raises(CheckpointError, match=r"run\.dir must lie on a disk that all learner ranks share"):
        write_shard(tmp_path / "missing", 0, {})


def test_files_are_readable_to_whom_their_folder_is(tmp_path: Path) -> None:
    """The library makes them private; a server of another user may have to read them."""
    tmp_path.chmod(0o755)
    write(tmp_path, (0, 12))
    assert shard_path(tmp_path, 0).stat().st_mode & 0o777 == 0o644
    with safe_open(shard_path(tmp_path, 0), framework="pt") as file:
        assert list(file.keys()) == ["master/c.weight"]
