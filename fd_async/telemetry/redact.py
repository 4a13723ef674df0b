"""Keeps credentials out of everything that is written for people."""

from __future__ import annotations

import os
import re

_SECRET_NAME = re.compile(r"(_KEY|_TOKEN|_SECRET|_PASSWORD)$")
_HEADER = re.compile(
    r"""(?ix) ( (?:authorization|x-api-key) [\\"']*\s*[:=,] | api[-_]key [\\"']*\s*[:=] ) (\s*[\\"']*)
    (?:(?:bearer|basic)\s+)? [^\s"'\\,;)}\]]+"""
)
_BEARER = re.compile(r"(?i)\b(bearer)\s+[\w.~+/=-]{8,}")
_MIN_SECRET_CHARS = 6

_secrets: dict[str, str] = {}


def protect_environment() -> None:
    """Protect the values of environment variables whose names say that they are secret."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name.upper()):
            protect(value, name)


def protect(value: str, name: str = "secret") -> None:
    """Remove `value` from everything that is logged from now on."""
    if len(value) >= _MIN_SECRET_CHARS:
        _secrets[value] = name


def redact(text: str) -> str:
    """Return `text` without protected values and credentials in headers."""
    for value, name in _secrets.items():
        if value in text:
            text = text.replace(value, f"[{name}]")
    return _BEARER.sub(r"\1 [removed]", _HEADER.sub(r"\1\2[removed]", text))
