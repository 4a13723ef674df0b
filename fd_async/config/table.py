"""What all tables of the configuration are made of."""

from __future__ import annotations

from typing import Any

from msgspec import Meta, Struct


def describe(text: str, **limits: Any) -> Meta:
    """Describe a key; `limits` are gt, ge, lt, le."""
    return Meta(description=text, **limits)


class Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every table: immutable, keyword-only, unknown keys refused."""
