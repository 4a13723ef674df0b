"""How large a ledger grows, and what it costs.

Beyond its limit, attempts that no resume can need any more lose token ids and log-probs, oldest first; verdict, texts,
feedback and counts stay. The file does not shrink: SQLite fills the freed pages before it appends new ones, so its size
stays where the limit found it.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

_ROWS_AT_ONCE = 64
_MOST_ROWS = 2048
"""Freed after one commit; a limit that was lowered is reached over several."""
_FREE = (
    "DELETE FROM tokens WHERE seq IN (SELECT t.seq FROM tokens t INDEXED BY tokens_purpose"
    " CROSS JOIN rollouts r ON r.seq=t.seq WHERE t.purpose=? AND (r.outcome LIKE 'dropped:%' OR r.step<=?)"
    " ORDER BY t.seq LIMIT ?)"
)


class Space:
    """Keeps a ledger inside its limit. Used by the thread that commits.

    Args:
        max_bytes: of the file; 0 sets no limit.
        oldest_checkpoint: step of the oldest checkpoint that a resume may name; attempts of later steps keep all.
    """

    def __init__(self, path: Path, max_bytes: int, oldest_checkpoint: Callable[[], int]) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._oldest_checkpoint = oldest_checkpoint
        self.num_freed = 0
        self._warned = False

    def keep_inside(self, db: sqlite3.Connection) -> None:
        """Take tokens from the oldest attempts while the file holds more than its limit."""
        if not self._max_bytes or _used_bytes(db) <= self._max_bytes:
            return
        limit = f"telemetry.ledger_max_gib = {self._max_bytes / 2**30:g}"
        if not self.num_freed:
            log.info("ledger_frees_tokens", limit=limit, kept="verdict, texts, feedback, counts")
        step, freed = self._oldest_checkpoint(), 0
        while freed < _MOST_ROWS and _used_bytes(db) > self._max_bytes:
            with db:
                rows = sum(db.execute(_FREE, (kind, step, _ROWS_AT_ONCE)).rowcount for kind in ("eval", "train"))
            freed += rows
            if not rows:
                break
        self.num_freed += freed
        if not freed and not self._warned:
            self._warned = True
            log.warning(
                "ledger_over_its_limit", limit=limit, reason=f"all attempts after step {step} may be needed by a resume"
            )

    def statistics(self) -> dict[str, float]:
        """Return `bytes` (with the write-ahead log) and `freed`: attempts that lost their tokens in this process."""
        paths = (self._path, self._path.with_name(self._path.name + "-wal"))
        return {"bytes": sum(path.stat().st_size for path in paths if path.exists()), "freed": self.num_freed}


class CommitTimes:
    """Seconds of the last 1,000 commits."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=1000)

    @contextmanager
    def measure(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds.append(time.perf_counter() - started)

    def statistics(self) -> dict[str, float]:
        """Return `commit_s_p50` and `commit_s_p99`; 0 before the first."""
        seconds = sorted(self._seconds) or [0.0]
        return {f"commit_s_p{share}": seconds[len(seconds) * share // 100] for share in (50, 99)}


def _used_bytes(db: sqlite3.Connection) -> int:
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size
