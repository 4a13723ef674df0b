"""Run folders: rows, settings, where a run begins, and which suite is which."""

from __future__ import annotations

from pathlib import Path

import pytest

from fd_async.errors import ConfigError, PreflightError
from fd_async.viewer.figures.runs import Group, name_groups, points, read_group, read_run, suites
from tests.fakes.paper_runs import make_rows, write_run


def test_a_run_that_is_being_written_is_read_up_to_its_last_whole_row(tmp_path: Path) -> None:
    """The half line that a writer has not finished is no data."""
    folder = write_run(tmp_path / "a", make_rows(5))
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "policy/ent')
    assert [row["step"] for row in read_run(folder).rows] == [0, 1, 2, 3, 4, 5]


def test_a_run_without_metrics_says_so(tmp_path: Path) -> None:
    """It is a run, with nothing in it yet."""
    folder = write_run(tmp_path / "a", [])
    assert read_run(folder).problem == "metrics.jsonl has no row yet"
    (folder / "metrics.jsonl").unlink()
    assert read_run(folder).problem == "there is no metrics.jsonl"


def test_a_folder_that_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    """Neither file is there."""
    with pytest.raises(PreflightError, match="no run folder"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [('{"step": "x"}', "'x'"), ('{"a": 1}', "None"), ('{"step": -1}', "-1"), ('{"step": true}', "True")],
)
def test_a_row_without_a_step_is_named(tmp_path: Path, line: str, said: str) -> None:
    """One line that says which row, and what to do."""
    folder = write_run(tmp_path / "a", make_rows(1))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(PreflightError, match=f"row 3 has no step but {said}; remove that line"):
        read_run(folder)


def test_a_config_that_is_no_toml_is_named(tmp_path: Path) -> None:
    """Also one that is no text."""
    folder = write_run(tmp_path / "a", make_rows(1))
    (folder / "config.toml").write_bytes(b"\xff\xfe[run")
    with pytest.raises(PreflightError, match=r"config\.toml: cannot be read as TOML"):
        read_run(folder)


def test_only_finite_numbers_are_points(tmp_path: Path) -> None:
    """Null, text, truth values and absurd sizes are no data; repeated rows of a resume count once."""
    folder = write_run(tmp_path / "a", [])
    (folder / "metrics.jsonl").write_text(
        '{"step":1,"x":1.5}\n{"step":2,"x":null}\n{"step":3,"x":"a"}\n{"step":4,"x":true}\n{"step":5,"x":1e305}\n'
        '{"step":1,"x":2.5}\n{"step":6,"x":3}\n'
    )
    run = read_run(folder)
    assert points(run, "x") == [(1, 2.5), (6, 3.0)]
    assert points(run, "x", per_step=True) == [(1, 2.5), (6, 0.5)]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_number_that_json_does_not_have_is_named_with_its_line(tmp_path: Path, number: str) -> None:
    """fd_async writes null; whoever wrote this must decide what it means."""
    folder = write_run(tmp_path / "a", [])
    (folder / "metrics.jsonl").write_text(f'{{"step":1,"x":{number}}}\n{{"step":2,"x":1}}\n')
    with pytest.raises(PreflightError, match=r"metrics\.jsonl:1: .*remove that line"):
        read_run(folder)


def test_a_run_from_a_checkpoint_begins_at_its_step(tmp_path: Path) -> None:
    """A checkpoint says its step; a run folder stands for its newest; runs before it add up."""
    write_run(tmp_path / "fd", make_rows(2))
    for step in (100, 200):
        (tmp_path / "fd" / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    named = str(tmp_path / "fd" / "checkpoints" / "step_000100")
    second = write_run(tmp_path / "second", make_rows(2), {"model": {"init_from": named}})
    (second / "checkpoints" / "step_000050").mkdir(parents=True)
    newest = write_run(tmp_path / "newest", make_rows(2), {"model": {"init_from": str(tmp_path / "fd")}})
    third = write_run(tmp_path / "third", make_rows(2), {"model": {"init_from": str(second)}})
    assert read_run(second).start == 100
    assert read_run(newest).start == 200
    assert read_run(third).start == 150
    assert [step for step, _ in points(read_run(second), "policy/entropy")] == [101, 102]


def test_a_run_that_was_moved_finds_the_run_before_it_beside_it(tmp_path: Path) -> None:
    """The path in config.toml is of another machine."""
    write_run(tmp_path / "fd", make_rows(2))
    (tmp_path / "fd" / "checkpoints" / "step_000300").mkdir(parents=True)
    for origin in ("/gone/runs/fd", "/gone/runs/fd/checkpoints/step_000300", "runs/fd"):
        run = write_run(tmp_path / "grpo", make_rows(2), {"model": {"init_from": origin}})
        assert read_run(run).start == 300


def test_runs_that_began_with_each_other_are_followed_only_so_far(tmp_path: Path) -> None:
    """A circle ends."""
    for name, origin in (("a", "b"), ("b", "a")):
        write_run(tmp_path / name, make_rows(1), {"model": {"init_from": str(tmp_path / origin)}})
    assert read_run(tmp_path / "a").start == 0


def test_suites_are_told_by_name_and_by_how_many_runs_have_them(tmp_path: Path) -> None:
    """MiniF2F in any spelling; otherwise the suite that most runs share."""
    rows = [{"step": 1, "eval/MiniF2F-test/pass@1": 0.1, "eval/own/pass@1": 0.2, "eval/own/pass@8": 0.3}]
    more = [{"step": 1, "eval/own/pass@1": 0.1, "eval/a_workbook/pass@1": 0.2}]
    groups = [
        Group(label=name, runs=[read_run(write_run(tmp_path / name, found))])
        for name, found in (("a", rows), ("b", more))
    ]
    assert suites(groups) == {"minif2f": "MiniF2F-test", "test": "own"}
    assert suites([groups[1]]) == {"test": "a_workbook"}
    assert suites([]) == {}


def test_labels_are_told_apart_and_never_repeated(tmp_path: Path) -> None:
    """Folders of one name take the folder that they are in; given labels must differ."""
    a, b = (tmp_path / place / "demo" for place in "ab")
    for folder in (a, b):
        folder.mkdir(parents=True)
    assert [label for label, _ in name_groups([("", [a]), ("", [b])])] == ["a/demo", "b/demo"]
    assert [label for label, _ in name_groups([("demo", [a]), ("", [b])])] == ["demo", "demo (2)"]
    with pytest.raises(ConfigError, match="label 'x' is given twice: write x=RUN,RUN"):
        name_groups([("x", [a]), ("x", [b])])
    with pytest.raises(ConfigError, match="one seed counts once"):
        name_groups([("x", [a, tmp_path / "b" / ".." / "a" / "demo"])])
    assert name_groups([("a\nb\x1b", [a])])[0][0] == "a\ufffdb\ufffd"


def test_settings_are_read_as_people_say_them(tmp_path: Path) -> None:
    """GRPO has no feedback, a checkpoint is a run and a step, and what is not there is not said."""
    grpo = {"algorithm": {"type": "grpo"}, "model": {"init_from": "/else/runs/fd/checkpoints/step_000200"}}
    group = read_group("x", [write_run(tmp_path / "a", make_rows(1), grpo), write_run(tmp_path / "b", make_rows(1))])
    assert group.setting("feedback.type") == "none (GRPO) / anthropic"
    assert group.setting("model.init_from") == "fd, step_000200 / none"
    assert group.setting("rollout.tools") == "not said"
