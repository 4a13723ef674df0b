"""How much of a feedback stands in proofs, for runs that have feedback: the ledger's attempts, measured."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from fd_async.analysis.leak import Exchange, Share, measure
from fd_async.data.ledger.excerpts import Excerpt, read_excerpts
from fd_async.errors import LedgerError
from fd_async.viewer.figures.runs import Group, Run

MAX_ATTEMPTS = 2000
"""Attempts that are read of each run; a second at most."""


class LeakRow(Struct, frozen=True, kw_only=True):
    """One measure of one run."""

    label: str
    run: str
    measure: str
    share: Share


class LeakTable(Struct, frozen=True):
    """All rows, and what could not be measured and why."""

    rows: list[LeakRow]
    notes: list[str]


def read_leaks(groups: Sequence[Group]) -> LeakTable:
    """Measure every run that has feedback; a ledger that cannot be read is named and left out."""
    rows: list[LeakRow] = []
    notes: list[str] = []
    for group in groups:
        for run in group.runs:
            _add(group, run, rows, notes)
    return LeakTable(rows, notes)


def _add(group: Group, run: Run, rows: list[LeakRow], notes: list[str]) -> None:
    path = run.folder / "ledger.db"
    where = group.label if len(group.runs) == 1 else f"{group.label}, {run.name}"
    if not path.exists():
        notes.append(f"{where}: there is no ledger.db")
        return
    try:
        excerpts, num = read_excerpts(path, MAX_ATTEMPTS)
    except LedgerError as error:
        notes.append(f"{where}: {error}")
        return
    if not excerpts:
        notes.append(f"{where}: its ledger has no feedback")
        return
    if len(excerpts) < num:
        notes.append(f"{where}: {len(excerpts)} of {num} attempts, all at a part of the statements chosen by hash")
    found = measure([_exchange(excerpt) for excerpt in excerpts])
    for name, share in (
        ("given away: known proof that the feedback says", found.given_away),
        ("taken up: accepted proof that an earlier feedback said", found.taken_up),
        ("only there: of that, what the earlier attempt had not said", found.only_there),
        ("unseen: accepted proof that only a later feedback said", found.unseen),
    ):
        if share is None:
            notes.append(f"{where}: nothing to measure for “{name.partition(':')[0]}”")
        else:
            rows.append(LeakRow(label=group.label, run=run.name, measure=name, share=share))


def _exchange(excerpt: Excerpt) -> Exchange:
    body = excerpt.body
    return Exchange(
        name=body.statement.name,
        formal_statement=body.statement.formal_statement,
        known_proof=body.statement.proof or "",
        file=body.final_file,
        proved=body.verdict.kind == "proved",
        version=body.newest_version,
        trained_at=excerpt.trained_at,
        feedback=excerpt.feedback,
    )
