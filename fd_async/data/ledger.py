"""The durable record of a run: attempts, verdicts, paid feedback, trained batches, drops.

One SQLite file in WAL mode, written in a thread and synced before a write returns, so whatever the run uses is on
disk first. Writes that wait for the same sync share it (group commit). Facts are only ever added, but for the verdict
of an accepted proof: its audit confirms or replaces it before anyone learns from it, and what was replaced is kept. The
outcome of a rollout moves from `queued` to `trained` or `dropped:CAUSE`, and back to `queued` when a resume returns to
an older checkpoint. Any other move is refused. A write that has begun is finished even where its caller is cancelled:
what it records may have cost money. One process writes at a time; others may read.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct

from fd_async.errors import LedgerError
from fd_async.types import Feedback, Rollout, Verdict

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rollouts (
    id TEXT PRIMARY KEY, purpose TEXT NOT NULL, suite TEXT NOT NULL, ordinal INTEGER NOT NULL, sample INTEGER NOT NULL,
    outcome TEXT NOT NULL, step INTEGER, sampled_tokens INTEGER NOT NULL, admitted_version INTEGER NOT NULL,
    body BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS rollouts_outcome ON rollouts (purpose, outcome);
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

_pack = msgspec.msgpack.encode
_rollout = msgspec.msgpack.Decoder(Rollout)
_feedback = msgspec.msgpack.Decoder(Feedback)
_verdict = msgspec.msgpack.Decoder(Verdict)
_strings = msgspec.msgpack.Decoder(list[str])
_floats = msgspec.msgpack.Decoder(list[float])


class _Judged(Struct):
    """The part of a recorded attempt that is read alone."""

    verdict: Verdict


_judged = msgspec.msgpack.Decoder(_Judged)
Write = Callable[[sqlite3.Connection], None]


class AttemptRecord(Struct, frozen=True, kw_only=True):
    """One attempt as people browse it."""

    rollout: Rollout
    feedback: Feedback | None
    outcome: str
    """`queued`, `trained`, `evaluated` or `dropped:CAUSE`."""
    step: int | None
    """Gradient step that trained it, or at which it was evaluated."""
    token_texts: list[str] | None = None
    token_deltas: list[float] | None = None
    """log p_teacher - log p_student per completion token, 0.0 where not sampled."""


class QueuedRollout(Struct, frozen=True, kw_only=True):
    """An attempt that a resume continues with."""

    rollout: Rollout
    feedback: Feedback | None
    admitted_version: int


class _Pending:
    __slots__ = ("done", "error", "write")

    def __init__(self, write: Write) -> None:
        self.write = write
        self.done = False
        self.error: BaseException | None = None


class Ledger:
    """Writer of one run's ledger; made by `open_ledger`. Every `async` method returns after the sync."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._lock = anyio.Lock()
        self._pending: list[_Pending] = []

    async def put_rollout(self, rollout: Rollout, outcome: str, *, admitted_version: int, step: int | None) -> None:
        """Record a finished attempt; a second record of the same id replaces nothing and raises."""
        body = _pack(rollout)

        def write(db: sqlite3.Connection) -> None:
            db.execute(
                "INSERT INTO rollouts VALUES (?,?,?,?,?,?,?,?,?,?)"
                if rollout.purpose == "train"
                else "INSERT OR REPLACE INTO rollouts VALUES (?,?,?,?,?,?,?,?,?,?)",
                (
                    rollout.id, rollout.purpose, rollout.suite, rollout.ordinal, rollout.sample, outcome, step,
                    rollout.num_sampled_tokens, admitted_version, body,
                ),
            )  # fmt: skip

        await self._write(write)

    async def put_audit(self, rollout: Rollout, *, before: Verdict) -> None:
        """Replace the verdict of a queued attempt by the audited one; a revoked one is kept aside.

        Args:
            rollout: with its audited verdict.
            before: the verdict that the ledger has.
        """
        body = _pack(rollout)

        def write(db: sqlite3.Connection) -> None:
            if (
                db.execute("UPDATE rollouts SET body=? WHERE id=? AND outcome='queued'", (body, rollout.id)).rowcount
                != 1
            ):
                raise ValueError(f"{rollout.id} was audited and is not queued: its reward may have been learned from")
            if rollout.verdict.kind == "revoked":
                db.execute("INSERT OR REPLACE INTO revocations VALUES (?,?)", (rollout.id, _pack(before)))

        await self._write(write)

    async def put_feedback(self, feedback: Feedback) -> None:
        """Record bought text before anyone uses it."""
        row = (
            feedback.prompt_hash, feedback.rollout_id, feedback.usd, feedback.input_tokens, feedback.output_tokens,
            _pack(feedback),
        )  # fmt: skip
        await self._write(lambda db: _execute(db, "INSERT OR REPLACE INTO feedback VALUES (?,?,?,?,?,?)", row))

    async def put_spend(self, cause: str, usd: float) -> None:
        """Record money spent on answers that gave no feedback."""
        await self._write(lambda db: _execute(db, "INSERT INTO spend (cause, usd) VALUES (?,?)", (cause, usd)))

    async def drop(self, rollout_id: str, cause: str) -> None:
        """Give a recorded attempt its terminal record `dropped:cause`."""

        def write(db: sqlite3.Connection) -> None:
            change = "UPDATE rollouts SET outcome=? WHERE id=? AND outcome='queued'"
            if db.execute(change, (f"dropped:{cause}", rollout_id)).rowcount != 1:
                raise ValueError(f"{rollout_id} is to be dropped ({cause}) and is not queued")

        await self._write(write)

    async def put_batch(
        self, step: int, rollout_ids: list[str], scores: dict[str, tuple[list[str], list[float]]]
    ) -> None:
        """Record which attempts a gradient step trained, with the token scores kept for the report."""

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO batches VALUES (?,?)", (step, _pack(rollout_ids)))
            change = "UPDATE rollouts SET outcome='trained', step=? WHERE id=? AND outcome='queued'"
            trained = db.executemany(change, [(step, i) for i in rollout_ids]).rowcount
            if trained != len(rollout_ids):
                raise ValueError(f"step {step} trained {len(rollout_ids)} attempts, of which {trained} were queued")
            db.executemany(
                "INSERT OR REPLACE INTO scores VALUES (?,?,?,?)",
                [(i, step, _pack(texts), _pack(deltas)) for i, (texts, deltas) in scores.items()],
            )

        await self._write(write)

    def note(self, kind: str, subject: str, value: int = 0) -> None:
        """Record what happened in which order; on the disk with the next write, so a kill may lose the last ones."""
        change = "INSERT INTO notes (kind, subject, value) VALUES (?,?,?)"
        self._pending.append(_Pending(lambda db: _execute(db, change, (kind, subject, value))))

    async def feedback_by_hash(self, prompt_hash: str) -> Feedback | None:
        """Return text already bought for exactly this question, if any."""

        def read() -> Feedback | None:
            row = self._connection.execute("SELECT body FROM feedback WHERE prompt_hash=?", (prompt_hash,)).fetchone()
            return _feedback.decode(row[0]) if row else None

        async with self._lock:
            return await anyio.to_thread.run_sync(read)

    def rewind(self, step: int) -> None:
        """Forget the batches after `step`: their attempts are queued again. Call before the run starts."""
        with self._connection as db:
            db.execute("UPDATE rollouts SET outcome='queued', step=NULL WHERE outcome='trained' AND step>?", (step,))
            db.execute("DELETE FROM batches WHERE step>?", (step,))
            db.execute("DELETE FROM scores WHERE step>?", (step,))
            db.execute("DELETE FROM rollouts WHERE purpose='eval' AND step>?", (step,))

    def queued(self) -> list[QueuedRollout]:
        """Return recorded training attempts without a terminal record, oldest ordinal first."""
        rows = self._connection.execute(
            "SELECT r.body, f.body, r.admitted_version FROM rollouts r LEFT JOIN feedback f ON f.rollout_id=r.id"
            " WHERE r.purpose='train' AND r.outcome='queued' ORDER BY r.ordinal, r.sample"
        )
        return [
            QueuedRollout(
                rollout=_rollout.decode(body),
                feedback=_feedback.decode(text) if text is not None else None,
                admitted_version=version,
            )
            for body, text, version in rows
        ]

    def revocations(self) -> dict[str, Verdict]:
        """Return rollout id -> the verdict that its audit revoked."""
        rows = self._connection.execute("SELECT rollout_id, before FROM revocations ORDER BY rollout_id")
        return {rollout_id: _verdict.decode(before) for rollout_id, before in rows}

    def seen(self) -> dict[int, dict[int, str]]:
        """Return ordinal -> sample -> outcome of every recorded training attempt."""
        seen: dict[int, dict[int, str]] = {}
        for ordinal, sample, outcome in self._connection.execute(
            "SELECT ordinal, sample, outcome FROM rollouts WHERE purpose='train'"
        ):
            seen.setdefault(ordinal, {})[sample] = outcome
        return seen

    def trained_verdicts(self) -> list[Verdict]:
        """Return the verdict of every attempt that a gradient step trained."""
        rows = self._connection.execute("SELECT body FROM rollouts WHERE purpose='train' AND outcome='trained'")
        return [_judged.decode(body).verdict for (body,) in rows]

    def tokens_by_outcome(self) -> dict[str, int]:
        """Return sampled training tokens per outcome; the accounting that must close."""
        rows = self._connection.execute(
            "SELECT outcome, SUM(sampled_tokens) FROM rollouts WHERE purpose='train' GROUP BY outcome"
        )
        return {outcome: int(total) for outcome, total in rows}

    def spent_usd(self) -> float:
        """Return all money recorded, US dollars."""
        bought = self._connection.execute("SELECT COALESCE(SUM(usd), 0) FROM feedback").fetchone()[0]
        wasted = self._connection.execute("SELECT COALESCE(SUM(usd), 0) FROM spend").fetchone()[0]
        return float(bought) + float(wasted)

    async def _write(self, write: Write) -> None:
        pending = _Pending(write)
        self._pending.append(pending)
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if not pending.done:
                    batch, self._pending = self._pending, []
                    await anyio.to_thread.run_sync(self._commit, batch)
        if pending.error is not None:
            raise LedgerError(f"{self._path}: cannot write the ledger: {pending.error}") from pending.error

    def _commit(self, batch: list[_Pending]) -> None:
        """Apply a batch in one transaction; if that fails, apply each alone so that one bad write harms no other."""
        try:
            with self._connection as db:
                for pending in batch:
                    pending.write(db)
        except Exception as error:  # whatever went wrong, every waiter must hear of it
            if len(batch) == 1:
                batch[0].error = error
            else:
                for pending in batch:
                    self._commit([pending])
        for pending in batch:
            pending.done = True


def _execute(db: sqlite3.Connection, sql: str, row: tuple[object, ...]) -> None:
    db.execute(sql, row)


@asynccontextmanager
async def open_ledger(path: Path) -> AsyncIterator[Ledger]:
    """Open or make the ledger of a run.

    Raises:
        LedgerError: the file cannot be opened, is not a ledger, or another process writes it.
    """
    with _only_writer(path):
        try:
            connection = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
        except sqlite3.Error as error:
            raise LedgerError(f"{path}: cannot open the ledger: {error}") from error
        with closing(connection):
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=FULL")
                connection.executescript(_SCHEMA)
            except sqlite3.Error as error:
                raise LedgerError(f"{path}: cannot open the ledger: {error}") from error
            yield Ledger(connection, path)


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of a ledger; a process that dies lets go of it."""
    try:
        file = path.with_suffix(".lock").open("a")
    except OSError as error:
        raise LedgerError(f"{path}: cannot open the ledger: {error}") from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise LedgerError(f"{path}: another process runs this run; end it or wait, then --resume") from error
        except OSError as error:
            raise LedgerError(f"{path}: cannot be locked on this file system: {error}") from error
        yield


def read_attempts(path: Path, limit: int) -> list[AttemptRecord]:
    """Read attempts for people, scored ones first, then the newest; opens the file read-only.

    Raises:
        LedgerError: the file is missing or unreadable.
    """
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            rows = db.execute(
                "SELECT r.body, f.body, r.outcome, r.step, s.texts, s.deltas FROM rollouts r"
                " LEFT JOIN feedback f ON f.rollout_id=r.id LEFT JOIN scores s ON s.rollout_id=r.id"
                " ORDER BY s.rollout_id IS NULL, r.step DESC, r.rowid DESC LIMIT ?",
                (limit,),
            ).fetchall()
    except sqlite3.Error as error:
        raise LedgerError(f"{path}: cannot read the ledger: {error}") from error
    return [
        AttemptRecord(
            rollout=_rollout.decode(body),
            feedback=_feedback.decode(text) if text is not None else None,
            outcome=outcome,
            step=step,
            token_texts=_strings.decode(texts) if texts is not None else None,
            token_deltas=_floats.decode(deltas) if deltas is not None else None,
        )
        for body, text, outcome, step, texts, deltas in rows
    ]
