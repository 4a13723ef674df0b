"""index.html and the CSV files: what the figures show, as numbers and words.

Invariants:
    * The page holds its images, loads nothing, runs no script, and can be moved alone.
    * Labels, names and paths are text, whatever is in them.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fd_async.viewer import assets
from fd_async.viewer.figures.curves import Curve, Drawn
from fd_async.viewer.figures.leaks import LeakTable
from fd_async.viewer.figures.numbers import Number
from fd_async.viewer.figures.runs import Group
from fd_async.viewer.figures.table import Figure, Panel

_TEMPLATE = Path(__file__).parent / "template"
_TYPES = {"svg": "image/svg+xml", "png": "image/png"}


def index_html(
    groups: Sequence[Group],
    made: Sequence[Drawn],
    images: Mapping[str, bytes],
    form: str,
    table: Sequence[Number],
    leaks: LeakTable,
    parts: Mapping[str, str],
) -> bytes:
    """Return the page."""
    return render(
        "index.html.j2",
        groups=groups,
        figures=[_shown(one, groups, images.get(one.figure.name), form) for one in made],
        columns=_columns(table),
        cells={(number.label, number.quantity, number.statistic): number for number in table},
        leaks=leaks,
        parts=parts,
    )


def render(template: str, **values: Any) -> bytes:
    """Fill a template of this folder; `style` is the style sheet."""
    style = Markup((_TEMPLATE / "page.css").read_text(encoding="utf-8"))
    return assets.render(template, _TEMPLATE, style=style, **values).encode("utf-8", "replace")


def figure_csv(figure: Figure, panels: Sequence[tuple[Panel, str, Sequence[Curve]]]) -> bytes:
    """Return all points of a figure as they were measured, neither averaged over steps nor thinned."""
    header = ("figure", "panel", "key", "unit", "label", "x", "value", "low", "high", "num_runs")
    return _csv(header, (
        (figure.number, panel.title, key, panel.unit, one.label, x, one.y[i],
         one.low[i] if one.low is not None else "", one.high[i] if one.high is not None else "", one.num_runs)
        for panel, key, curves in panels for one in curves for i, x in enumerate(one.x)
    ))  # fmt: skip


def numbers_csv(table: Sequence[Number]) -> bytes:
    """Return the table of final and best values."""
    header = ("label", "quantity", "key", "unit", "statistic", "step", "value", "low", "high", "interval")
    rows = ([getattr(number, name) for name in header] for number in table)
    return _csv(header, (["" if value is None else value for value in row] for row in rows))


def leaks_csv(leaks: LeakTable) -> bytes:
    """Return the table of leaks."""
    header = ("label", "run", "measure", "share", "low", "high", "control", "whole", "num", "num_statements")
    return _csv(header, (
        (row.label, row.run, row.measure, row.share.mean, row.share.low, row.share.high,
         "" if row.share.control is None else row.share.control, row.share.whole, row.share.num,
         row.share.num_statements)
        for row in leaks.rows
    ))  # fmt: skip


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _shown(one: Drawn, groups: Sequence[Group], image: bytes | None, form: str) -> dict[str, Any]:
    figure = one.figure
    drawn = one.groups(groups)
    source = f"data:{_TYPES[form]};base64,{base64.b64encode(image).decode()}" if image is not None else None
    return {
        "name": figure.name,
        "head": f"Figure {figure.number}" if figure.number.isdecimal() else figure.number.capitalize(),
        "title": figure.title,
        "image": source,
        "file": f"{figure.name}.{form}",
        "paper": figure.paper,
        "drawn": [group.label for group in drawn],
        "settings": _settings(figure, drawn),
        "missing": _missing(one),
        "notes": one.notes,
        "panels": [f"{panel.title}: {key}, {panel.unit}" for panel, key, _ in one.panels],
    }


def _settings(figure: Figure, groups: Sequence[Group]) -> list[tuple[str, bool, str]]:
    """Return per setting that the paper varies: its key, whether the labels differ in it, and the values.

    A label alone is no comparison, and nothing need be said of it.
    """
    shown = []
    for key in figure.compares if len(groups) > 1 else ():
        labels: dict[str, list[str]] = {}
        for group in groups:
            labels.setdefault(group.setting(key), []).append(group.label)
        differ = len(labels) > 1
        text = "; ".join(f"{value}: {', '.join(found)}" for value, found in labels.items()) if differ else ""
        shown.append((key, differ, text or next(iter(labels), "")))
    return shown


def _missing(one: Drawn) -> list[tuple[str, list[str]]]:
    """Return why something is missing, once, with the labels and the panels that it is missing in."""
    panels: dict[tuple[str, str], list[str]] = {}
    for panel, lacking in one.missing:
        panels.setdefault((lacking.label, lacking.why), []).append(panel)
    labels: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (label, why), found in panels.items():
        labels.setdefault((why, tuple(found)), []).append(label)
    return [(f"{', '.join(lacking)}: {why}", list(found)) for (why, found), lacking in labels.items()]


def _columns(table: Sequence[Number]) -> list[tuple[str, str]]:
    """Return quantity and statistic of each column, in the order of their first appearance."""
    return list(dict.fromkeys((number.quantity, number.statistic) for number in table))
