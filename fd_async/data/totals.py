"""Sums over a ledger that another connection writes: where the money went, and the tokens of attempts under way."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from fd_async.data.ledger.files import reading


class Totals(Struct, frozen=True):
    """Of a whole run, all its processes included."""

    usd: dict[str, float]
    """US dollars by what they bought: feedback of attempts `trained`, `queued` or `dropped:CAUSE`, and
    `wasted:CAUSE` for answers that gave no feedback."""
    tokens_under_way: int
    """Sampled tokens on record of attempts that have not ended."""


def read_totals(path: Path) -> Totals:
    """Read the sums; some ten milliseconds per 10,000 attempts, so call it in a thread.

    Raises:
        LedgerError: the file is missing, damaged or of another layout.
    """
    with reading(path) as db:
        usd = dict(
            db.execute(
                "SELECT COALESCE(r.outcome, 'wasted:no_attempt'), SUM(f.usd) FROM feedback f"
                " LEFT JOIN rollouts r ON r.id=f.rollout_id GROUP BY 1"
            ).fetchall()
        )
        usd |= {f"wasted:{cause}": sum_ for cause, sum_ in db.execute("SELECT cause, SUM(usd) FROM spend GROUP BY 1")}
        under_way = db.execute("SELECT COALESCE(SUM(sampled_tokens), 0) FROM partials").fetchone()[0]
    return Totals(usd=usd, tokens_under_way=int(under_way))
