"""The file of a ledger: its tables, how it is opened, and what is said when it cannot be read or written.

`PRAGMA user_version` tells a ledger of this layout from an earlier one.

The rows of `rollouts` are narrow: what people filter by, and no blob. So a look through all of them reads some hundred
bytes each, and a change of outcome rewrites that much. Bodies and tokens have tables of their own with the same `seq`;
triggers keep them and `tallies`, the number of attempts of every kind, in step with `rollouts`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import msgspec

from fd_async.errors import LedgerError

LAYOUT = 3
"""Raised with every change of the tables that an older program, or a newer one, would misread."""
_CHECKED_BYTES = 1 << 30
"""Up to this size every page is looked at when the file is opened; about a second."""
_RIGHTS = "this user must be able to write the file and the folder that it lies in (run.dir)"

_TABLES = """
CREATE TABLE IF NOT EXISTS rollouts (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, purpose TEXT NOT NULL, suite TEXT NOT NULL,
    ordinal INTEGER NOT NULL, sample INTEGER NOT NULL, outcome TEXT NOT NULL, step INTEGER,
    sampled_tokens INTEGER NOT NULL, admitted_version INTEGER NOT NULL, name TEXT NOT NULL, verdict TEXT NOT NULL,
    ended TEXT NOT NULL, tokens INTEGER NOT NULL, turns INTEGER NOT NULL, gain REAL);
CREATE INDEX IF NOT EXISTS rollouts_outcome ON rollouts (outcome);
CREATE INDEX IF NOT EXISTS rollouts_verdict ON rollouts (verdict);
CREATE INDEX IF NOT EXISTS rollouts_step ON rollouts (step);
CREATE INDEX IF NOT EXISTS rollouts_name ON rollouts (name);
CREATE TABLE IF NOT EXISTS bodies (seq INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS tokens (seq INTEGER PRIMARY KEY, purpose TEXT NOT NULL, packed BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS tokens_purpose ON tokens (purpose);
CREATE TABLE IF NOT EXISTS tallies (
    purpose TEXT, suite TEXT, verdict TEXT, ended TEXT, outcome TEXT, scored INTEGER, num INTEGER NOT NULL,
    PRIMARY KEY (purpose, suite, verdict, ended, outcome, scored)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS partials (
    id TEXT PRIMARY KEY, sampled_tokens INTEGER NOT NULL, body BLOB NOT NULL, tokens BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS discards (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL, cause TEXT NOT NULL, sampled_tokens INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS feedback (
    prompt_hash TEXT NOT NULL, rollout_id TEXT PRIMARY KEY, usd REAL NOT NULL, input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS feedback_hash ON feedback (prompt_hash);
CREATE TABLE IF NOT EXISTS revocations (rollout_id TEXT PRIMARY KEY, before BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS spend (id INTEGER PRIMARY KEY, cause TEXT NOT NULL, usd REAL NOT NULL);
CREATE TABLE IF NOT EXISTS batches (step INTEGER PRIMARY KEY, rollout_ids BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS notes (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, subject TEXT NOT NULL, value INTEGER);
CREATE TABLE IF NOT EXISTS scores (rollout_id TEXT PRIMARY KEY, step INTEGER NOT NULL, texts BLOB, deltas BLOB);
"""
_TALLY = "purpose, suite, verdict, ended, outcome, scored"


def _kind(row: str) -> str:
    return f"{row}.purpose, {row}.suite, {row}.verdict, {row}.ended, {row}.outcome, {row}.gain IS NOT NULL"


_COUNT = f"INSERT INTO tallies VALUES ({_kind('new')}, 1) ON CONFLICT DO UPDATE SET num = num + 1;"
_UNCOUNT = f"UPDATE tallies SET num = num - 1 WHERE ({_TALLY}) = ({_kind('old')});"
_TRIGGERS = f"""
CREATE TRIGGER IF NOT EXISTS rollouts_added AFTER INSERT ON rollouts BEGIN {_COUNT} END;
CREATE TRIGGER IF NOT EXISTS rollouts_changed AFTER UPDATE OF purpose, suite, verdict, ended, outcome, gain ON rollouts
BEGIN {_UNCOUNT} {_COUNT} END;
CREATE TRIGGER IF NOT EXISTS rollouts_removed AFTER DELETE ON rollouts BEGIN
    {_UNCOUNT} DELETE FROM bodies WHERE seq = old.seq; DELETE FROM tokens WHERE seq = old.seq; END;
"""
"""`gain` stands where the learner scored the tokens."""


def connect(path: Path) -> sqlite3.Connection:
    """Open or make the ledger file, looked through and with its tables.

    Raises:
        LedgerError: it cannot be opened, is damaged, or has another layout.
    """
    try:
        connection = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
    except sqlite3.Error as error:
        raise explain(path, error, "open") from error
    try:
        _check_layout(connection, path)
        if path.stat().st_size <= _CHECKED_BYTES:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise damaged(path, found.replace("\n", ", "))
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(f"BEGIN; {_TABLES} {_TRIGGERS} PRAGMA user_version={LAYOUT}; COMMIT;")
    except sqlite3.Error as error:
        connection.close()
        raise explain(path, error, "open") from error
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def reading(
    path: Path, *, timeout_s: float = 5.0, is_cancelled: Callable[[], bool] | None = None
) -> Iterator[sqlite3.Connection]:
    """Open a ledger that another process may write, for reading alone.

    Args:
        path: of the file.
        timeout_s: how long to wait for a lock.
        is_cancelled: asked now and then while a query runs; True ends it with a LedgerError.

    Raises:
        LedgerError: the file is missing, damaged, or has another layout; whatever fails inside is named likewise.
    """
    try:
        with closing(_connect_to_read(path, timeout_s)) as connection:
            if is_cancelled is not None:
                connection.set_progress_handler(is_cancelled, 20_000)
            _check_layout(connection, path)
            yield connection
    except (sqlite3.Error, zlib.error, msgspec.DecodeError) as error:
        raise explain(path, error, "read") from error


def _connect_to_read(path: Path, timeout_s: float) -> sqlite3.Connection:
    """Connect; where the folder cannot be written and nobody has the file open, take it as one that never changes."""
    uri = f"file:{quote(str(path))}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, timeout=timeout_s)
    try:
        connection.execute("PRAGMA schema_version")
    except sqlite3.OperationalError:
        connection.close()
        wal = path.with_name(f"{path.name}-wal")
        if os.access(path.parent, os.W_OK) or not os.access(path, os.R_OK):
            raise
        if wal.exists() and wal.stat().st_size:
            raise LedgerError(
                f"{path}: its last writes are still in {wal.name}, which cannot be read where nothing can be written: "
                "copy both files to a folder of your own"
            ) from None
        return sqlite3.connect(f"{uri}&immutable=1", uri=True)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of a ledger; a process that dies lets go of it."""
    try:
        file = path.with_suffix(".lock").open("a")
    except OSError as error:
        raise LedgerError(f"{path}: cannot open the ledger: {error.strerror}; {_RIGHTS}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise LedgerError(
                f"{path}: another process runs this run; end it or wait, then --resume (fd-eval: the same command)"
            ) from error
        except OSError as error:
            raise LedgerError(
                f"{path}: cannot be locked on this file system: {error.strerror}; take another disk (run.dir)"
            ) from error
        yield


def explain(path: Path, error: BaseException, verb: str) -> LedgerError:
    """Say what failed and what to do, in one line."""
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF  # the rest of the code tells where, not what
    if isinstance(error, zlib.error | msgspec.DecodeError) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return damaged(path, str(error))
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        free = _free_mib(path.parent)
        what = "disk full" if code == sqlite3.SQLITE_FULL else f"{error} (disk full, over a quota, or failing)"
        return LedgerError(
            f"{path}: cannot {verb} the ledger: {what}; {free} MiB are free there. What was recorded before is "
            "intact: free space, then --resume (fd-eval: the same command)"
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return LedgerError(f"{path}: cannot {verb} the ledger: {error}; {_RIGHTS}")
    return LedgerError(f"{path}: cannot {verb} the ledger: {error}")


def _free_mib(folder: Path) -> str:
    try:
        return str(shutil.disk_usage(folder).free >> 20)
    except OSError:  # the disk went away
        return "no one knows how many"


def damaged(path: Path, found: str) -> LedgerError:
    return LedgerError(
        f"{path}: the ledger is damaged ({found}): put back a copy of {path.name} and {path.name}-wal, "
        "or start a new run (--run NAME)"
    )


def _check_layout(connection: sqlite3.Connection, path: Path) -> None:
    layout = connection.execute("PRAGMA user_version").fetchone()[0]
    is_new = layout == 0 and not connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    if layout != LAYOUT and not is_new:
        raise LedgerError(
            f"{path}: the ledger has layout {layout}, this version of fd_async reads layout {LAYOUT}: use the version "
            "that began the run, or start a new run (--run NAME)"
        )
