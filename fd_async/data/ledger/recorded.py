"""The ledger for a replay: what was trained in which order, and what happened in which order. Read-only."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from fd_async.data.ledger.files import reading
from fd_async.data.ledger.packing import unpack_rollout
from fd_async.data.ledger.writer import QueuedRollout
from fd_async.errors import LedgerError
from fd_async.types import Feedback

_ids = msgspec.msgpack.Decoder(list[str])
_feedback = msgspec.msgpack.Decoder(Feedback)


class Event(Struct, frozen=True, array_like=True):
    """One note of `Ledger.note`."""

    kind: str
    subject: str
    value: int


def read_events(path: Path) -> list[Event]:
    """Return all notes in the order in which they were made."""
    with reading(path) as db:
        return [Event(*row) for row in db.execute("SELECT kind, subject, value FROM notes ORDER BY seq")]


def read_batches(path: Path) -> list[list[str]]:
    """Return the rollout ids of steps 1, 2, ... in the order in which they were trained.

    Raises:
        LedgerError: the file cannot be read, or a step is missing.
    """
    with reading(path) as db:
        rows = db.execute("SELECT step, rollout_ids FROM batches ORDER BY step").fetchall()
    for expected, (step, _) in enumerate(rows, start=1):
        if step != expected:
            raise LedgerError(
                f"{path}: the batch of step {expected} is missing, the next one is that of step {step}: the ledger is "
                "not whole, so the run cannot be replayed"
            )
    return [_ids.decode(ids) for _, ids in rows]


def read_trained(path: Path, ids: list[str]) -> list[QueuedRollout]:
    """Return attempts with their feedback, in the order of `ids`.

    Raises:
        LedgerError: one is not there, or has lost its token ids.
    """
    query = (
        "SELECT b.body, t.packed, f.body, r.admitted_version FROM rollouts r JOIN bodies b USING (seq)"
        " LEFT JOIN tokens t USING (seq) LEFT JOIN feedback f ON f.rollout_id=r.id WHERE r.id=?"
    )
    records = []
    with reading(path) as db:
        for rollout_id in ids:
            row = db.execute(query, (rollout_id,)).fetchone()
            if row is None:
                raise LedgerError(
                    f"{path}: {rollout_id} was trained and is not recorded: the ledger is not "
                    "whole, so the run cannot be replayed"
                )
            body, tokens, text, version = row
            if tokens is None:
                raise LedgerError(
                    f"{path}: {rollout_id} has lost its token ids, so the run cannot be replayed: record it again with "
                    "a larger telemetry.ledger_max_gib, or 0"
                )
            feedback = _feedback.decode(text) if text is not None else None
            records.append(
                QueuedRollout(rollout=unpack_rollout(body, tokens), feedback=feedback, admitted_version=version)
            )
    return records
