"""Weights & Biases and trackio themselves, without a network."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fd_async.telemetry import external
from fd_async.telemetry.external import ExternalSink

pytestmark = pytest.mark.slow


def feed(run_dir: Path, name: str, *, first: int = 1, last: int = 5) -> list[str]:
    """Run a sink over some steps and return what was logged about it."""
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    with capture_logs() as logs:
        sink = ExternalSink(name, run_dir, "fd_async_test", first - 1, {"learner": {"lr": 1e-5}})
        for step in range(first, last + 1):
            sink.row({"step": step, "loss": 1.0 / step, "eval/a/pass@1": 0.5 if step == last else None})
        sink.close()
    return [entry["reason"] for entry in logs if entry["event"] == "sink_left_out"]


def test_weights_and_biases_writes_an_offline_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume goes on under the same id."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(external, "CLOSE_S", 30.0)
    for first, last in ((1, 3), (3, 5)):
        assert feed(tmp_path / "demo", "wandb", first=first, last=last) == []
    files = list((tmp_path / "demo" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    assert len({file.stem for file in files}) == 1
    data = files[0].read_bytes()
    assert b"eval/a/pass@1" in data
    assert b"loss" in data


def test_weights_and_biases_without_a_network_or_a_key_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line; the run goes on and ends in time."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert len(feed(tmp_path / "demo", "wandb")) == 1


def test_trackio_keeps_the_run_in_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row with a value is there, at its step."""
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setattr(external, "CLOSE_S", 30.0)
    assert feed(tmp_path / "demo", "trackio") == []
    (path,) = (tmp_path / "trackio").glob("*.db")
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert [(run, step) for run, step, _ in rows] == [("demo", step) for step in range(1, 6)]
    assert b"loss" in rows[3][2]
