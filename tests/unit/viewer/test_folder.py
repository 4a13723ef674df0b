"""The run folder as it grows: only what is new is read, and nothing in it can stop the page."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from fd_async.data.ledger.files import LAYOUT
from fd_async.errors import PreflightError
from fd_async.viewer.curves import thin
from fd_async.viewer.report import write_report
from fd_async.viewer.server.folder import RunFolder
from tests.fakes.run_folder import CONFIG, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", num_steps=3, num_attempts=6)


def append(run: Path, text: str) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(text)


def losses(folder: RunFolder) -> list[list[float]]:
    charts = {chart["title"]: chart for chart in folder.overview()["charts"]}
    return charts["Loss"]["series"][0]["points"]


def test_a_half_written_line_waits_for_its_end(run: Path) -> None:
    """It is neither an error nor lost."""
    folder = RunFolder(run)
    first = folder.refresh()["version"]
    append(run, '{"step": 4, "lo')
    assert folder.refresh() == folder.refresh() | {"version": first, "notices": []}
    append(run, 'ss": 0.5}\n')
    assert folder.refresh()["version"] != first
    assert losses(folder)[-1] == [4, 0.5]


def test_only_what_was_appended_is_read(run: Path) -> None:
    """A change of what was read before is not even looked at."""
    folder = RunFolder(run)
    folder.refresh()
    path = run / "metrics.jsonl"
    with path.open("r+b") as file:
        file.write(b"#" * 40)
    append(run, '{"step": 4, "loss": 0.25}\n')
    assert folder.refresh()["notices"] == []
    assert [step for step, _ in losses(folder)] == [1, 2, 3, 4]


def test_a_resume_that_went_back_replaces_the_rows(run: Path) -> None:
    """The file of a resume is another one: rows after its step are gone from the page too."""
    folder = RunFolder(run)
    folder.refresh()
    kept = (run / "metrics.jsonl").read_text().splitlines()[:2]
    (run / "new").write_text("\n".join(kept) + "\n")
    (run / "new").replace(run / "metrics.jsonl")
    folder.refresh()
    assert [step for step, _ in losses(folder)] == [1]


def test_numbers_that_are_none_and_foreign_lines_leave_gaps(run: Path) -> None:
    """NaN, infinities and text become gaps; a line that is no row is left out and named."""
    append(run, '{"step": 4, "loss": NaN}\n{"step": 5, "loss": Infinity}\n{"step": 6, "loss": "low"}\nrubbish\n[1]\n')
    append(run, '{"step": 7, "loss": 0.5}\n{"step": "x"}\n')
    folder = RunFolder(run)
    (notice,) = folder.refresh()["notices"]
    assert notice == "metrics.jsonl: left out 3 lines that are no JSON object with a step: 8, 9, 11"
    assert [step for step, _ in losses(folder)] == [1, 2, 3, 7]
    json.dumps(folder.overview(), allow_nan=False)


def test_a_folder_that_was_deleted_is_said_and_what_was_read_stays(run: Path) -> None:
    """The page goes on showing what it knew."""
    folder = RunFolder(run)
    folder.refresh()
    shutil.rmtree(run)
    now = folder.refresh()
    assert now["notices"] == [f"{run} is gone: deleted or moved. This page shows what was read before"]
    assert now["phase"] == "done"
    assert len(losses(folder)) == 3


def foreign(path: Path) -> None:
    path.write_bytes(b"no database at all, " * 500)


def older(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={LAYOUT - 1}")


@pytest.mark.parametrize(("harm", "said"), [(foreign, "the ledger is damaged"), (older, "the ledger has layout 2")])
def test_a_ledger_that_cannot_be_read_leaves_the_curves(run: Path, harm: Callable[[Path], None], said: str) -> None:
    """One line says why; everything else is shown."""
    harm(run / "ledger.db")
    folder = RunFolder(run)
    now = folder.refresh()
    assert said in now["notices"][0]
    assert now["attempts"] is None
    assert len(losses(folder)) == 3


def test_a_ledger_that_another_program_locked_is_said(run: Path) -> None:
    """The run itself never locks readers out; a tool that looks at the file may."""
    with closing(sqlite3.connect(run / "ledger.db")) as db:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in RunFolder(run).refresh()["notices"][0]


def test_a_status_that_is_rubbish_is_said_until_it_is_whole(run: Path) -> None:
    """Any value of another type is left out."""
    folder = RunFolder(run)
    (run / "status.json").write_text('{"phase": "runn')
    assert "status.json cannot be read" in folder.refresh()["notices"][0]
    odd = {
        "phase": "running",
        "updated_at": "now",
        "stages": 3,
        "waits": {},
        "alarms": [],
        "usd": None,
        "eta_s": "soon",
    }
    (run / "status.json").write_text(json.dumps(odd))
    now = folder.refresh()
    assert (now["phase"], now["flow"], now["waits"], now["alarms"], now["figures"]) == ("running", [], [], {}, [])
    assert now["notices"] == []


ODD = ("", "x", None, True, 0, -1, 10**30, -(10**400), 1e308, [], [[]], {}, {"a": None}, {"dropped:x": "y"}, [{"k": 1}])


@pytest.mark.parametrize("seed", range(40))
def test_no_rubbish_in_any_file_stops_the_page(run: Path, seed: int) -> None:
    """Every value of another kind or size is left out or named; what the page asks for is JSON."""
    rng = random.Random(seed)
    keys = (
        "phase updated_at elapsed_s step max_steps pass_rate usd eta_s batch stages waits alarms dropped tokens error"
    )
    columns = "step loss train/pass_rate tokens/generated tokens/dropped time/step_s usd/trained feedback/usd"
    columns += (
        " eval/a/pass@1 eval/a/statements eval/a/pass@0 alarms/rollback_to proofs/lemmas_total learner/learning_s"
    )
    (run / "status.json").write_text(json.dumps({key: rng.choice(ODD) for key in keys.split() if rng.random() < 0.5}))
    (run / "result.json").write_text(json.dumps({"suites": rng.choice(ODD)}))
    for _ in range(4):
        append(
            run, json.dumps({key: rng.choice([*ODD, 3, 0.5]) for key in columns.split() if rng.random() < 0.7}) + "\n"
        )
    folder = RunFolder(run)
    msgspec.json.encode([folder.refresh(), folder.overview(), folder.refresh()])


@pytest.mark.parametrize("name", ["status.json", "result.json"])
def test_a_file_that_nests_without_end_is_said(run: Path, name: str) -> None:
    """Neither the page nor the report falls over it."""
    (run / name).write_text('{"a":' * 100_000)
    assert f"{name} cannot be read" in RunFolder(run).refresh()["notices"][0]
    with pytest.raises(PreflightError, match=f"{name} cannot be read"):
        write_report(run)


def test_a_run_that_fell_silent_is_told_from_one_that_goes_on(run: Path) -> None:
    """A process that was killed cannot say so itself."""
    (run / "status.json").write_text(json.dumps({"phase": "running", "updated_at": 1e9}))
    now = RunFolder(run).refresh()
    assert not now["alive"]
    assert now["silent"].endswith("h")


def test_an_evaluation_shows_its_result(tmp_path: Path) -> None:
    """It has no metrics; its table has a line per suite."""
    (tmp_path / "config.toml").write_text(CONFIG)
    suite = {"suite": "minif2f", "pass_at": {"1": [0.5, 0.4, 0.6], "8": [0.75, 0.7, 0.8]}, "failed": 0}
    (tmp_path / "result.json").write_text(json.dumps({"model": "m", "step": 3, "suites": [suite]}))
    folder = RunFolder(tmp_path)
    now = folder.refresh()
    assert (now["notices"], now["phase"]) == ([], "evaluated")
    table = folder.overview()["evaluation"]
    assert table["columns"] == ["pass@1", "pass@8"]
    assert table["rows"][0]["label"] == "minif2f"
    assert table["rows"][0]["cells"][0] == {"value": 0.5, "interval": [0.4, 0.6]}
    assert ("minif2f pass@8", "75%") in folder.overview()["totals"]


@pytest.mark.parametrize("suites", [3, [3], [{"pass_at": 1}], [{"pass_at": {"x": [1], "1": "a", "8": [None]}}]])
def test_a_result_that_is_rubbish_stops_nothing(run: Path, suites: object) -> None:
    """Nor does a row with a key that looks like an evaluation's."""
    (run / "result.json").write_text(json.dumps({"suites": suites}))
    append(run, '{"step": 4, "eval/a/pass@many": 1}\n')
    folder = RunFolder(run)
    folder.refresh()
    assert len(losses(folder)) == 3


def test_an_evaluation_under_way_is_told_from_a_run_that_has_not_begun(run: Path) -> None:
    """Neither has metrics or a status; one has attempts."""
    for name in ("metrics.jsonl", "status.json"):
        (run / name).unlink()
    assert RunFolder(run).refresh()["phase"] == "evaluating"
    (run / "ledger.db").unlink()
    assert RunFolder(run).refresh()["phase"] == ""


def test_thinned_curves_keep_their_spikes() -> None:
    """Each stretch keeps its lowest and its highest point, in order, and the last point stays last."""
    points = [[float(step), 1.0] for step in range(10_000)]
    points[4321][1], points[7777][1] = 99.0, -5.0
    kept = thin(points, 1000)
    assert len(kept) <= 1002
    assert [4321.0, 99.0] in kept
    assert [7777.0, -5.0] in kept
    assert kept[-1] == points[-1]
    assert kept == sorted(kept)
    assert thin(points[:1000], 1000) == points[:1000]
