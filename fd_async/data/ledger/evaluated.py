"""The ledger for an evaluation that goes on: which attempts are there, and how they ended."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from fd_async.data.ledger.files import reading


class EvaluatedAttempt(Struct, frozen=True, array_like=True):
    """One recorded attempt, without its text and tokens."""

    suite: str
    ordinal: int
    sample: int
    verdict: str
    ended: str
    """`Rollout.failure`, or `Rollout.end_reason` where there is none."""
    response_tokens: int


def read_evaluated(path: Path) -> list[EvaluatedAttempt]:
    """Return every attempt of an evaluation; a second per 500,000 or so: call it in a thread.

    Raises:
        LedgerError: the file is missing, damaged or of another layout.
    """
    query = "SELECT suite, ordinal, sample, verdict, ended, tokens FROM rollouts WHERE purpose='eval'"
    with reading(path) as db:
        return [EvaluatedAttempt(*row) for row in db.execute(query)]
