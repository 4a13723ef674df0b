"""A ledger whose file fails beside or below what is written: one line each, and no other write suffers for it."""

from __future__ import annotations

import errno
import fcntl
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from fd_async.data.ledger import Ledger, files, is_empty, open_ledger
from fd_async.data.ledger.recorded import read_batches, read_trained
from fd_async.errors import LedgerError
from tests.unit.data.test_ledger import make_rollout, put
from tests.unit.data.test_ledger_files import begun, big

pytestmark = pytest.mark.anyio

READS: list[Callable[[Ledger], object]] = [
    Ledger.queued, Ledger.seen, Ledger.tokens_by_outcome, Ledger.spent_usd, Ledger.fallback_spent_usd,
    Ledger.partials, Ledger.revocations, lambda ledger: list(ledger.trained_verdicts()),
]  # fmt: skip


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)


async def open_once(path: Path) -> None:
    async with open_ledger(path):
        pass


async def test_a_page_that_is_damaged_under_a_large_ledger_is_named_by_whatever_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the size that is looked through at the start, a read must not end the run as a bare sqlite error."""
    path = tmp_path / "ledger.db"
    async with open_ledger(path) as ledger:
        for ordinal in range(3):
            await put(ledger, big(ordinal))
    monkeypatch.setattr(files, "_CHECKED_BYTES", 0)
    whole, met = path.read_bytes(), set()
    with closing(sqlite3.connect(path)) as db:
        pages = [page for (page,) in db.execute("SELECT rootpage FROM sqlite_master")]
    for page in pages:
        path.write_bytes(whole[: (page - 1) * 4096] + b"\xff" * 4096 + whole[page * 4096 :])
        for read in READS:
            try:
                async with open_ledger(path) as ledger:
                    read(ledger)
            except LedgerError as error:
                assert "ledger.db: the ledger is damaged" in str(error)  # noqa: PT017
                met.add(read)
    assert met == set(READS)


async def test_a_record_that_cannot_be_unpacked_names_the_ledger(tmp_path: Path) -> None:
    """The file is whole for SQLite, one record is not."""
    path = tmp_path / "ledger.db"
    async with open_ledger(path) as ledger:
        await put(ledger, make_rollout(0))
    change(path, "UPDATE bodies SET body=x'00'")
    async with open_ledger(path) as ledger:
        with pytest.raises(LedgerError, match=r"ledger\.db: the ledger is damaged .*--run NAME"):
            ledger.queued()


async def test_a_folder_that_cannot_be_listed_costs_no_write(tmp_path: Path) -> None:
    """Making room looks at the checkpoints, which another thread prunes; what was to be recorded is recorded."""

    def vanish() -> int:
        raise FileNotFoundError(errno.ENOENT, "pruned meanwhile")

    async with open_ledger(tmp_path / "ledger.db", max_gib=1e-9, oldest_checkpoint=vanish) as ledger:
        with capture_logs() as logs:
            await put(ledger, make_rollout(0))
        assert set(ledger.seen()) == {0}
    assert [(line["event"], "pruned" in line["reason"]) for line in logs[-1:]] == [("ledger_space", True)]


async def test_a_refused_write_harms_no_write_that_shares_its_commit(tmp_path: Path) -> None:
    """A second record of the same attempt is refused alone, in whatever order they wait."""
    refused: list[str] = []

    async def try_to_put(ordinal: int) -> None:
        try:
            await put(ledger, make_rollout(ordinal))
        except LedgerError as error:
            refused.append(str(error))

    async with open_ledger(tmp_path / "ledger.db") as ledger:
        ledger.note("admitted", "0")
        async with anyio.create_task_group() as tasks:
            for ordinal in (0, 1, 2, 1, 3):
                tasks.start_soon(try_to_put, ordinal)
        assert set(ledger.seen()) == {0, 1, 2, 3}
        assert ledger.statistics()["rows"] == 4
    assert len(refused) == 1


async def test_notes_that_find_no_room_at_the_end_are_missed_aloud(tmp_path: Path) -> None:
    """Nobody waits for a note, so nobody else could tell that a replay will lack it."""
    with capture_logs() as logs:
        async with open_ledger(tmp_path / "ledger.db") as ledger:
            await put(ledger, make_rollout(0))
            ledger._connection.execute("PRAGMA query_only=1")
            ledger.note("admitted", "7")
    (line,) = [line for line in logs if line["event"] == "ledger_notes_lost"]
    assert line["num"] == 1
    assert "ledger.db: cannot write the ledger: attempt to write a readonly database" in line["reason"]


async def test_a_disk_that_went_away_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free there cannot be asked any more; the message says the rest."""
    path = tmp_path / "ledger.db"
    async with open_ledger(path) as ledger:
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count={pages}")

        def gone(folder: Path) -> None:
            raise OSError(errno.ESTALE, "Stale file handle")

        monkeypatch.setattr(shutil, "disk_usage", gone)
        with pytest.raises(LedgerError, match=r"disk full; no one knows how many MiB are free there\..*--resume"):
            await put(ledger, big(1))


async def test_a_ledger_that_cannot_be_opened_names_the_folder(tmp_path: Path) -> None:
    """A folder in its place, and a file in the place of its folder."""
    (tmp_path / "ledger.db").mkdir()
    with pytest.raises(LedgerError, match=r"ledger\.db: cannot open the ledger: unable to open .*\(run\.dir\)"):
        await open_once(tmp_path / "ledger.db")
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match=r"cannot open the ledger: Not a directory; .*\(run\.dir\)"):
        await open_once(tmp_path / "file" / "ledger.db")


async def test_a_file_system_without_locks_is_told_from_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network disks have none; waiting for the other process would never end."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    with pytest.raises(LedgerError, match=r"cannot be locked on this file system: No locks available; .*run\.dir"):
        await open_once(tmp_path / "ledger.db")


async def test_only_a_ledger_that_can_be_read_and_holds_nothing_is_empty(tmp_path: Path) -> None:
    """A run folder with one is taken for unused, so money and attempts under way count."""
    path = tmp_path / "ledger.db"
    path.touch()
    assert is_empty(path)
    await open_once(path)
    assert is_empty(path)
    for name, record in {
        "partial": lambda x: x.put_partials([begun(0, 1)]),
        "spend": lambda x: x.put_spend("a", 1.0),
    }.items():
        other = tmp_path / f"{name}.db"
        async with open_ledger(other) as ledger:
            await record(ledger)
        assert not is_empty(other)
    path.write_text("no database at all, but a text that is long enough to be looked at by everyone")
    assert not is_empty(path)


async def test_a_replay_of_a_ledger_with_holes_is_refused(tmp_path: Path) -> None:
    """A batch or an attempt that is not there would be trained without a word."""
    path = tmp_path / "ledger.db"
    async with open_ledger(path) as ledger:
        for step in (1, 2):
            await put(ledger, make_rollout(step))
            await ledger.put_batch(step, [make_rollout(step).id], {})
    assert [record.rollout.id for record in read_trained(path, [make_rollout(2).id])] == [make_rollout(2).id]
    change(path, "DELETE FROM rollouts WHERE step=2")
    with pytest.raises(LedgerError, match=r"train-0000002-00 was trained and is not recorded.*cannot be replayed"):
        read_trained(path, [make_rollout(2).id])
    change(path, "DELETE FROM batches WHERE step=1")
    with pytest.raises(LedgerError, match=r"batch of step 1 is missing, the next one is that of step 2.*be replayed"):
        read_batches(path)
