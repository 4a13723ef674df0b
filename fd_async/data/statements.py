"""Statements and their order. The order is a pure function of the seed and the ordinal, so a resume needs no cursor."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from fd_async.types import Statement


def read_statements(path: Path) -> list[Statement]:
    """Read one local source as it is: a JSONL or Parquet file, or a folder of `.lean` files.

    Raises:
        PreflightError: unreadable file, a row that is not a statement (with its line number), or a repeated name.
    """
    from fd_async.data.sources.files import read_rows
    from fd_async.data.sources.rows import collect, read_columns

    return collect(str(path), read_rows(path), read_columns(()), ())


def limit_by_hash(statements: Sequence[Statement], limit: int) -> list[Statement]:
    """Keep `limit` statements, chosen by the hash of their names, whatever the order of the file; 0 keeps all."""
    if not limit or limit >= len(statements):
        return list(statements)
    return sorted(statements, key=lambda statement: hashlib.sha256(statement.name.encode()).digest())[:limit]


class StatementOrder:
    """An endless order of statements: a fresh seeded permutation each epoch.

    Every statement appears once before any appears again; `order[ordinal]` needs no state.
    """

    def __init__(self, statements: Sequence[Statement], seed: int) -> None:
        self._statements = list(statements)
        self._seed = seed
        self._permutation = lru_cache(maxsize=4)(self._make_permutation)

    def __getitem__(self, ordinal: int) -> Statement:
        epoch, position = divmod(ordinal, len(self._statements))
        return self._statements[self._permutation(epoch)[position]]

    def _make_permutation(self, epoch: int) -> list[int]:
        indices = list(range(len(self._statements)))
        random.Random(f"{self._seed}/{epoch}").shuffle(indices)
        return indices
