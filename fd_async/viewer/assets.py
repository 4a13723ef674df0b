"""The page's own script and style. The static report and the live page are made of the same parts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATE = Path(__file__).parent / "template"
_TURNING = {mark: f"⟨U+{mark:04X}⟩" for mark in (0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""Marks that turn the direction of text: with them a proof could look like another one. kit.js has the same."""
_PARTS = ("kit", "chart", "overview", "attempt")


@functools.cache
def script(page: Literal["report", "live"]) -> str:
    """Return the shared parts and the page's own as one script."""
    parts = [(_TEMPLATE / f"{name}.js").read_text(encoding="utf-8") for name in (*_PARTS, page)]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


@functools.cache
def style(page: Literal["report", "live"]) -> str:
    """Return the shared style and the page's own."""
    return "".join((_TEMPLATE / f"{name}.css").read_text(encoding="utf-8") for name in ("shared", page))


def render(template: str, folder: Path = _TEMPLATE, /, **values: Any) -> str:
    """Fill a template; what is no Markup is escaped, and marks that turn the direction of text are written out."""
    return _environment(folder).get_template(template).render(**values)


def embed(value: Any) -> Markup:
    """Return JSON that may stand inside a script element: no character in it can end the element."""
    text = msgspec.json.encode(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@functools.cache
def _environment(folder: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_plain,
    )  # fmt: skip


def _plain(value: Any) -> Any:
    return value.translate(_TURNING) if type(value) is str else value
