"""A few hundred inputs of each kind; `python -m bench.fuzz` tries thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import answers, configs, datasets, toolcalls
from tests.fuzz.report import Report

SEED = 1


def _is_clean(report: Report) -> None:
    assert report.num_findings == 0, "\n\n".join(report.findings)


def test_any_configuration_is_accepted_or_refused_in_one_line_each(tmp_path: Path) -> None:
    """Through fd-run --dry-run and fd-check --quick."""
    report = configs.fuzz(300, SEED, tmp_path, checks=10)
    _is_clean(report)
    assert report.outcomes["exit 0"] > 10
    assert report.outcomes["exit 2"] > 100


def test_any_file_is_statements_or_one_line_with_its_place(tmp_path: Path) -> None:
    """Folders, pipes and devices too."""
    report = datasets.fuzz(500, SEED, tmp_path)
    _is_clean(report)
    assert report.outcomes["accepted"] > 10
    assert report.outcomes["refused"] > 100


@pytest.mark.slow
def test_a_run_on_bad_data_leaves_nothing_that_the_next_trips_over(tmp_path: Path) -> None:
    """Exit 3, and the folder may be used again."""
    _is_clean(datasets.fuzz_runs(8, SEED, tmp_path))


@pytest.mark.anyio
async def test_any_answer_is_text_or_a_feedback_error_and_the_bill_is_exact() -> None:
    """Through both SDKs, in time."""
    report = await answers.fuzz(120, SEED)
    _is_clean(report)
    assert report.cases == 120
    assert report.outcomes["text"] > 10


def test_any_text_is_calls_that_can_be_recorded() -> None:
    """Neither depth nor length nor half characters stop a rollout."""
    report = toolcalls.fuzz(400, SEED)
    _is_clean(report)
    assert min(report.outcomes["calls"], report.outcomes["malformed"], report.outcomes["text"]) > 10
