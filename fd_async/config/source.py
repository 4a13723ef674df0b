"""Reads one TOML file and remembers on which line each key stands."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any

from msgspec import Struct

_TABLE = re.compile(r"\s*\[\s*([A-Za-z0-9_-]+)\s*\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")
_AT_LINE = re.compile(r"\s*\(at line (\d+), column \d+\)")


BEYOND_TOML = (RecursionError, ValueError, OverflowError)
"""What `tomllib` raises where the text is TOML, or nearly, and its values are beyond Python."""


def beyond(error: Exception) -> str:
    """Say which value a BEYOND_TOML error is about, as far as that is known."""
    if isinstance(error, RecursionError):
        return "values or tables inside one another beyond all measure"
    return "a number or a date that no key can hold"


class Source(Struct, frozen=True):
    """A parsed file; `lines` maps (table, key) and (table, "") to line numbers from 1."""

    path: Path
    data: dict[str, Any]
    lines: dict[tuple[str, str], int]

    def where(self, table: str, key: str = "") -> str:
        """Name the place for people, e.g. `configs/tiny_fd.toml:12`."""
        line = self.lines.get((table, key)) or self.lines.get((table, ""))
        return f"{self.path}:{line}" if line else str(self.path)


def read_toml(path: Path, problems: list[str]) -> Source:
    """Parse the file; on failure return it empty and add a line to `problems`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        return Source(path, tomllib.loads(text), _find_lines(text))
    except FileNotFoundError:
        problems.append(f"{path}: no such file{_suggest_file(path)}")
    except UnicodeDecodeError:
        problems.append(f"{path}: not UTF-8 text")
    except OSError as error:
        problems.append(f"{path}: cannot be read: {error.strerror}")
    except tomllib.TOMLDecodeError as error:
        line = _AT_LINE.search(str(error))
        where = f"{path}:{line[1]}" if line else str(path)
        problems.append(f"{where}: not valid TOML: {_AT_LINE.sub('', str(error))}")
    except BEYOND_TOML as error:
        problems.append(f"{path}: not valid TOML: {beyond(error)}")
    return Source(path, {}, {})


def _find_lines(text: str) -> dict[tuple[str, str], int]:
    """Find where tables and keys stand; keys inside multi-line values may be listed too, and are never looked up."""
    lines: dict[tuple[str, str], int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _TABLE.match(line):
            table = header[1]
            lines.setdefault((table, ""), number)
        elif key := _KEY.match(line):
            lines.setdefault((table, key[1]) if table else (key[1], ""), number)
    return lines


def _suggest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    names = [file.name for file in path.parent.glob("*.toml")]
    found = difflib.get_close_matches(path.name, names, n=1) or difflib.get_close_matches(path.stem, names, n=1)
    return f"; did you mean {path.parent / found[0]}?" if found else ""
