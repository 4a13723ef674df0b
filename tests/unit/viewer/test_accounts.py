"""The books of a run in its report."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fd_async.viewer.accounts import books
from fd_async.viewer.report import write_report
from tests.fakes.run_folder import write_run

ROWS = [
    {"step": 1, "learner/waiting_s": 30.0, "learner/learning_s": 10.0, "learner/other_s": 0.0,
     "engine/generating_s": 36.0, "engine/idle_s": 4.0},
    {"step": 2, "learner/waiting_s": 10.0, "learner/learning_s": 50.0, "engine/generating_s": 60.0,
     "feedback/usd": 8.0, "usd/trained": 5.0, "usd/queued": 2.0, "usd/wasted": 0.75, "usd/unrecorded": 0.25},
]  # fmt: skip


def book(rows: list[dict], title: str) -> list[tuple[str, str, float, bool]]:
    (found,) = [one for one in books(rows, {}) if one["title"] == title]
    return [(line["name"], line["text"], round(line["share"], 3), line["ok"]) for line in found["lines"]]


def test_time_is_summed_over_all_rows_longest_first() -> None:
    """What never happened is left out; the parts sum to the last line."""
    assert book(ROWS, "Time of the learner") == [
        ("learning", "60s", 0.6, True),
        ("waiting for a batch", "40s", 0.4, True),
        ("all", "2m", 1.0, True),
    ]
    assert book(ROWS, "Time of the engine") == [
        ("generating", "96s", 0.96, True),
        ("without a request", "4.0s", 0.04, True),
        ("all", "2m", 1.0, True),
    ]


def test_money_closes_or_is_marked() -> None:
    """The last row decides."""
    lines = [
        ("feedback that was trained on", "5.00", 0.625, True),
        ("feedback of attempts that wait", "2.00", 0.25, True),
        ("answers that gave no feedback", "0.75", 0.094, True),
        ("calls in flight", "0.25", 0.031, True),
    ]
    assert book(ROWS, "Money") == [*lines, ("spent", "8.00", 1.0, True)]
    short = [ROWS[0], ROWS[1] | {"usd/trained": 4.5}]
    assert ("unaccounted", "0.50", 0.062, False) in book(short, "Money")


def test_a_run_without_data_has_no_books() -> None:
    """Free feedback costs nothing, which is no table of zeros."""
    assert books([], {}) == []
    assert books([{"step": 1, "feedback/usd": 0.0, "usd/trained": 0.0}], {}) == []


def test_the_report_shows_the_books(tmp_path: Path) -> None:
    """Every table travels in the page."""
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.writelines(msgspec.json.encode(row | {"step": 17 + row["step"]}) + b"\n" for row in ROWS)
    page = write_report(folder).read_text(encoding="utf-8")
    for text in ("Generated tokens", "Money", "Time of the learner", "Time of the engine", "waiting for a batch"):
        assert text in page
