"""From TOML files and `--set` to one frozen RunConfig, or to every problem at once.

The files are merged table by table in the order given, `--set` last; each key remembers where its value came from.
msgspec reports only the first error of a decode, so every key is converted by itself. A key that fails takes its
default while the rest is checked; no RunConfig leaves this module while one problem stands.
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tomli_w
from msgspec import Struct

from fd_async.config import checks, files
from fd_async.config.describe import Key, keys, tables
from fd_async.config.schema import RunConfig
from fd_async.config.source import BEYOND_TOML, Source, read_toml
from fd_async.errors import ConfigError


class Value(Struct, frozen=True):
    """A value with the place it was written, e.g. `configs/tiny_fd.toml:12` or `--set`."""

    given: Any
    where: str


def load_config(
    path: Path,
    overlays: Sequence[Path] = (),
    sets: Iterable[str] = (),
    *,
    options: Mapping[str, tuple[str, Any]] | None = None,
    check_files: bool = True,
    may_be_gone: Collection[str] = (),
) -> RunConfig:
    """Read, merge and check the whole configuration.

    Args:
        path: The main TOML file; its stem is the run's name where none is given.
        overlays: TOML files whose keys replace those of the files before.
        sets: `table.key=value`, the value in TOML or, where that fails, plain text.
        options: Values from command-line options: key to (option, value), e.g. `{"run.name": ("--run", "a")}`.
        check_files: Demand that the local files and folders it names exist.
        may_be_gone: Keys whose file or folder need not exist all the same.

    Raises:
        ConfigError: One line per problem.
    """
    problems: list[str] = []
    sources = [read_toml(file, problems) for file in (path, *overlays)]
    if problems:
        raise ConfigError("\n".join(problems))
    values = _merge(sources, problems)
    for assignment in sets:
        _assign(assignment, values, problems)
    values |= {key: Value(given, where) for key, (where, given) in (options or {}).items()}
    values.setdefault("run.name", Value(path.stem, str(path)))

    accepted, bad = _convert_all(values, path, problems)
    config = _build(accepted)
    found = checks.check(config)
    if check_files:
        config, missing = files.resolve(config)
        found += [problem for problem in missing if not set(problem.keys) & set(may_be_gone)]
    problems += [_line(problem, values, path) for problem in found if not bad & set(problem.keys)]
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return `table.key` -> value."""
    found = ((table, keys) for table, keys in tables.items() if isinstance(keys, dict))
    return {f"{table}.{key}": value for table, keys in found for key, value in keys.items()}


def dump_toml(config: RunConfig, header: str = "") -> str:
    """Write every key with its value; `load_config` reads it back to an equal RunConfig."""
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    return comment + ("\n" if comment else "") + tomli_w.dumps(msgspec.to_builtins(config))


def _merge(sources: Iterable[Source], problems: list[str]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for source in sources:
        for table, content in source.data.items():
            if table not in tables():
                problems.append(f"{source.where(table)}: [{table}] is not a table{_suggest_table(table)}")
            elif not isinstance(content, dict):
                problems.append(f"{source.where(table)}: {table} is a table: write [{table}] above its keys")
            else:
                for name, given in content.items():
                    _put(values, f"{table}.{name}", Value(given, source.where(table, name)), problems)
    return values


def _put(values: dict[str, Value], key: str, value: Value, problems: list[str]) -> None:
    if key in keys():
        values[key] = value
    else:
        problems.append(f"{value.where}: {key} = {_show(value.given)}: unknown key{_suggest_key(key)}")


def _assign(assignment: str, values: dict[str, Value], problems: list[str]) -> None:
    key, sign, text = assignment.partition("=")
    key = key.strip()
    if not sign or key.count(".") != 1:
        hint = _suggest_table(key).split("; allowed")[0] if "." not in key else ""
        problems.append(f'--set: "{assignment}" is not table.key=value, e.g. learner.lr=1e-5{hint}')
        return
    given = parse_value(text)
    if key in keys() and keys()[key].takes_text and not isinstance(given, str | list):
        given = text  # --set run.name=7
    _put(values, key, Value(given, "--set"), problems)


def parse_value(text: str) -> Any:
    """Parse the right side of a TOML assignment; anything that is not TOML is text."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, *BEYOND_TOML):
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def _convert_all(values: Mapping[str, Value], path: Path, problems: list[str]) -> tuple[dict[str, Any], set[str]]:
    """Return the good values as the schema wants them, and the names of the bad and the missing ones."""
    accepted: dict[str, Any] = {}
    bad: set[str] = set()
    for name, key in keys().items():
        if name not in values:
            if key.required:
                problems.append(f"{path}: {name} is missing: {key.description}")
                bad.add(name)
            continue
        given = values[name].given
        try:
            converted = msgspec.convert(given, key.annotation)
            if isinstance(converted, float) and not math.isfinite(converted):
                raise msgspec.ValidationError("not finite")
            accepted[name] = converted
        except msgspec.ValidationError:
            hint = _suggest_value(key, given)
            problems.append(f"{values[name].where}: {name} = {_show(given)}: expected {key.allowed}{hint}")
            bad.add(name)
    return accepted, bad


def _build(accepted: Mapping[str, Any]) -> RunConfig:
    """Make the config; a required key that is absent is empty, a problem that is already noted."""
    built: dict[str, Any] = {}
    for table, struct in tables().items():
        own = [key for key in keys().values() if key.table == table]
        given = {key.name: accepted[key.path] for key in own if key.path in accepted}
        built[table] = struct(**{key.name: "" for key in own if key.required} | given)
    return RunConfig(**built)


def _line(problem: checks.Problem, values: Mapping[str, Value], path: Path) -> str:
    key = next((key for key in problem.keys if key in values), problem.keys[0])
    where = values[key].where if key in values else f"{path} (default)"
    table, name = key.split(".")
    shown = "(hidden)" if name.endswith("key_env") else _show(getattr(getattr(problem.config, table), name))
    return f"{where}: {key} = {shown}: {problem.text}"


def _show(value: Any) -> str:
    try:
        text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _suggest_table(table: str) -> str:
    owners = [key for key in keys().values() if key.name == table]
    if owners:
        return f"; did you mean {owners[0].path}?"
    return _nearest(table, tables(), "[{}]".format) or "; allowed: " + ", ".join(tables())


def _suggest_key(key: str) -> str:
    table, name = key.split(".", 1)
    if table not in tables():
        return _suggest_table(table).replace("; allowed", "; tables")
    same_name = [other.path for other in keys().values() if other.name == name]
    if same_name:
        return f"; did you mean {same_name[0]}?"
    own = [other.name for other in keys().values() if other.table == table]
    return _nearest(name, own, f"{table}.{{}}".format) or f"; [{table}] has " + ", ".join(own)


def _suggest_value(key: Key, given: Any) -> str:
    options = [option.strip('" ') for option in key.allowed.removeprefix("one of ").split(",")]
    return _nearest(given, options, '"{}"'.format) if isinstance(given, str) and key.allowed[:6] == "one of" else ""


def _nearest(word: str, options: Iterable[str], form: Callable[[str], str]) -> str:
    found = difflib.get_close_matches(word, list(options), n=1)
    return f"; did you mean {form(found[0])}?" if found else ""
