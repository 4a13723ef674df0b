"""What the Structs of `schema` say about themselves, in words: keys, types, limits, defaults, descriptions.

Owns the wording that error messages and docs/config.md share. Reads `schema` only.
"""

from __future__ import annotations

import json
import typing
from functools import cache
from typing import Any

import msgspec
from msgspec import Struct
from msgspec import inspect as mi

from fd_async.config.schema import RunConfig


class Key(Struct, frozen=True, kw_only=True):
    """One key of one table."""

    table: str
    name: str
    annotation: Any
    """What `msgspec.convert` checks a value against."""
    allowed: str
    """The values it takes, in words."""
    takes_text: bool
    required: bool
    default: Any
    description: str

    @property
    def path(self) -> str:
        return f"{self.table}.{self.name}"


@cache
def tables() -> dict[str, type[Struct]]:
    """Map each table name to its Struct, in the order of RunConfig."""
    hints = typing.get_type_hints(RunConfig)
    return {field.name: hints[field.name] for field in msgspec.structs.fields(RunConfig)}


@cache
def keys() -> dict[str, Key]:
    """Map `table.key` to its description, in the order of the schema."""
    return {key.path: key for table, struct in tables().items() for key in _keys_of(table, struct)}


def _keys_of(table: str, struct: type[Struct]) -> list[Key]:
    hints = typing.get_type_hints(struct, include_extras=True)
    info = typing.cast("mi.StructType", mi.type_info(struct))
    return [
        Key(
            table=table,
            name=field.name,
            annotation=hints[field.name],
            allowed=words(field.type),
            takes_text=_takes_text(field.type),
            required=field.required,
            default=_default(field),
            description=_description(field.type),
        )
        for field in info.fields
    ]


def _default(field: mi.Field) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return None if field.default is msgspec.NODEFAULT else field.default


def _description(kind: mi.Type) -> str:
    if isinstance(kind, mi.Metadata):
        return (kind.extra_json_schema or {}).get("description", "")
    return ""


def _takes_text(kind: mi.Type) -> bool:
    kind = kind.type if isinstance(kind, mi.Metadata) else kind
    return isinstance(kind, mi.StrType) or (isinstance(kind, mi.UnionType) and any(map(_takes_text, kind.types)))


def words(kind: mi.Type) -> str:
    """Say which values a type takes, e.g. `an integer >= 0` or `one of "async", "sync"`."""
    match kind:
        case mi.Metadata():
            return words(kind.type)
        case mi.BoolType():
            return "true or false"
        case mi.IntType():
            return "an integer" + _limits(kind)
        case mi.FloatType():
            return "a number" + _limits(kind)
        case mi.StrType():
            return "text"
        case mi.LiteralType():
            return "one of " + ", ".join(json.dumps(value) for value in kind.values)
        case mi.ListType():
            return "a list, each " + words(kind.item_type)
        case mi.TupleType():
            return f"a list of {len(kind.item_types)}, each " + words(kind.item_types[0])
        case mi.UnionType():
            return " or ".join(words(option) for option in kind.types)
    raise TypeError(f"the configuration schema has a type without words: {kind}")


def _limits(kind: mi.IntType | mi.FloatType) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    given = [f"{sign} {getattr(kind, name):g}" for name, sign in signs.items() if getattr(kind, name) is not None]
    return " " + " and ".join(given) if given else ""
