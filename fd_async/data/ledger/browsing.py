"""The ledger as a list to browse: newest attempts first, filtered, with counts beside every choice.

Nothing here opens a body. A page is asked for by the last `seq` that is known, so the thousandth costs what the first
does. Counts come from `tallies` at once; only a filter by step or name has them counted, over the rows that it leaves.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from fd_async.data.ledger.files import reading

FACETS = ("source", "verdict", "ended", "outcome", "scored")
_LOCK_S = 1.0
_FEW_STEPS = 20
_SOURCE = "CASE purpose WHEN 'eval' THEN 'eval/' || suite ELSE purpose END"
_KIND = f"{_SOURCE}, verdict, ended, outcome"
Step = Annotated[int, Meta(ge=0, le=2**62)]
Cube = dict[tuple[str, ...], int]


class Filter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an attempt must be; an empty field asks for nothing."""

    source: str = ""
    """`train` or `eval/SUITE`."""
    verdict: str = ""
    ended: str = ""
    """How it ended, or its named failure."""
    outcome: str = ""
    """`queued`, `trained`, `evaluated` or `dropped:CAUSE`."""
    scored: Literal["", "yes", "no"] = ""
    """`yes` or `no`: whether the learner kept its token scores."""
    first_step: Step | None = None
    last_step: Step | None = None
    name: str = ""
    """Of the statement, exactly."""
    words: Annotated[str, Meta(max_length=500)] = ""
    """All of them, anywhere in the name of the statement; case of ASCII letters is ignored."""


class Line(Struct, frozen=True, kw_only=True):
    """One attempt of the list."""

    seq: int
    id: str
    source: str
    name: str
    step: int | None
    verdict: str
    ended: str
    outcome: str
    tokens: int
    """Of the completion, tool output included."""
    turns: int
    """Of the model."""
    gain: float | None
    """Mean of log p_teacher - log p_student over the sampled tokens, nats; None where it was not scored."""


class Counts(Struct, frozen=True, kw_only=True):
    """How many attempts there are."""

    total: int
    matching: int
    facets: dict[str, dict[str, int]]
    """Facet -> value -> attempts that would match with this value in place of the filter's."""


def read_lines(
    path: Path,
    wanted: Filter,
    *,
    before: int | None = None,
    limit: int = 100,
    is_cancelled: Callable[[], bool] | None = None,
) -> list[Line]:
    """Return the newest attempts with `seq` below `before`.

    Raises:
        LedgerError: the file is missing, damaged, locked or of another layout, or the query was cancelled.
    """
    kinds, kind_values = _kinds_of(wanted)
    wheres, values = _rows_of(wanted)
    wheres, values = wheres + kinds, values + kind_values
    if before is not None:
        wheres.append("seq < ?")
        values.append(before)
    query = (
        f"SELECT seq, id, {_SOURCE}, name, step, verdict, ended, outcome, tokens, turns, gain FROM rollouts"
        f"{' WHERE ' if wheres else ''}{' AND '.join(wheres)} ORDER BY seq DESC LIMIT ?"
    )
    with reading(path, timeout_s=_LOCK_S, is_cancelled=is_cancelled) as db:
        if not _has(db, wanted):
            return []
        rows = db.execute(query, (*values, limit)).fetchall()
    names = Line.__struct_fields__
    return [Line(**dict(zip(names, row, strict=True))) for row in rows]


def read_counts(path: Path, wanted: Filter, *, is_cancelled: Callable[[], bool] | None = None) -> Counts:
    """Count all attempts, those that match, and those that each other choice would give.

    Raises:
        LedgerError: as `read_lines`.
    """
    wheres, values = _rows_of(wanted)
    with reading(path, timeout_s=_LOCK_S, is_cancelled=is_cancelled) as db:
        whole = cube = _cube(db.execute(f"SELECT {_KIND}, scored, num FROM tallies WHERE num > 0"))
        if wheres:
            query = (
                f"SELECT {_KIND}, gain IS NOT NULL, COUNT(*) FROM rollouts WHERE {' AND '.join(wheres)}"
                " GROUP BY purpose, suite, verdict, ended, outcome, gain IS NOT NULL"
            )
            cube = _cube(db.execute(query, values))
    return _counts(whole, cube, [getattr(wanted, facet) for facet in FACETS])


def _cube(rows: Iterable[tuple[Any, ...]]) -> Cube:
    return {(*kind, "yes" if scored else "no"): num for *kind, scored, num in rows}


def _counts(whole: Cube, cube: Cube, chosen: list[str]) -> Counts:
    """Add up `cube` for every value that occurs in `whole`, or is chosen."""
    known = [*whole, *([tuple(chosen)] if any(chosen) else [])]
    facets = {name: dict.fromkeys(sorted({kind[i] for kind in known} - {""}), 0) for i, name in enumerate(FACETS)}
    matching = 0
    for kind, num in cube.items():
        differs = [i for i, value in enumerate(chosen) if value and kind[i] != value]
        matching += num if not differs else 0
        for i, facet in enumerate(FACETS):
            if not differs or differs == [i]:
                facets[facet][kind[i]] = facets[facet].get(kind[i], 0) + num
    return Counts(total=sum(whole.values()), matching=matching, facets=facets)


def read_mark(path: Path) -> tuple[int, int]:
    """Return the number of attempts, and a number that changes whenever what can be filtered by kind does.

    Raises:
        LedgerError: as `read_lines`.
    """
    with reading(path, timeout_s=_LOCK_S) as db:
        rows = db.execute("SELECT * FROM tallies").fetchall()
        last = db.execute("SELECT MAX(seq) FROM rollouts").fetchone()[0]
    return sum(row[-1] for row in rows), zlib.crc32(repr((last, rows)).encode())


def _has(db: sqlite3.Connection, wanted: Filter) -> bool:
    """Say whether any attempt is of these kinds: a look through all rows would find out slowly that none is."""
    kinds, values = _kinds_of(msgspec.structs.replace(wanted, scored=""))
    where = " AND ".join(["num > 0", *kinds])
    return bool(db.execute(f"SELECT EXISTS(SELECT 1 FROM tallies WHERE {where})", values).fetchone()[0])


def _kinds_of(wanted: Filter) -> tuple[list[str], list[str | int]]:
    """Return conditions on what `tallies` counts, and their values."""
    wheres: list[str] = []
    values: list[str | int] = []
    for column in ("verdict", "ended", "outcome"):
        if value := getattr(wanted, column):
            wheres.append(f"{column} = ?")
            values.append(value)
    if wanted.source:
        purpose, _, suite = wanted.source.partition("/")
        wheres += ["purpose = ?", "suite = ?"]
        values += [purpose, suite]
    if wanted.scored:
        wheres.append(f"gain IS {'NOT ' if wanted.scored == 'yes' else ''}NULL")
    return wheres, values


def _rows_of(wanted: Filter) -> tuple[list[str], list[str | int]]:
    """Return conditions that only rows can answer, and their values."""
    wheres: list[str] = []
    values: list[str | int] = []
    first, last = wanted.first_step, wanted.last_step
    narrow = first is not None and last is not None and last - first < _FEW_STEPS
    step = "step" if narrow else "+step"  # the plus keeps SQLite from sorting all of a long range by `seq`
    for condition, value in ((f"{step} >= ?", first), (f"{step} <= ?", last)):
        if value is not None:
            wheres.append(condition)
            values.append(value)
    if wanted.name:
        wheres.append("name = ?")
        values.append(wanted.name)
    for word in wanted.words.split():
        wheres.append(r"name LIKE ? ESCAPE '\'")
        for special in r"\%_":
            word = word.replace(special, f"\\{special}")
        values.append(f"%{word}%")
    return wheres, values
