"""Curves: seeds, bands, what is missing, and what is drawn of many points."""

from __future__ import annotations

from pathlib import Path

import pytest

from fd_async.telemetry.metrics import METRICS
from fd_async.viewer.figures.curves import MAX_DRAWN, Curve, Missing, curve, resolve_key, running_mean, thinned
from fd_async.viewer.figures.runs import read_group
from fd_async.viewer.figures.table import ENTROPY, FIGURES, TEST, Panel
from tests.fakes.paper_runs import write_run

PANEL = Panel("X", "x", "things")


def values(tmp_path: Path, *columns: list[float | None]) -> list[Path]:
    """Write one run per list of values of `x`, from step 1 on."""
    return [
        write_run(tmp_path / f"seed_{i}", [{"step": step, "x": value} for step, value in enumerate(column, start=1)])
        for i, column in enumerate(columns)
    ]


def test_seeds_become_a_mean_and_a_band_from_the_lowest_to_the_highest(tmp_path: Path) -> None:
    """Three runs, three values a step."""
    one = curve(read_group("x", values(tmp_path, [1, 2], [2, 4], [6, 9])), 5, PANEL, "x")
    assert isinstance(one, Curve)
    assert (one.x, one.y, one.low, one.high) == ([1, 2], [3, 5], [1, 2], [6, 9])
    assert (one.colour, one.num_runs, one.note) == (5, 3, "")


def test_steps_that_a_seed_lacks_are_not_drawn_and_the_curve_says_so(tmp_path: Path) -> None:
    """A mean of two seeds after a mean of three would jump."""
    one = curve(read_group("x", values(tmp_path, [1, 2, 3, 4], [1, None, 3])), 0, PANEL, "x")
    assert isinstance(one, Curve)
    assert one.x == [1, 3]
    assert one.note == "x: drawn to step 3, which all its runs have; seed_0 went further"


def test_one_run_has_no_band(tmp_path: Path) -> None:
    """Its noise is not that of seeds."""
    one = curve(read_group("x", values(tmp_path, [1, 2])), 0, PANEL, "x")
    assert isinstance(one, Curve)
    assert one.low is one.high is None


def test_what_a_run_lacks_is_named_by_run_and_key(tmp_path: Path) -> None:
    """Never a zero, never a guess."""
    folders = values(tmp_path, [1.0], [None])
    assert curve(read_group("x", folders), 0, PANEL, "x") == Missing("x", "seed_1: no x in metrics.jsonl")
    empty = write_run(tmp_path / "empty", [])
    assert curve(read_group("e", [empty]), 0, PANEL, "x") == Missing("e", "metrics.jsonl has no row yet")
    key = resolve_key(TEST, {})
    found = curve(read_group("x", folders[:1]), 0, TEST, key)
    assert found == Missing("x", "evaluates no suite that is held out")


def test_seeds_that_share_no_step_are_named(tmp_path: Path) -> None:
    """There is no mean of them."""
    found = curve(read_group("x", values(tmp_path, [1.0, None], [None, 1.0])), 0, PANEL, "x")
    assert found == Missing("x", "its runs have x at no common step")


@pytest.mark.parametrize("half", [0, 1, 3])
def test_a_running_mean_is_the_mean_of_the_neighbours(half: int) -> None:
    """Compared with the plain definition."""
    column = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    plain = [column[max(0, i - half) : i + half + 1] for i in range(len(column))]
    assert running_mean(column, half) == pytest.approx([sum(near) / len(near) for near in plain])


def test_evaluations_are_never_averaged_and_other_curves_of_a_panel_alike() -> None:
    """One window for the panel, so that a short run does not look noisier than a long one; a tiny one keeps points."""
    noise = [float(i % 2) for i in range(600)]
    long, short, tiny = (Curve(label=str(n), colour=0, x=list(range(n)), y=noise[:n]) for n in (600, 200, 30))
    points = Curve(label="c", colour=2, x=list(range(600)), y=noise, marks=True)
    total = Curve(label="d", colour=3, x=list(range(600)), y=noise, is_total=True)
    drawn = thinned([long, short, tiny, points, total])
    assert [one.window for one in drawn] == [21, 21, 7, 1, 1]
    assert drawn[3].y == drawn[4].y == noise


def test_ten_thousand_steps_are_drawn_as_a_few_hundred_points_with_both_ends() -> None:
    """More than the figure can show costs only time."""
    (drawn,) = thinned([Curve(label="a", colour=0, x=list(range(10_001)), y=[0.5] * 10_001)])
    assert len(drawn.x) <= MAX_DRAWN + 1
    assert (drawn.x[0], drawn.x[-1]) == (0, 10_000)
    assert drawn.y == pytest.approx([0.5] * len(drawn.x))


def test_the_table_has_every_figure_of_the_paper_from_2_to_14() -> None:
    """Each once, with something in it."""
    assert [figure.number for figure in FIGURES if figure.number.isdecimal()] == [str(n) for n in range(2, 15)]
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    most = {"words": 10}
    assert all(1 <= len(figure.panels) + figure.has_scaling <= most.get(figure.number, 4) for figure in FIGURES)
    assert not ENTROPY.is_evaluated
    assert TEST.is_evaluated


def test_every_figure_draws_columns_that_a_run_writes() -> None:
    """A column that was renamed would be missing in every run."""
    known = {metric.key for metric in METRICS}
    assert {panel.key for figure in FIGURES for panel in figure.panels if not panel.is_evaluated} <= known
