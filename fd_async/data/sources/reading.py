"""From the `[data]` table to statements: the training ones, the suites, and what to say about them.

Each source is read once, however often it is named. What is said here is printed when a run starts, so that its
output names the exact statements: their number and their hash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from fd_async.config.places import NAMED, Place, evaluated, parse_place, suite_name
from fd_async.config.schema import Data, RunConfig
from fd_async.data.sources.canonical import shared, split, statements_hash
from fd_async.data.sources.files import read_rows
from fd_async.data.sources.headers import normalise
from fd_async.data.sources.pinned import PINNED, Pinned
from fd_async.data.sources.rows import collect, read_columns
from fd_async.data.statements import limit_by_hash
from fd_async.errors import PreflightError
from fd_async.types import Statement

Part = Literal["", "train", "test"]


class Selection(Struct, frozen=True, kw_only=True):
    """What a run trains on and is tested on."""

    train: list[Statement]
    suites: dict[str, list[Statement]]
    lines: list[str]
    """What to print, a line each: sizes and hashes, and statements that stand on both sides."""


class Sources:
    """Reads sources as a `[data]` table says; each one once."""

    def __init__(self, table: Data) -> None:
        self._table = table
        self._whole: dict[tuple[str, tuple[tuple[str, str], ...]], list[Statement]] = {}

    def read(self, text: str, role: Part = "") -> list[Statement]:
        """Read what a key or an argument names.

        Args:
            text: a source.
            role: the part that is meant where the text says none and the source is split by name.

        Raises:
            PreflightError: it cannot be read, has a bad row, or is another than the one that was pinned.
            ConfigError: the text names no source.
        """
        place = parse_place(text)
        pinned = PINNED.get(place.base)
        part = place.part or (role if pinned is not None and pinned.is_split else "")
        statements = self.whole(place)
        if part:
            train, test = split(statements, self._table.num_train, self._table.num_test, place.base)
            statements = train if part == "train" else test
        return [self._with_header(statement) for statement in statements]

    def whole(self, place: Place) -> list[Statement]:
        """Read all statements of a source, with the headers that it has."""
        key = place.base, place.filters
        if key not in self._whole:
            self._whole[key] = self._load(place)
        return self._whole[key]

    def _load(self, place: Place) -> list[Statement]:
        pinned = PINNED.get(place.base)
        if place.base in NAMED and Path(place.base).exists():
            raise PreflightError(f"{place.base}: is the name of a pinned source and a file here: write ./{place.base}")
        target = parse_place(pinned.address) if pinned else place
        columns = read_columns(f"{ours}={theirs}" for ours, theirs in pinned.columns.items()) if pinned else None
        path = self._path(target)
        if pinned:
            _demand_file(place.base, pinned, path)
        found = collect(place.base, read_rows(path), columns or read_columns(self._table.columns), place.filters)
        if pinned and not place.filters:
            _demand_statements(place.base, pinned, found)
        return found

    def _path(self, place: Place) -> Path:
        if not place.repository:
            return Path(place.base).expanduser()
        from fd_async.data.sources.hub import fetch  # a second of imports that local files do without

        return fetch(place, offline=self._table.offline, timeout_s=self._table.hub_timeout_s)

    def _with_header(self, statement: Statement) -> Statement:
        """Apply `data.headers`."""
        how = self._table.headers
        if how == "keep" or not statement.header:
            return statement
        header = normalise(statement.header) if how == "normalise" else ""
        return msgspec.structs.replace(statement, header=header)


def read_selection(config: RunConfig) -> Selection:
    """Read everything that a run needs; takes a second per 10,000 statements and may wait for the hub.

    Raises:
        FdError: see `Sources.read`; or two suites have one name.
    """
    sources = Sources(config.data)
    named, train = _train_source(config.data), _read_train(config.data, sources)
    suites = _read_suites(config.data, sources)
    lines = [describe("train", named, train)]
    for name, text in zip(suites, evaluated(config.data), strict=True):
        lines += [describe(f"suite {name}", text, suites[name]), *overlaps(train, {name: suites[name]})]
    return Selection(train=train, suites=suites, lines=lines)


def read_suites(config: RunConfig) -> dict[str, list[Statement]]:
    """Read the suites alone.

    Raises:
        FdError: see `read_selection`.
    """
    return _read_suites(config.data, Sources(config.data))


def read_train(config: RunConfig) -> list[Statement]:
    """Read the training statements alone.

    Raises:
        FdError: see `read_selection`.
    """
    return _read_train(config.data, Sources(config.data))


def overlaps(train: Sequence[Statement], suites: Mapping[str, Sequence[Statement]]) -> list[str]:
    """Say for each suite how many training statements stand in it, if any do."""
    lines = []
    for name, statements in suites.items():
        both = shared(train, statements)
        if both:
            some = ", ".join(both[:3]) + (", ..." if len(both) > 3 else "")
            lines.append(f"data: {len(both)} of the training statements stand in the suite {name} too ({some})")
    return lines


def _train_source(table: Data) -> str:
    return table.train or f"{table.source}#train"


def _read_train(table: Data, sources: Sources) -> list[Statement]:
    return limit_by_hash(sources.read(_train_source(table), "train"), table.max_train)


def _read_suites(table: Data, sources: Sources) -> dict[str, list[Statement]]:
    suites: dict[str, list[Statement]] = {}
    for text in evaluated(table):
        name = suite_name(text)
        if name in suites:
            raise PreflightError(f"data.eval: two sources are called {name}; the stem names the suite: rename one")
        suites[name] = sources.read(text, "test")
    return suites


def describe(role: str, text: str, statements: Sequence[Statement]) -> str:
    """Say which statements these are."""
    return f"data: {role} = {text}: {len(statements):,} statements, sha256 {statements_hash(statements)}"


def _demand_file(name: str, pinned: Pinned, path: Path) -> None:
    if not pinned.file_sha256:
        return
    from fd_async.data.sources.hub import sha256_of

    found = sha256_of(path)
    if found != pinned.file_sha256:
        raise PreflightError(
            f"{name}: the file has the sha256 {found}, pinned is {pinned.file_sha256}: the hub or the cache changed it;"
            f" write {pinned.address} with data.columns to use it all the same"
        )


def _demand_statements(name: str, pinned: Pinned, statements: Sequence[Statement]) -> None:
    if len(statements) != pinned.num_rows:
        raise PreflightError(f"{name}: has {len(statements)} statements, pinned are {pinned.num_rows}")
    found = statements_hash(statements)
    if pinned.statements_sha256 and found != pinned.statements_sha256:
        raise PreflightError(f"{name}: its statements have the sha256 {found}, pinned is {pinned.statements_sha256}")
