"""Numbers of the report, from rows."""

from __future__ import annotations

import math
from typing import Any

from fd_async.viewer.curves import accounting, charts, evaluation, increments, merge_rows, total


def test_two_rows_of_a_step_become_one() -> None:
    """A null never hides a value that is known."""
    rows = merge_rows([{"step": 2, "loss": 1.0}, {"step": 1}, {"step": 2, "loss": None, "eval/a/pass@1": 0.5}])
    assert rows == [{"step": 1}, {"step": 2, "loss": 1.0, "eval/a/pass@1": 0.5}]


def test_what_is_no_number_becomes_a_gap_and_a_row_without_a_step_is_left_out() -> None:
    """Whatever stands in the file, every number after this can be drawn and sent."""
    odd: list[Any] = ["low", [1], {}, True, math.nan, math.inf, 1e301, 10**400, -(2**63)]
    rows = merge_rows([{"step": 1, "loss": value} for value in odd])
    assert rows == [{"step": 1, "loss": None}]
    assert merge_rows([{"step": step} for step in ("x", None, -1, 0.5, True, 10**13)]) == []
    assert merge_rows([{"step": 1, "loss": 2.0}, {"step": 1, "loss": math.nan}]) == [{"step": 1, "loss": 2.0}]


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


def test_a_total_that_fell_began_again() -> None:
    """A process that resumed counts its checks from 0; the run's total goes on."""
    rows = [{"step": step, "lean/checks": checks} for step, checks in enumerate([10, 30, 30, 5, 12], start=1)]
    assert increments(rows, "lean/checks") == [[1, 10], [2, 20], [3, 0], [4, 5], [5, 7]]
    assert total(rows, "lean/checks") == 42
    assert total(rows, "feedback/usd") is None


ROW = {"step": 2, "tokens/generated": 200, "tokens/trained": 160, "tokens/dropped": 30}
CAUSES = {"trained": 160, "dropped:engine": 10, "dropped:feedback_rejected": 20, "queued": 10}


def books(outcomes: dict[str, int], **last: int) -> dict[str, dict[str, Any]]:
    """Account for ROW with some columns changed; an evaluation row without token counts follows."""
    return {line["name"]: line for line in accounting([{"step": 1}, ROW | last, {"step": 3}], outcomes)}


def test_books_that_close_are_fine() -> None:
    """generated = trained + dropped by cause + queued."""
    lines = books(CAUSES, **{"tokens/queued": 10})
    assert {name: line["tokens"] for name, line in lines.items()} == {
        "trained": 160,
        "dropped: engine": 10,
        "dropped: feedback_rejected": 20,
        "queued": 10,
        "unaccounted": 0,
        "generated": 200,
    }
    assert all(line["ok"] for line in lines.values())


def test_books_that_do_not_close_are_marked() -> None:
    """Lost tokens are shown, not hidden in a remainder."""
    lines = books(CAUSES, **{"tokens/queued": 7})
    assert lines["unaccounted"]["tokens"] == 3
    assert not lines["unaccounted"]["ok"]


def test_causes_of_another_moment_are_not_mixed_in() -> None:
    """status.json may be newer than the last row; then the drops stand as one line."""
    lines = books({"dropped:engine": 11})
    assert lines["dropped"]["tokens"] == 30
    assert "dropped: engine" not in lines


def test_without_a_queue_count_the_remainder_is_named_as_such() -> None:
    """More trained than generated is marked even then."""
    assert books(CAUSES)["queued or in flight, by difference"]["ok"]
    assert not books(CAUSES, **{"tokens/trained": 500})["queued or in flight, by difference"]["ok"]


def test_no_tokens_no_books() -> None:
    """A run without a step accounts for nothing."""
    assert accounting([{"step": 0}], {}) == []


def test_the_curves_tell_gain_teacher_and_overlap_apart() -> None:
    """What the alarms judge by can be seen: two lines of one chart are in one unit."""
    row = {
        "step": 1,
        "teacher/feedback_gain": 0.1,
        "policy/teacher_kl": 0.2,
        "policy/entropy": 0.3,
        "teacher/entropy": 0.4,
        "teacher/topk_mass": 0.9,
        "policy/topk_overlap": 0.5,
    }
    drawn = {chart["title"]: [series["points"][0][1] for series in chart["series"]] for chart in charts([row])}
    assert drawn == {"Policy entropy": [0.3, 0.4], "Feedback gain": [0.1, 0.2], "The teacher's top K": [0.9, 0.5]}


def test_words_of_doubt_and_the_feedback_s_part_are_drawn_where_a_run_has_them() -> None:
    """Words in total and the two of the paper's figure 13; KL under true, another's and no feedback."""
    row = {"step": 1, "words/total": 3.0, "words/wait": 1.0, "words/check": 0.5} | {
        f"causality/kl_{name}": value for name, value in (("true", 0.3), ("shuffled", 0.2), ("empty", 0.1))
    }
    drawn = {chart["title"]: [series["points"] for series in chart["series"]] for chart in charts([row])}
    assert drawn == {
        "Words of doubt per attempt": [[[1, 3.0]], [[1, 1.0]], [[1, 0.5]]],
        "Teacher against policy under three feedbacks": [[[1, 0.3]], [[1, 0.2]], [[1, 0.1]]],
    }
