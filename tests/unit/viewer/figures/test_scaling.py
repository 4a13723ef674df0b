"""The pair of checkpoints for pass@k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fd_async.errors import PreflightError
from fd_async.viewer.figures.runs import Group, read_group
from fd_async.viewer.figures.scaling import Match, match, read_evaluations
from tests.fakes.paper_runs import make_rows, write_result, write_run

GRPO = {"algorithm": {"type": "grpo"}}


@pytest.fixture
def groups(tmp_path: Path) -> list[Group]:
    """Two runs of Feedback Distillation and one of GRPO, without evaluations yet."""
    runs = {"fd": {}, "fd_2": {}, "grpo": GRPO}
    return [read_group(name, [write_run(tmp_path / name, make_rows(2), table)]) for name, table in runs.items()]


def matched(groups: list[Group]) -> Any:
    """Return what is chosen."""
    return match(read_evaluations(groups))


def test_the_nearest_pass_at_1_of_two_algorithms_is_chosen(groups: list[Group], tmp_path: Path) -> None:
    """Two checkpoints of the same algorithm are nearer to each other, and are not what the paper compares."""
    write_result(tmp_path / "fd", "a", 100, 0.30)
    write_result(tmp_path / "fd", "b", 200, 0.41)
    write_result(tmp_path / "fd_2", "a", 200, 0.411)
    write_result(tmp_path / "grpo", "a", 200, 0.42)
    pair = matched(groups)
    assert isinstance(pair, Match)
    assert [(one.label, one.step) for one in pair.both] == [("fd_2", 200), ("grpo", 200)]
    assert "fd_2 (fd_2, step 200): pass@1 41.1% [37.1%, 45.1%]" in pair.note


def test_a_run_started_from_the_other_is_no_rival_where_there_is_one(groups: list[Group], tmp_path: Path) -> None:
    """GRPO over FD begins with FD's own pass@1, and would be the nearest of all."""
    over = {**GRPO, "model": {"init_from": "runs/fd/checkpoints/step_000200"}}
    groups = [*groups, read_group("over", [write_run(tmp_path / "over", make_rows(2), over)])]
    write_result(tmp_path / "fd", "a", 200, 0.41)
    write_result(tmp_path / "over", "a", 1, 0.411)
    assert [one.label for one in matched(groups).both] == ["fd", "over"]
    write_result(tmp_path / "grpo", "a", 300, 0.43)
    assert [one.label for one in matched(groups).both] == ["fd", "grpo"]


def test_untrained_checkpoints_are_equal_and_say_nothing(groups: list[Group], tmp_path: Path) -> None:
    """Step 0 is the same model under both labels."""
    for name in ("fd", "grpo"):
        write_result(tmp_path / name, "zero", 0, 0.2)
    assert "needs evaluations with k above 1 of trained checkpoints" in matched(groups)
    write_result(tmp_path / "fd", "b", 200, 0.41)
    write_result(tmp_path / "grpo", "a", 300, 0.44)
    assert [one.step for one in matched(groups).both] == [200, 300]


def test_intervals_that_do_not_overlap_are_no_match(groups: list[Group], tmp_path: Path) -> None:
    """The nearest are named all the same."""
    write_result(tmp_path / "fd", "a", 100, 0.30)
    write_result(tmp_path / "grpo", "a", 100, 0.50)
    assert matched(groups).startswith("no two intervals of pass@1 overlap; the nearest are minif2f_test")


def test_other_settings_are_another_task(groups: list[Group], tmp_path: Path) -> None:
    """Neither another suite nor another temperature can be compared."""
    write_result(tmp_path / "fd", "a", 100, 0.40)
    write_result(tmp_path / "grpo", "a", 100, 0.40, temperature=0.6)
    write_result(tmp_path / "grpo", "b", 100, 0.40, suite="leanworkbook_test")
    assert matched(groups).startswith("no two labels were evaluated on the same suite")


def test_without_evaluations_it_says_what_to_run(groups: list[Group]) -> None:
    """The command stands in the answer."""
    assert "fd-eval RUN --k" in matched(groups)


@pytest.mark.parametrize("at", [[0.1, 0.0, None], "x", [0.1], [1e999, 0, 1]])
def test_a_result_that_is_none_is_named(groups: list[Group], tmp_path: Path, at: Any) -> None:
    """A cut or foreign file ends the report with its path."""
    path = write_result(tmp_path / "fd", "a", 100, 0.30)
    result = json.loads(path.read_text())
    result["suites"][0]["pass_at"]["1"] = at
    path.write_text(json.dumps(result).replace("Infinity", "1e999"))
    with pytest.raises(PreflightError, match=r"result\.json: .*run that fd-eval again"):
        read_evaluations(groups)
