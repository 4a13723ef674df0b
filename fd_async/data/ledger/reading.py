"""The ledger for people: attempts with their feedback and scores, also while a run writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from fd_async.data.ledger.files import reading
from fd_async.data.ledger.packing import unpack_rollout, unpack_scores
from fd_async.errors import LedgerError
from fd_async.types import Feedback, Rollout

_feedback = msgspec.msgpack.Decoder(Feedback)
_strings = msgspec.msgpack.Decoder(list[str])
_WHOLE = (
    "SELECT b.body, t.packed, f.body, r.outcome, r.step, s.texts, s.deltas FROM rollouts r JOIN bodies b USING (seq)"
    " LEFT JOIN tokens t USING (seq) LEFT JOIN feedback f ON f.rollout_id=r.id LEFT JOIN scores s ON s.rollout_id=r.id"
)


class AttemptRecord(Struct, frozen=True, kw_only=True):
    """One attempt as people browse it."""

    rollout: Rollout
    """Ids and log-probs are empty where `telemetry.ledger_max_gib` took them; `sampled_mask` tells their number."""
    feedback: Feedback | None
    outcome: str
    """`queued`, `trained`, `evaluated` or `dropped:CAUSE`."""
    step: int | None
    """Gradient step that trained it, or at which it was evaluated."""
    token_texts: list[str] | None = None
    token_deltas: list[float] | None = None
    """log p_teacher - log p_student per completion token, 0.0 where not sampled."""
    teacher_choices: dict[int, list[tuple[str, float]]] = {}
    """As `TokenScores.choices`."""


def is_empty(path: Path) -> bool:
    """Say whether a ledger holds no attempt, whole or under way, and no spend; False where it cannot be read."""
    if not path.stat().st_size:
        return True
    try:
        with reading(path) as db:
            tables = ("rollouts", "partials", "spend")
            return not any(db.execute(f"SELECT EXISTS(SELECT 1 FROM {table})").fetchone()[0] for table in tables)
    except LedgerError:
        return False


def read_attempts(path: Path, limit: int) -> list[AttemptRecord]:
    """Read attempts for people, scored ones first, then the newest; opens the file read-only.

    Raises:
        LedgerError: the file is missing, damaged or of another layout.
    """
    order = "ORDER BY gain IS NULL, step DESC, seq DESC"
    with reading(path) as db:
        chosen = db.execute(f"SELECT seq FROM rollouts {order} LIMIT ?", (limit,)).fetchall()
        return [_record(db.execute(f"{_WHOLE} WHERE r.seq=?", seq).fetchone()) for seq in chosen]


def read_attempt(
    path: Path, rollout_id: str, *, is_cancelled: Callable[[], bool] | None = None
) -> AttemptRecord | None:
    """Read one attempt; None where the ledger has no such id.

    Raises:
        LedgerError: the file is missing, damaged or of another layout.
    """
    with reading(path, timeout_s=1.0, is_cancelled=is_cancelled) as db:
        row = db.execute(f"{_WHOLE} WHERE r.id=?", (rollout_id,)).fetchone()
        return None if row is None else _record(row)


def _record(row: tuple[Any, ...]) -> AttemptRecord:
    body, tokens, text, outcome, step, texts, scored = row
    deltas, choices = unpack_scores(scored) if scored is not None else (None, {})
    return AttemptRecord(
        rollout=unpack_rollout(body, tokens),
        feedback=_feedback.decode(text) if text is not None else None,
        outcome=outcome,
        step=step,
        token_texts=_strings.decode(texts) if texts is not None else None,
        token_deltas=deltas,
        teacher_choices=choices,
    )
