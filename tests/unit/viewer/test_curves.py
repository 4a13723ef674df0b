"""Numbers of the report, from rows."""

from __future__ import annotations

from typing import Any

from fd_async.viewer.curves import accounting, charts, evaluation, merge_rows


def test_two_rows_of_a_step_become_one() -> None:
    """A null never hides a value that is known."""
    rows = merge_rows([{"step": 2, "loss": 1.0}, {"step": 1}, {"step": 2, "loss": None, "eval/a/pass@1": 0.5}])
    assert rows == [{"step": 1}, {"step": 2, "loss": 1.0, "eval/a/pass@1": 0.5}]


def test_a_chart_has_only_points_with_values_and_empty_charts_are_left_out() -> None:
    """Null is a gap, not a zero."""
    made = charts([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": 1.0}])
    assert [chart["title"] for chart in made] == ["Loss"]
    assert made[0]["series"][0]["points"] == [[1, 2.0], [3, 1.0]]


def test_time_that_no_part_explains_is_other() -> None:
    """The parts of a step add up to its wall time."""
    (chart,) = charts([{"step": 1, "time/step_s": 10.0, "time/wait_for_batch_s": 4.0, "time/learn_s": 5.0}])
    assert {one["name"]: one["points"][0][1] for one in chart["series"]} == {
        "waiting for a batch": 4.0,
        "learning": 5.0,
        "other": 1.0,
    }


def test_evaluations_are_ordered_by_k_and_give_an_interval_where_the_count_is_known() -> None:
    """pass@8 stands before pass@32."""
    table = evaluation(
        [
            {"step": 0, "eval/a/pass@32": 0.9, "eval/a/pass@8": 0.7, "eval/a/pass@1": 0.5, "eval/a/statements": 100},
            {"step": 1, "loss": 1.0},
            {"step": 2, "eval/a/pass@1": 0.6},
        ]
    )
    assert table["columns"] == ["a/pass@1", "a/pass@8", "a/pass@32"]
    assert [row["step"] for row in table["rows"]] == [0, 2]
    low, high = table["rows"][0]["cells"][0]["interval"]
    assert low < 0.5 < high
    assert table["rows"][0]["cells"][1]["interval"] is None
    assert [cell["value"] for cell in table["rows"][1]["cells"]] == [0.6, None, None]


def books(**last: int) -> dict[str, dict[str, Any]]:
    """Two steps of 100 generated tokens, 80 trained and 15 dropped each."""
    row = {"tokens/generated": 100, "tokens/trained": 80, "tokens/dropped": 15, "tokens/dropped/engine": 15}
    return {line["name"]: line for line in accounting([{"step": 1, **row}, {"step": 2, **row, **last}])}


def test_books_that_close_are_fine() -> None:
    """generated = trained + dropped + queued."""
    lines = books(**{"tokens/queued": 10})
    assert lines["dropped: engine"]["tokens"] == 30
    assert lines["queued"]["tokens"] == 10
    assert lines["unaccounted"] == {"name": "unaccounted", "tokens": 0, "share": 0.0, "ok": True}


def test_books_that_do_not_close_are_marked() -> None:
    """Lost tokens are shown, not hidden in a remainder."""
    lines = books(**{"tokens/queued": 7})
    assert lines["unaccounted"]["tokens"] == 3
    assert not lines["unaccounted"]["ok"]


def test_without_a_queue_count_the_remainder_is_named_as_such() -> None:
    """More trained than generated is marked even then."""
    assert books()["queued or in flight (by difference)"]["ok"]
    lines = books(**{"tokens/trained": 500})
    assert not lines["queued or in flight (by difference)"]["ok"]
