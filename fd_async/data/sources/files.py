"""Rows of local files: JSONL, Parquet, and folders of `.lean` files. Nothing but regular files is ever opened."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from fd_async.data.sources.lean_text import NotLean, split_file, theorem_name
from fd_async.data.sources.rows import BadRow, Row
from fd_async.errors import PreflightError

MAX_ROW_BYTES = 16 * 2**20
"""A longer line or file is no statement; it is not read to its end."""
_MAX_LEAN_FILES = 1_000_000
_decoder = msgspec.json.Decoder(dict[str, Any])


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file by its ending, or those of a folder of `.lean` files.

    Raises:
        PreflightError: it cannot be read, or is no such file.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise PreflightError(f"{path}: cannot read the statements: {_why(error)}") from error
    if stat.S_ISDIR(mode):
        return _lean_rows(path)
    if not stat.S_ISREG(mode):  # a pipe would be waited for without end
        raise PreflightError(f"{path}: cannot read the statements: not a regular file")
    if path.suffix == ".lean":
        return _rows_of_lean_file(path, path.name)
    if path.suffix in (".parquet", ".pq"):
        from fd_async.data.sources.parquet import parquet_rows

        return parquet_rows(path)
    return _jsonl_rows(path)


def _jsonl_rows(path: Path) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_ROW_BYTES + 1):
                number += 1
                if len(line) > MAX_ROW_BYTES:
                    mib = MAX_ROW_BYTES // 2**20
                    raise PreflightError(f"{path}:{number}: the line is longer than {mib} MiB: not a JSONL file")
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if line.strip():
                    yield f"{path}:{number}", _decoded(line)
    except OSError as error:
        raise PreflightError(f"{path}: cannot read the statements: {error.strerror}") from error


def _decoded(line: bytes) -> dict[str, Any] | BadRow:
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = " ".join(str(error).split())
        return BadRow(f"not a statement ({why}); rows need `name` and `formal_statement`")


def _lean_rows(folder: Path) -> Iterator[Row]:
    found = sorted(_lean_files(folder))
    if not found:
        raise PreflightError(f"{folder}: holds no .lean files; a folder is read as Lean sources, name the file itself")
    for path in found:
        yield from _rows_of_lean_file(path, str(path.relative_to(folder)))


def _lean_files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise PreflightError(f"{error.filename}: cannot read the statements: {error.strerror}") from error

    num = 0
    for place, folders, names in os.walk(folder, onerror=refuse):  # follows no links
        folders[:] = [name for name in folders if not name.startswith(".")]  # .lake holds all of Mathlib
        for name in names:
            if name.endswith(".lean") and not name.startswith("."):
                num += 1
                if num > _MAX_LEAN_FILES:
                    raise PreflightError(f"{folder}: holds more than {_MAX_LEAN_FILES:,} .lean files")
                yield Path(place) / name


def _rows_of_lean_file(path: Path, shown: str) -> Iterator[Row]:
    """Yield the statements of a file; one that only imports others states nothing and is passed over."""
    try:
        if not path.is_file():
            yield str(path), BadRow("not a regular file")
            return
        if path.stat().st_size > MAX_ROW_BYTES:
            yield str(path), BadRow(f"longer than {MAX_ROW_BYTES // 2**20} MiB")
            return
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8).decode()
        parts = split_file(text)
    except OSError as error:
        raise PreflightError(f"{path}: cannot read the statements: {error.strerror}") from error
    except (UnicodeDecodeError, NotLean) as error:
        yield str(path), BadRow(f"not Lean source: {error}")
        return
    if not parts.pieces:
        if any(line.strip() and not line.startswith(("import ", "--")) for line in text.splitlines()):
            yield str(path), BadRow("states no theorem or lemma")
        return
    line = parts.header.count("\n") + 1
    for piece in parts.pieces:
        yield (
            f"{path}:{line}",
            {
                "name": theorem_name(piece),
                "formal_statement": piece,
                "header": parts.header,
                "file": shown,
            },
        )
        line += piece.count("\n")


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
