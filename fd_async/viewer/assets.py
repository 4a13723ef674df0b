"""The page's own script and style. The static report and the live page are made of the same parts."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import msgspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATE = Path(__file__).parent / "template"
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


def render(template: str, **values: Any) -> str:
    """Fill a template; everything that is no Markup is escaped."""
    return _environment().get_template(template).render(**values)


def embed(value: Any) -> Markup:
    """Return JSON that may stand inside a script element: no character in it can end the element."""
    text = msgspec.json.encode(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATE), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
