"""What a probe of the machine found: one line each."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class Finding(Struct, frozen=True):
    """One line of fd-check: `ok`, `note` (works, worth knowing) or `missing` (the run would fail)."""

    state: Literal["ok", "note", "missing"]
    name: str
    found: str
    advice: str = ""


def needed(there: bool, name: str, found: str, advice: str) -> Finding:
    """Return `ok`, or `missing` with the advice."""
    return Finding("ok", name, found) if there else Finding("missing", name, found, advice)
