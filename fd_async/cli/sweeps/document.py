"""SWEEP.toml: runs, what they start from, and the evaluations that follow."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, field

from fd_async.config.files import CHECKOUT
from fd_async.config.source import BEYOND_TOML, beyond
from fd_async.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
Positive = Annotated[int, Meta(ge=1)]


class Evaluation(Struct, frozen=True, forbid_unknown_fields=True):
    """One call of `fd-eval` after the run."""

    suites: list[str]
    samples: Positive = 1
    k: list[Positive] = field(default_factory=lambda: [1])
    step: Annotated[int, Meta(ge=0)] | None = None
    """Checkpoint; None takes the newest."""
    tools: bool = True
    """False evaluates without tools whatever the run had."""


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    """One run."""

    name: str
    config: list[str]
    """Files as `--config` takes them, the first one complete."""
    label: str = ""
    """In figures; the name where it is empty."""
    set: dict[str, dict[str, Any]] = {}
    """Table -> key -> value, stronger than the files."""
    after: str = ""
    """Run of this sweep from whose checkpoint it starts; empty: from `model.path`."""
    after_step: Annotated[int, Meta(ge=1)] | None = None
    """Step of that checkpoint; None takes the newest."""
    evals: list[Evaluation] = []


class Sweep(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    runs: list[Entry]
    title: str = ""


def read_sweep(path: Path) -> Sweep:
    """Read a sweep and check all that needs no configuration.

    Raises:
        ConfigError: one line per problem.
    """
    found = path if path.is_file() or not (CHECKOUT / path).is_file() else CHECKOUT / path
    try:
        sweep = msgspec.convert(tomllib.loads(found.read_text(encoding="utf-8-sig")), Sweep)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; sweeps stand in configs/sweeps/") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}; a sweep has a title and [[runs]], see docs/experiments.md") from error
    except BEYOND_TOML as error:
        raise ConfigError(f"{path}: not valid TOML: {beyond(error)}") from error
    problems = [f"{path}: {problem}" for problem in _problems(sweep)]
    if problems:
        raise ConfigError("\n".join(problems))
    return sweep


def find_config(text: str) -> Path | None:
    """Find a configuration below the current folder or the checkout."""
    return next((place for place in (Path(text), CHECKOUT / text) if place.is_file()), None)


def _problems(sweep: Sweep) -> Iterator[str]:
    if not sweep.runs:
        yield "lists no runs: add [[runs]] with name and config"
    earlier: set[str] = set()
    for entry in sweep.runs:
        yield from (f"run {entry.name}: {problem}" for problem in _entry_problems(entry, earlier))
        earlier.add(entry.name)


def _entry_problems(entry: Entry, earlier: set[str]) -> Iterator[str]:
    if not NAME.fullmatch(entry.name):
        yield "name must be a plain folder name: letters, digits, `_`, `.`, `+`, `-`"
    if entry.name in earlier:
        yield "stands twice"
    if not entry.config:
        yield "config lists no file"
    yield from (f"config: there is no file {text}" for text in entry.config if find_config(text) is None)
    if entry.after and entry.after not in earlier:
        yield f'after = "{entry.after}": no earlier run of this sweep has that name'
    if entry.after_step and not entry.after:
        yield f"after_step = {entry.after_step} needs after, the run whose checkpoint it is"
    for table, keys in entry.set.items():
        yield from (f"set.{table}.{key} is a table: no key takes one" for key in keys if _holds_table(keys[key]))
    if "=" in entry.label:
        yield f'label = "{entry.label}": fd-report takes labels without "="'
    for each in entry.evals:
        if not each.suites or not each.k:
            yield "evals: lists no suites or no k"
        elif max(each.k) > each.samples:
            yield f"evals: pass@{max(each.k)} needs samples = {max(each.k)} or more"


def _holds_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_holds_table, value)))
