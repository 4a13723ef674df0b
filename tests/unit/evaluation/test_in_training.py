"""Evaluation between gradient steps, under the real controller on a clock of its own: who waits, and what grows old."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.simulation import clock
from fd_async.telemetry.sinks import read_rows
from fd_async.types import Statement, Ticket
from tests.fakes.control_plane import Bench, make_config

STALENESS, BATCH = 2, 4


class Watched:
    """A run whose attempts take 1 to 5 s, and whose evaluation attempts take a minute."""

    def __init__(self, run_dir: Path, *, every_steps: int, **tables: dict[str, Any]) -> None:
        base: dict[str, dict[str, Any]] = {
            "run": {"max_steps": 12, "stall_warn_s": 600.0, "stall_abort_s": 600.0},
            "learner": {"prompts_per_step": BATCH},
            "admission": {"max_staleness": STALENESS},
            "rollout": {"concurrency": 6},
            "eval": {"every_steps": every_steps, "at_start": False, "at_end": False},
            "telemetry": {"status_every_s": 100.0},
        }
        self.bench = Bench(make_config(**{**base, **tables}), run_dir)
        self.bench.suites = {"s": [Statement(name=f"e{i}", formal_statement="theorem e : True :=") for i in range(3)]}
        self.bench.runner.duration_s = self._start
        self.bench.runner.on_run = self._end
        self.started: list[str] = []
        """Training attempts in the order of their start."""
        self.evaluations: list[dict[str, Any]] = []
        """Of each: how many attempts had started, and the version that was served, when it began and when it ended."""
        self._evaluating = 0

    def _start(self, ticket: Ticket) -> float:
        if ticket.purpose == "train":
            self.started.append(ticket.id)
            return 1.0 + ticket.ordinal * 7 % 5
        if not self._evaluating:
            self.evaluations.append({"before": len(self.started), "version": self.bench.engine.weight_version})
        self._evaluating += 1
        return 60.0

    def _end(self, ticket: Ticket) -> None:
        if ticket.purpose == "eval":
            self._evaluating -= 1
            self.evaluations[-1] |= {"after": len(self.started), "end_version": self.bench.engine.weight_version}

    def run(self) -> dict[str, int]:
        """Run to the end; return training attempt -> staleness when it was consumed."""
        assert clock.run(self.bench.run) == 0
        return {sample.rollout_id: sample.age for batch in self.bench.learner.batches.values() for sample in batch}


def test_attempts_under_way_during_an_evaluation_are_made_no_staler_by_it(tmp_path: Path) -> None:
    """Staleness counts versions, and none is published meanwhile: what had started is consumed as old as without it."""
    with_it, without = Watched(tmp_path / "with", every_steps=2), Watched(tmp_path / "without", every_steps=0)
    ages, plain = with_it.run(), without.run()
    first = with_it.evaluations[0]
    assert with_it.started[: first["before"]] == without.started[: first["before"]], "equal up to the evaluation"
    trained = {s.rollout_id for step in (1, 2) for s in with_it.bench.learner.batches[step]}
    under_way = [name for name in with_it.started[: first["before"]] if name not in trained]
    assert len(under_way) >= BATCH
    assert all(ages[name] <= plain[name] for name in under_way)
    assert max(ages.values()) <= STALENESS


def test_admission_goes_on_during_an_evaluation_up_to_its_bound(tmp_path: Path) -> None:
    """New attempts start, one version is served from its begin to its end, and the next steps find batches ready."""
    watched = Watched(tmp_path, every_steps=2)
    ages = watched.run()
    assert len(watched.evaluations) == 6
    for number, evaluation in enumerate(watched.evaluations[:4], start=1):  # then the run needs no more attempts
        assert evaluation["version"] == evaluation["end_version"] == 2 * number
        room = (STALENESS + 2 * number + 1) * BATCH
        assert evaluation["before"] < evaluation["after"] <= room
    assert set(ages.values()) <= set(range(STALENESS + 1))
    rows = {row["step"]: row for row in read_rows(tmp_path / "metrics.jsonl")}
    assert all(rows[step]["time/eval_s"] == pytest.approx(60.0) for step in (2, 4, 6, 8))
    ready = [step for step in (3, 4, 5, 6, 7, 8) if rows[step]["time/wait_for_batch_s"] < 0.01]
    assert ready == [3, 4, 5, 6, 7, 8], "the bound's worth of batches was made meanwhile"


def test_a_sync_run_makes_no_attempts_during_an_evaluation(tmp_path: Path) -> None:
    """Staleness 0 leaves no slot: the next batch is begun under the weights that were evaluated, after it or before."""
    watched = Watched(tmp_path, every_steps=2, run={"max_steps": 6, "mode": "sync"})
    ages = watched.run()
    assert set(ages.values()) == {0}
    assert all(evaluation["after"] - evaluation["before"] <= BATCH for evaluation in watched.evaluations)
