"""How a source of statements is written in `data.source`, `data.train` and `data.eval`.

    [hub:OWNER/NAME@COMMIT/]FILE[#train | #test | #COLUMN=VALUE]...
    leanworkbook | minif2f

Owns the reading of that text alone: nothing here looks at a file or a network.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from fd_async.errors import ConfigError

if TYPE_CHECKING:
    from fd_async.config.schema import Data

COLUMNS = ("name", "formal_statement", "header", "proof")
"""What `data.columns` can map."""
NAMED = ("leanworkbook", "minif2f")
"""Names that stand for a pinned source each; `data.sources.pinned` says which."""
_HUB = re.compile(
    r"hub:(?P<repository>[A-Za-z0-9][\w.-]*/[\w.-]+)@(?P<revision>[0-9a-f]{40})(?:/(?P<file>[^\s#]+))?", re.ASCII
)


class Place(Struct, frozen=True):
    """A source, taken apart."""

    text: str
    """As it was written."""
    base: str
    """Without its `#` parts: a path, a name of NAMED, or a `hub:` address."""
    repository: str = ""
    """`OWNER/NAME`; empty where the source is not on the hub."""
    revision: str = ""
    file: str = ""
    """Inside the repository; empty asks for its only data file."""
    filters: tuple[tuple[str, str], ...] = ()
    """Columns and the values that their rows must have."""
    part: Literal["", "train", "test"] = ""

    @property
    def is_local(self) -> bool:
        return not self.repository and self.base not in NAMED


def parse_place(text: str) -> Place:
    """Take a source apart.

    Raises:
        ConfigError: it is none; one line that says which form was expected.
    """
    base, *marks = text.split("#")
    part: Literal["", "train", "test"] = ""
    filters = []
    for mark in marks:
        column, sign, value = mark.partition("=")
        if sign and column:
            filters.append((column, value))
        elif mark in ("train", "test") and not part:
            part = "train" if mark == "train" else "test"
        else:
            raise ConfigError(f"{_shown(text)}: #{_shown(mark)} is unknown; write #train, #test or #COLUMN=VALUE")
    if not base.strip():
        raise ConfigError(f"{_shown(text)}: names no source: write a file, a folder or hub:OWNER/NAME@COMMIT")
    place = Place(text, base, filters=tuple(filters), part=part)
    if not base.startswith("hub:"):
        return place
    found = _HUB.fullmatch(base)
    file = (found["file"] or "") if found else ""
    if found is None or ".." in PurePosixPath(file).parts:
        raise ConfigError(f"{_shown(text)}: expected hub:OWNER/NAME@COMMIT/PATH/FILE with all 40 digits of the commit")
    return Place(text, base, found["repository"], found["revision"], file, tuple(filters), part)


def evaluated(data: Data) -> list[str]:
    """List the sources of the suites: those of `data.eval`, and the held-out part of `data.source`."""
    listed = [data.eval] if isinstance(data.eval, str) else list(data.eval)
    return listed + ([f"{data.source}#test"] if data.source else [])


def suite_name(text: str) -> str:
    """Name the suite of a source: the stem of its file or folder, its repository on the hub; plus values of `#`."""
    base, *marks = text.split("#")
    found = _HUB.fullmatch(base)
    stem = PurePosixPath(found["repository"] if found else base).stem
    values = (mark.partition("=")[2] for mark in marks)
    return "-".join([stem, *(re.sub(r"[^\w.+-]+", "_", value) for value in values if value)])


def _shown(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:120]}..."
