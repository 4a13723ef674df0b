"""Statements and their order. The order is a pure function of the seed and the ordinal, so a resume needs no cursor."""

from __future__ import annotations

import codecs
import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import msgspec

from fd_async.errors import PreflightError
from fd_async.types import Statement

_decoder = msgspec.json.Decoder(Statement)


def read_statements(path: Path) -> list[Statement]:
    """Read a JSONL file of statements.

    Raises:
        PreflightError: unreadable file, a row that is not a statement (with its line number), or a repeated name.
    """
    statements: list[Statement] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        statement = _statement(line, f"{path}:{number}")
        if statement.name in seen:
            first = seen[statement.name]
            raise PreflightError(f"{path}:{number}: name {_shown(statement.name)} stands in line {first} too")
        seen[statement.name] = number
        statements.append(statement)
    if not statements:
        raise PreflightError(f"{path}: holds no statements")
    return statements


def _lines(path: Path) -> list[bytes]:
    try:
        if path.exists() and not path.is_dir() and not path.is_file():  # a pipe would be waited for without end
            raise PreflightError(f"{path}: cannot read the statements: not a regular file")
        return path.read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise PreflightError(f"{path}: cannot read the statements: {error.strerror}") from error
    except MemoryError as error:
        raise PreflightError(f"{path}: does not fit into memory") from error


def _statement(line: bytes, where: str) -> Statement:
    try:
        statement = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = " ".join(str(error).split())
        raise PreflightError(f"{where}: not a statement ({why}); rows need `name` and `formal_statement`") from error
    for field in ("name", "formal_statement"):
        if not getattr(statement, field).strip():
            raise PreflightError(f"{where}: `{field}` is empty")
    if any(ord(char) < 32 or ord(char) == 127 for char in statement.name):
        raise PreflightError(f"{where}: name {_shown(statement.name)} has control characters")
    return statement


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:80]}...")


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
