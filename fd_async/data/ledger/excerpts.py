"""The ledger for an analysis: of many attempts only what was proved, what was said, and when. Read-only."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import msgspec
from msgspec import Struct

from fd_async.data.ledger.files import reading
from fd_async.types import Statement, VerdictKind, VersionSpan


class _Judgement(Struct):
    kind: VerdictKind


class Body(Struct):
    """The part of a recorded attempt that is read; the rest of it is skipped."""

    statement: Statement
    spans: list[VersionSpan]
    verdict: _Judgement
    final_file: str = ""

    @property
    def newest_version(self) -> int:
        return max((span.version for span in self.spans), default=0)


class _Said(Struct):
    text: str


class Excerpt(Struct, frozen=True):
    """A training attempt, the text of its feedback, and the step that trained it."""

    body: Body
    feedback: str
    trained_at: int | None


_body = msgspec.msgpack.Decoder(Body)
_said = msgspec.msgpack.Decoder(_Said)


def read_excerpts(path: Path, limit: int) -> tuple[list[Excerpt], int]:
    """Read the training attempts of a run that has feedback; return them with their number in the ledger.

    Beyond `limit` attempts it takes a part of the statements, chosen by the hash of their names, with all attempts at
    them: about `limit` attempts, the same ones every time. A run without feedback gives none.

    Raises:
        LedgerError: the file is missing, damaged or of another layout.
    """
    with reading(path) as db:
        if db.execute("SELECT 1 FROM feedback LIMIT 1").fetchone() is None:
            return [], 0
        num = db.execute("SELECT COUNT(*) FROM rollouts WHERE purpose='train'").fetchone()[0]
        chosen = ""
        if num > limit:
            bound = int(limit / num * 2**32)
            names = [(name,) for (name,) in db.execute("SELECT DISTINCT name FROM rollouts WHERE purpose='train'")]
            db.execute("PRAGMA temp_store=MEMORY")
            db.execute("CREATE TEMP TABLE chosen (name TEXT PRIMARY KEY)")
            db.executemany("INSERT INTO chosen VALUES (?)", [row for row in names if _place_of(*row) < bound])
            chosen = " JOIN chosen USING (name)"
        rows = db.execute(
            "SELECT b.body, f.body, CASE WHEN r.outcome='trained' THEN r.step END"
            f" FROM rollouts r{chosen} JOIN bodies b USING (seq) LEFT JOIN feedback f ON f.rollout_id=r.id"
            " WHERE r.purpose='train' ORDER BY r.seq"
        )
        return [_excerpt(*row) for row in rows], num


def _excerpt(body: bytes, said: bytes | None, step: int | None) -> Excerpt:
    text = _said.decode(said).text if said is not None else ""
    return Excerpt(_body.decode(zlib.decompress(body)), text, step)


def _place_of(name: str) -> int:
    """Return where a statement stands between 0 and 2^32: the same place in every run."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:4], "big")
