"""From one row of a data set to one Statement, and from many rows to all of them or to one clear line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import msgspec

from fd_async.config.places import COLUMNS
from fd_async.data.sources.lean_text import NotLean, has_header, proof_of, split_file, split_proof
from fd_async.errors import PreflightError
from fd_async.types import Statement


class BadRow(ValueError):
    """A row that is no statement; `args[0]` is one line."""


Row = tuple[str, Mapping[str, Any] | BadRow]
"""Where it stands (`FILE:LINE`), and its columns or what is wrong with it."""


def read_columns(mapping: Iterable[str]) -> dict[str, str]:
    """Turn `data.columns` into our column -> theirs, every one of ours present."""
    return {ours: ours for ours in COLUMNS} | dict(text.split("=", 1) for text in mapping)


def make_statement(row: Mapping[str, Any], columns: Mapping[str, str]) -> Statement:
    """Read a row; the text of the statement is kept byte for byte.

    A statement that brings its header or its proof along is cut there and nowhere else.

    Raises:
        BadRow: a column is missing, empty or no text.
    """
    name, text = (_text(row, columns[field], required=True) for field in ("name", "formal_statement"))
    header, proof = (_text(row, columns[field], required=False) for field in ("header", "proof"))
    if any(ord(char) < 32 or ord(char) == 127 for char in name):
        raise BadRow(f"name {shown(name)} has control characters")
    try:
        if has_header(text):
            parts = split_file(text)
            if len(parts.pieces) > 1:
                raise BadRow(f"`{columns['formal_statement']}` has {len(parts.pieces)} theorems, expected one")
            if parts.pieces:  # else it is `open ... in theorem`, say, for the verifier to judge
                header, text = header or parts.header, parts.pieces[0]
        text, own_proof = split_proof(text)
        is_same = row.get(columns["proof"]) == row[columns["formal_statement"]]  # one column with all of it
        known = proof_of(proof, name) if proof and not is_same else own_proof
    except NotLean as error:
        raise BadRow(f"`{columns['formal_statement']}`: {error}") from error
    return Statement(name=name, formal_statement=text, header=header, proof=known)


def _text(row: Mapping[str, Any], column: str, *, required: bool) -> str:
    value = row.get(column)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = value[0] if value else None  # several proofs: the first
    if value is None and not required:
        return ""
    if value is None:
        has = ", ".join(f"`{shown_column}`" for shown_column in list(row)[:12])
        raise BadRow(f"not a statement (no column `{column}`; it has {has or 'none'}); see data.columns")
    if not isinstance(value, str):
        raise BadRow(f"not a statement (`{column}` is no text but {type(value).__name__})")
    if required and not value.strip():
        raise BadRow(f"`{column}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"`{column}` has half a Unicode character") from error
    return value


def collect(
    source: str, rows: Iterable[Row], columns: Mapping[str, str], filters: Iterable[tuple[str, str]]
) -> list[Statement]:
    """Read all rows that pass the filters.

    Raises:
        PreflightError: the first bad row, and how many there are; or no row at all.
    """
    statements: list[Statement] = []
    seen: dict[str, str] = {}
    problems: list[str] = []
    num_rows, filters = 0, list(filters)
    for where, row in rows:
        num_rows += 1
        try:
            if isinstance(row, BadRow):
                raise row
            if not all(_passes(row, column, value) for column, value in filters):
                continue
            statement = make_statement(row, columns)
            if statement.name in seen:
                raise BadRow(f"name {shown(statement.name)} {_twice(seen[statement.name], where)}")
        except BadRow as error:
            problems.append(f"{where}: {error}")
            continue
        seen[statement.name] = where
        statements.append(statement)
    if problems:
        _refuse(problems, num_rows)
    if not statements:
        kept = "".join(f"#{column}={value}" for column, value in filters)
        raise PreflightError(
            f"{source}: none of its {num_rows} rows has {kept}" if num_rows else f"{source}: holds no statements"
        )
    return statements


def _passes(row: Mapping[str, Any], column: str, value: str) -> bool:
    if column not in row:
        raise BadRow(f"no column `{column}`, which #{column}={value} asks for")
    found = row[column]
    return (str(found).lower() if isinstance(found, bool) else str(found)) == value


def _refuse(problems: list[str], num_rows: int) -> NoReturn:
    more = f" ({len(problems)} of {num_rows} rows are bad, this is the first)" if len(problems) > 1 else ""
    raise PreflightError(problems[0] + more)


def _twice(earlier: str, where: str) -> str:
    file, _, number = earlier.rpartition(":")
    is_here = number.isdigit() and where.startswith(f"{file}:")
    return f"stands in line {number} too" if is_here else f"stands in {earlier} too"


def shown(text: str) -> str:
    """Quote a text for a line, cut where it is long."""
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


def as_row(statement: Statement) -> dict[str, Any]:
    """Return what a JSONL file keeps of a statement."""
    return {key: value for key, value in msgspec.to_builtins(statement).items() if value not in ("", None)}
