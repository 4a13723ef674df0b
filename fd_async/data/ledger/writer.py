"""What a run records, and what a resume reads."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog
from msgspec import Struct

from fd_async.data.ledger.files import connect, explain, only_writer
from fd_async.data.ledger.packing import pack, pack_body, pack_scores, unpack_partial, unpack_rollout, unpack_verdict
from fd_async.data.ledger.space import CommitTimes, Space
from fd_async.errors import LedgerError
from fd_async.types import Feedback, PartialRollout, Rollout, TokenScores, Verdict

log = structlog.get_logger(__name__)

_pack = msgspec.msgpack.encode
_feedback = msgspec.msgpack.Decoder(Feedback)
_verdict = msgspec.msgpack.Decoder(Verdict)
_FALLBACK = "fallback:"
"""Before the cause of money that went to the provider of `[fallback]`."""
_PARTIALS_AT_ONCE = 64
"""Per transaction, so that other writes need not wait until thousands are packed."""
Write = Callable[[sqlite3.Connection], None]


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

    def __init__(self, connection: sqlite3.Connection, path: Path, space: Space) -> None:
        self._connection = connection
        self._path = path
        self._space = space
        self._times = CommitTimes()
        self._lock = anyio.Lock()
        self._pending: list[_Pending] = []
        with self._named("read"):
            self._num_rollouts = _num_rollouts(connection)

    async def put_rollout(self, rollout: Rollout, outcome: str, *, admitted_version: int, step: int | None) -> None:
        """Record a finished attempt; a second record of the same id replaces nothing and raises."""

        def write(db: sqlite3.Connection) -> None:
            body, tokens = pack(rollout)
            if rollout.purpose == "eval":
                db.execute("DELETE FROM rollouts WHERE id=?", (rollout.id,))
            row = (
                rollout.id, rollout.purpose, rollout.suite, rollout.ordinal, rollout.sample, outcome, step,
                rollout.num_sampled_tokens, admitted_version, rollout.statement.name, rollout.verdict.kind,
                rollout.failure or rollout.end_reason, len(rollout.sampled_mask),
                sum(turn.role == "assistant" for turn in rollout.turns),
            )  # fmt: skip
            places = ",".join("?" * len(row))
            seq = db.execute(f"INSERT INTO rollouts VALUES (NULL,{places},NULL)", row).lastrowid
            db.execute("INSERT INTO bodies VALUES (?,?)", (seq, body))
            db.execute("INSERT INTO tokens VALUES (?,?,?)", (seq, rollout.purpose, tokens))
            db.execute("DELETE FROM partials WHERE id=?", (rollout.id,))

        await self._write(write)

    async def put_partials(self, partials: Sequence[PartialRollout]) -> None:
        """Record how far attempts under way have come, in place of what was recorded of them before."""

        def write(db: sqlite3.Connection, some: Sequence[PartialRollout]) -> None:
            db.executemany(
                "INSERT OR REPLACE INTO partials SELECT ?,?,?,? WHERE NOT EXISTS (SELECT 1 FROM rollouts WHERE id=?)",
                ((p.id, p.num_sampled_tokens, *pack(p), p.id) for p in some),
            )

        for start in range(0, len(partials), _PARTIALS_AT_ONCE):
            await self._write(partial(write, some=partials[start : start + _PARTIALS_AT_ONCE]))

    async def discard_partial(self, rollout_id: str, cause: str) -> None:
        """Forget an attempt under way that cannot go on; its tokens count as dropped by `cause`."""

        def write(db: sqlite3.Connection) -> None:
            move = "INSERT INTO discards (id, cause, sampled_tokens) SELECT id,?,sampled_tokens FROM partials"
            db.execute(f"{move} WHERE id=?", (cause, rollout_id))
            db.execute("DELETE FROM partials WHERE id=?", (rollout_id,))

        await self._write(write)

    async def put_audit(self, rollout: Rollout, *, before: Verdict) -> None:
        """Replace the verdict of a queued attempt by the audited one; a revoked one is kept aside.

        Args:
            rollout: with its audited verdict.
            before: the verdict that the ledger has.
        """

        def write(db: sqlite3.Connection) -> None:
            change = "UPDATE rollouts SET verdict=? WHERE id=? AND outcome='queued'"
            if db.execute(change, (rollout.verdict.kind, rollout.id)).rowcount != 1:
                raise ValueError(f"{rollout.id} was audited and is not queued: its reward may have been learned from")
            body = "UPDATE bodies SET body=? WHERE seq=(SELECT seq FROM rollouts WHERE id=?)"
            db.execute(body, (pack_body(rollout), rollout.id))
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

    async def put_spend(self, cause: str, usd: float, *, fallback_usd: float = 0.0) -> None:
        """Record money spent on answers that gave no feedback; `fallback_usd` of it was paid to `[fallback]`."""
        parts = [(cause, usd - fallback_usd), (f"{_FALLBACK}{cause}", fallback_usd)]
        rows = [part for part in parts if part[1] > 1e-12]  # what a difference of floats leaves is no money

        def write(db: sqlite3.Connection) -> None:
            db.executemany("INSERT INTO spend (cause, usd) VALUES (?,?)", rows)

        await self._write(write)

    async def drop(self, rollout_id: str, cause: str) -> None:
        """Give a recorded attempt its terminal record `dropped:cause`."""

        def write(db: sqlite3.Connection) -> None:
            change = "UPDATE rollouts SET outcome=? WHERE id=? AND outcome='queued'"
            if db.execute(change, (f"dropped:{cause}", rollout_id)).rowcount != 1:
                raise ValueError(f"{rollout_id} is to be dropped ({cause}) and is not queued")

        await self._write(write)

    async def put_batch(self, step: int, rollout_ids: list[str], scores: dict[str, TokenScores]) -> None:
        """Record which attempts a gradient step trained, with the token scores kept for the report."""

        def write(db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO batches VALUES (?,?)", (step, _pack(rollout_ids)))
            change = (
                "UPDATE rollouts SET outcome='trained', step=?, gain=?/sampled_tokens WHERE id=? AND outcome='queued'"
            )
            gains = {i: sum(score.deltas) for i, score in scores.items()}
            trained = db.executemany(change, [(step, gains.get(i), i) for i in rollout_ids]).rowcount
            if trained != len(rollout_ids):
                raise ValueError(f"step {step} trained {len(rollout_ids)} attempts, of which {trained} were queued")
            db.executemany(
                "INSERT OR REPLACE INTO scores VALUES (?,?,?,?)",
                [(i, step, _pack(score.texts), pack_scores(score)) for i, score in scores.items()],
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
            with self._named("read"):
                return await anyio.to_thread.run_sync(read)

    def rewind(self, step: int) -> None:
        """Forget the batches after `step`: their attempts are queued again. Call before the run starts.

        Raises:
            LedgerError: the ledger lacks a batch up to `step`, or attempts after it lost their tokens.
        """
        with self._named("write"), self._connection as db:
            last = db.execute("SELECT COALESCE(MAX(step), 0) FROM batches").fetchone()[0]
            if last < step:
                raise LedgerError(
                    f"{self._path}: the checkpoint is of step {step}, the ledger ends with step {last}: put back the "
                    f"ledger of this run, or go back with --resume {last} if there is such a checkpoint"
                )
            bare = (
                "SELECT MAX(step) FROM rollouts r WHERE outcome='trained' AND step>?"
                " AND NOT EXISTS (SELECT 1 FROM tokens WHERE seq=r.seq)"
            )
            newest = db.execute(bare, (step,)).fetchone()[0]
            if newest is not None:
                raise LedgerError(
                    f"{self._path}: cannot go back to step {step}: attempts up to step {newest} gave up their token "
                    f"ids (telemetry.ledger_max_gib); --resume a step from {newest} on"
                )
            db.execute(
                "UPDATE rollouts SET outcome='queued', step=NULL, gain=NULL WHERE outcome='trained' AND step>?", (step,)
            )
            db.execute("DELETE FROM batches WHERE step>?", (step,))
            db.execute("DELETE FROM scores WHERE step>?", (step,))
            db.execute("DELETE FROM rollouts WHERE purpose='eval' AND step>?", (step,))

    def queued(self) -> list[QueuedRollout]:
        """Return recorded training attempts without a terminal record, oldest ordinal first."""
        with self._named("read"):
            rows = self._connection.execute(
                "SELECT b.body, t.packed, f.body, r.admitted_version FROM rollouts r JOIN bodies b USING (seq)"
                " LEFT JOIN tokens t USING (seq) LEFT JOIN feedback f ON f.rollout_id=r.id"
                " WHERE r.purpose='train' AND r.outcome='queued' ORDER BY r.ordinal, r.sample"
            )
            return [
                QueuedRollout(
                    rollout=unpack_rollout(body, tokens),
                    feedback=_feedback.decode(text) if text is not None else None,
                    admitted_version=version,
                )
                for body, tokens, text, version in rows
            ]

    def partials(self) -> list[PartialRollout]:
        """Return the attempts that were under way, oldest ordinal first."""
        with self._named("read"):
            rows = self._connection.execute("SELECT body, tokens FROM partials ORDER BY id")
            return [unpack_partial(body, tokens) for body, tokens in rows]

    def revocations(self) -> dict[str, Verdict]:
        """Return rollout id -> the verdict that its audit revoked."""
        with self._named("read"):
            rows = self._connection.execute("SELECT rollout_id, before FROM revocations ORDER BY rollout_id")
            return {rollout_id: _verdict.decode(before) for rollout_id, before in rows}

    def seen(self) -> dict[int, dict[int, str]]:
        """Return ordinal -> sample -> outcome of every recorded training attempt."""
        seen: dict[int, dict[int, str]] = {}
        with self._named("read"):
            rows = self._connection.execute("SELECT ordinal, sample, outcome FROM rollouts WHERE purpose='train'")
            for ordinal, sample, outcome in rows:
                seen.setdefault(ordinal, {})[sample] = outcome
        return seen

    def trained_verdicts(self) -> Iterator[Verdict]:
        """Yield the verdict of every attempt that a gradient step trained; all at once may fill the memory."""
        with self._named("read"):
            rows = self._connection.execute(
                "SELECT body FROM rollouts JOIN bodies USING (seq) WHERE purpose='train' AND outcome='trained'"
            )
            for (body,) in rows:
                yield unpack_verdict(body)

    def tokens_by_outcome(self) -> dict[str, int]:
        """Return sampled training tokens per outcome; the accounting that must close.

        Tokens of attempts under way are in none; they enter when the attempt is recorded or discarded.
        """
        with self._named("read"):
            rows = self._connection.execute(
                "SELECT outcome, SUM(tokens) FROM"
                " (SELECT outcome, sampled_tokens AS tokens FROM rollouts WHERE purpose='train'"
                " UNION ALL SELECT 'dropped:' || cause, sampled_tokens FROM discards) GROUP BY outcome"
            )
            return {outcome: int(total) for outcome, total in rows}

    def spent_usd(self) -> float:
        """Return all money recorded, US dollars."""
        with self._named("read"):
            bought = self._connection.execute("SELECT COALESCE(SUM(usd), 0) FROM feedback").fetchone()[0]
            wasted = self._connection.execute("SELECT COALESCE(SUM(usd), 0) FROM spend").fetchone()[0]
        return float(bought) + float(wasted)

    def fallback_spent_usd(self) -> float:
        """Return the part of `spent_usd` that the provider of `[fallback]` was paid; reads all feedback."""
        query = "SELECT COALESCE(SUM(usd), 0) FROM spend WHERE substr(cause, 1, ?)=?"
        with self._named("read"):
            bodies = self._connection.execute("SELECT body FROM feedback WHERE usd > 0")
            bought = sum(_feedback.decode(body).fallback_usd for (body,) in bodies)
            return bought + float(self._connection.execute(query, (len(_FALLBACK), _FALLBACK)).fetchone()[0])

    def statistics(self) -> dict[str, float]:
        """Return `bytes`, `rows`, `freed`, `commit_s_p50`, `commit_s_p99` and `pending` (writes that wait)."""
        counts = {"rows": self._num_rollouts, "pending": len(self._pending)}
        return {**self._space.statistics(), **self._times.statistics(), **counts}

    async def _write(self, write: Write) -> None:
        pending = _Pending(write)
        self._pending.append(pending)
        with anyio.CancelScope(shield=True):
            async with self._lock:
                if not pending.done:
                    batch, self._pending = self._pending, []
                    await anyio.to_thread.run_sync(self._commit_batch, batch)
        if pending.error is not None:
            raise explain(self._path, pending.error, "write") from pending.error

    def _commit_batch(self, batch: list[_Pending]) -> None:
        with self._times.measure():
            self._commit(batch)
        try:
            self._num_rollouts = _num_rollouts(self._connection)
            self._space.keep_inside(self._connection)
        except (sqlite3.Error, OSError) as error:  # what was asked for is on the disk
            log.warning("ledger_space", reason=str(error))

    def _commit(self, batch: list[_Pending]) -> None:
        """Apply a batch in one transaction; if one of its writes is refused, apply each alone: it harms no other."""
        try:
            with self._connection as db:
                for pending in batch:
                    pending.write(db)
        except Exception as error:  # whatever went wrong, every waiter must hear of it
            if len(batch) == 1 or isinstance(error, sqlite3.OperationalError):  # the file is failing, not a write
                for pending in batch:
                    pending.error = error
            else:
                for pending in batch:
                    self._commit([pending])
        for pending in batch:
            pending.done = True

    def close(self) -> None:
        """Write the notes that no later write took along."""
        pending, self._pending = self._pending, []
        if pending:
            self._commit_batch(pending)
        if failed := [note.error for note in pending if note.error is not None]:
            log.warning("ledger_notes_lost", num=len(failed), reason=str(explain(self._path, failed[0], "write")))

    @contextmanager
    def _named(self, verb: str) -> Iterator[None]:
        """Say which file fails and what to do."""
        try:
            yield
        except (sqlite3.Error, zlib.error, msgspec.DecodeError) as error:
            raise explain(self._path, error, verb) from error


def _num_rollouts(db: sqlite3.Connection) -> int:
    return db.execute("SELECT COALESCE(SUM(num), 0) FROM tallies").fetchone()[0]


def _execute(db: sqlite3.Connection, sql: str, row: tuple[object, ...]) -> None:
    db.execute(sql, row)


@asynccontextmanager
async def open_ledger(
    path: Path, *, max_gib: float = 0.0, oldest_checkpoint: Callable[[], int] = lambda: 0
) -> AsyncIterator[Ledger]:
    """Open or make the ledger of a run.

    Args:
        path: of the file.
        max_gib: `telemetry.ledger_max_gib`; 0 sets no limit.
        oldest_checkpoint: step of the oldest checkpoint that a resume may name; called in a thread.

    Raises:
        LedgerError: the file cannot be opened, is damaged or of another layout, or another process writes it.
    """
    with only_writer(path), closing(await anyio.to_thread.run_sync(connect, path)) as connection:
        ledger = Ledger(connection, path, Space(path, int(max_gib * 2**30), oldest_checkpoint))
        try:
            yield ledger
        finally:
            ledger.close()
