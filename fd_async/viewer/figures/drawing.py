"""Figures as SVG or PNG. The one file that knows matplotlib, and only inside its functions.

Invariants:
    * The same curves give the same bytes: no date, no program version, no random ids, no settings of the user.
    * A label has one colour, one dash and one mark in all figures; the colours are told apart by colour-blind eyes.
    * Labels are text: neither mathematics nor markup is read from them.
"""

from __future__ import annotations

import io
import logging
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from msgspec import Struct

from fd_async.errors import PreflightError
from fd_async.viewer.figures.curves import Curve
from fd_async.viewer.figures.numbers import short

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8a8a8a")
"""Okabe and Ito's palette without its yellow, which is too light on white, and with a grey."""
_DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_MAX_LABEL = 44
_COLUMNS = {1: 1, 2: 2, 4: 2}
"""Of so many axes; others stand in three."""
_LEFT, _RIGHT, _TOP, _BOTTOM, _ACROSS, _DOWN = 0.72, 0.18, 0.72, 0.56, 0.82, 0.92
"""Inches around the axes and between them; the legend's lines come below."""
_LINE, _NOTE_LINE = 0.23, 0.16
_NOTE_LETTERS = 13.5
"""Of a note, in an inch."""
_STEPS = (1, 2, 2.5, 5, 10)
"""Between ticks, and these times a power of ten."""
_INK, _MUTED, _RULE = "#1b2230", "#5a6475", "#e4e7ec"
_STYLE: dict[str, Any] = {
    "svg.hashsalt": "fd_async",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 10.0,
    "axes.unicode_minus": False,
    "path.simplify": True,
}


class Axes(Struct, frozen=True, kw_only=True):
    """One pair of axes."""

    title: str
    x_name: str
    unit: str
    """`share` is drawn in percent."""
    curves: Sequence[Curve]
    note: str = ""
    """Said inside where nothing is drawn."""
    is_doubling: bool = False
    """The x axis counts in powers of two."""
    is_logarithmic: bool = False
    """The y axis is: the rate of a total, for one, falls by orders of magnitude in the first steps."""


def require_matplotlib() -> None:
    """Say so in one line where it is missing.

    Raises:
        PreflightError: it cannot be imported.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise PreflightError(
            f"figures need matplotlib, which cannot be imported ({error}): install the locked requirements again "
            "(remove .venv and call bin/fd-report), or `python -m pip install matplotlib`"
        ) from error


def draw(
    title: str,
    axes: Sequence[Axes],
    labels: Sequence[tuple[str, int]],
    form: str,
    *,
    shares_y: bool = False,
    note: str = "",
) -> bytes:
    """Return a figure as the bytes of a file.

    Args:
        title: above all axes.
        axes: one to four of them.
        labels: of the legend, with their place among all labels.
        form: `svg` or `png`.
        shares_y: give all axes the same y limits.
        note: below the legend, such as what the bands are.

    Raises:
        PreflightError: matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    num_columns = _COLUMNS.get(len(axes), 3)
    num_rows = math.ceil(len(axes) / num_columns)
    with _settings():
        entries = _entries(labels, num_columns)
        num_lines = math.ceil(len(labels) / entries)
        wide, high = (6.4, 3.4) if num_columns == 1 else (3.9, 2.7)
        width = _LEFT + num_columns * wide + (num_columns - 1) * _ACROSS + _RIGHT
        notes = textwrap.wrap(note, int(_NOTE_LETTERS * (width - 0.3)))
        below = 0.07 + _NOTE_LINE * len(notes) if notes else 0.0
        bottom = _BOTTOM + 0.12 + _LINE * num_lines + below
        height = _TOP + num_rows * high + (num_rows - 1) * _DOWN + bottom
        figure = Figure(figsize=(width, height), facecolor="white")
        (FigureCanvasSVG if form == "svg" else FigureCanvasAgg)(figure)
        figure.suptitle(
            title, x=0.11 / width, y=1 - 0.12 / height, ha="left", va="top", fontsize=12, color=_INK, weight="bold"
        )
        places = figure.subplots(num_rows, num_columns, squeeze=False)
        for place, one in zip(places.flat, axes, strict=False):
            _panel(place, one, _all_x(one, axes))
        for place in places.flat[len(axes) :]:
            place.remove()
        if shares_y:
            _share_y([place for place, one in zip(places.flat, axes, strict=False) if one.curves])
        _legend(figure, labels, entries, below / height)
        figure.text(0.11 / width, 0.09 / height, "\n".join(notes), fontsize=8.5, color=_MUTED, va="bottom")
        figure.subplots_adjust(
            left=_LEFT / width, right=1 - _RIGHT / width, top=1 - _TOP / height, bottom=bottom / height,
            wspace=_ACROSS / wide, hspace=_DOWN / high,
        )  # fmt: skip
        file = io.BytesIO()
        metadata: dict[str, None] = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(file, format=form, dpi=150, metadata=metadata)
    return file.getvalue()


@contextmanager
def _settings() -> Iterator[None]:
    """Use our style and nobody else's; a letter that the font lacks is a box, and no message."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _all_x(one: Axes, axes: Sequence[Axes]) -> list[int]:
    """Return every x of the axes that count the same thing: beside each other they begin and end alike."""
    return sorted({x for other in axes if other.x_name == one.x_name for curve in other.curves for x in curve.x})


def _panel(place: Any, axes: Axes, xs: Sequence[int]) -> None:
    place.set_title(axes.title, loc="left", fontsize=10.5, color=_INK)
    place.set_xlabel(axes.x_name, color=_MUTED)
    windows = sorted({curve.window for curve in axes.curves if curve.is_averaged})
    if windows and windows[-1] > 1:
        steps = f"{windows[0]} to {windows[-1]}" if len(windows) > 1 else f"{windows[0]}"
        place.set_title(f"means over {steps} steps", loc="right", fontsize=8.5, color=_MUTED)
    place.set_ylabel("%" if axes.unit == "share" else axes.unit, color=_MUTED)
    for side in ("top", "right"):
        place.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        place.spines[side].set_color("#9aa3b2")
    place.tick_params(colors=_MUTED, labelsize=9)
    place.grid(True, color=_RULE, linewidth=0.8)
    place.set_axisbelow(True)
    if not axes.curves:
        place.set_xticks([])
        place.set_yticks([])
        place.text(
            0.5, 0.5, axes.note or "no run has it", transform=place.transAxes, ha="center", va="center", color=_MUTED
        )
        return
    longest = max(len(curve.x) for curve in axes.curves)
    for curve in axes.curves:
        _line(place, curve, longest)
    _scale(place, axes)
    _scale_x(place, axes, xs)


def _line(place: Any, curve: Curve, longest: int) -> None:
    look = _look(curve.colour)
    if curve.low is not None and curve.high is not None:
        place.fill_between(curve.x, curve.low, curve.high, color=look["color"], alpha=0.16, linewidth=0)
        if len(curve.x) == 1:  # a band over one point has no width
            place.vlines(curve.x, curve.low, curve.high, color=look["color"], linewidth=1.2)
    num = len(curve.x)
    every: Any = 1
    if curve.marks and num > 40:
        every = num // 20
    elif not curve.marks and longest > 40:  # a few, at other places for other labels, to tell lines without colours
        gap = longest // 5
        every = (min(gap * (curve.colour % len(_MARKS)) // len(_MARKS), num // 2), gap)
    place.plot(curve.x, curve.y, linewidth=1.6, markersize=4.2, markevery=every, solid_joinstyle="round", **look)


def _scale(place: Any, axes: Axes) -> None:
    """Choose limits and ticks of y; what is never negative begins at 0 unless it changes little."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    top = max(max(curve.high or curve.y) for curve in axes.curves)
    bottom = min(min(curve.low or curve.y) for curve in axes.curves)
    if axes.is_logarithmic and top > 0:
        place.set_yscale("log")
        low = min((y for curve in axes.curves for y in curve.low or curve.y if y > 0), default=top)
        place.set_ylim(low / 1.3, top * 1.3)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(top)) + 1)
        wanted = (1, 2, 5) if len(decades) <= 4 else (1,)
        place.yaxis.set_major_locator(FixedLocator([m * 10.0**e for e in decades for m in wanted]))
        place.yaxis.set_minor_locator(NullLocator())
    else:
        if bottom >= 0 and (bottom < 0.6 * top or top == 0):
            high = top * 1.06 if top else 1.0
            place.set_ylim(-0.015 * high, high)  # a line at 0 must not hide under the axis
        elif top - bottom < 1e-9 * max(abs(top), 1e-300):
            place.set_ylim(bottom - 0.1 * (abs(bottom) or 1), top + 0.1 * (abs(top) or 1))
        if axes.unit == "share":
            place.set_ylim(place.get_ylim()[0], min(place.get_ylim()[1], 1.02))
        place.yaxis.set_major_locator(MaxNLocator(6, steps=_STEPS))
    percent = axes.unit == "share"
    place.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}" if percent else short(value)))


def _scale_x(place: Any, axes: Axes, xs: Sequence[int]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    if axes.is_doubling:
        place.set_xscale("log", base=2)
        place.xaxis.set_major_locator(FixedLocator(xs))
        place.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        place.xaxis.set_minor_locator(NullLocator())
        place.set_xlim(xs[0] / 1.15, xs[-1] * 1.15)
        return
    place.xaxis.set_major_locator(MaxNLocator(7, steps=_STEPS, integer=True))
    place.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value < 1e6 else short(value)))
    edge = 0.02 * (xs[-1] - xs[0]) or 1
    place.set_xlim(xs[0] - edge, xs[-1] + edge)


def _share_y(places: Sequence[Any]) -> None:
    """Give axes the same y limits, with a little room above."""
    limits = [place.get_ylim() for place in places]
    low, high = min(low for low, _ in limits), max(high for _, high in limits)
    for place in places:
        place.set_ylim(low, high + 0.03 * (high - low))


def _legend(figure: Any, labels: Sequence[tuple[str, int]], columns: int, bottom: float) -> None:
    """Put the legend below the axes, where it hides nothing; `bottom` is its lower end, a share of the height."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], linewidth=1.8, markersize=4.5, **_look(place)) for _, place in labels]
    if not lines:
        return
    legend = figure.legend(
        lines, [f"{number}" for number in range(len(lines))], loc="lower left", bbox_to_anchor=(0, bottom),
        ncols=columns, frameon=False, fontsize=9.5, handlelength=3.2, columnspacing=1.6, labelspacing=0.35,
        borderaxespad=0.5,
    )  # fmt: skip
    for text, (label, _) in zip(legend.get_texts(), labels, strict=True):
        text.set_text(_short_label(label))  # given at the start, a label with `_` in front would be left out
        text.set_color(_INK)


def _entries(labels: Sequence[tuple[str, int]], num_columns: int) -> int:
    """Return how many labels stand side by side."""
    widths = [0.75 + 0.085 * len(_short_label(label)) for label, _ in labels]
    room = 7.1 if num_columns == 1 else 4.7 * num_columns
    for entries in range(len(widths), 1, -1):
        full, more = divmod(len(widths), entries)  # of the columns, the first `more` have one line more
        ends = [column * full + min(column, more) for column in range(entries + 1)]
        if sum(max(widths[start:end]) for start, end in pairwise(ends)) <= room:
            return entries
    return 1


def _look(place: int) -> dict[str, Any]:
    """Return how a label is drawn; beyond eight labels colours come again with another dash and mark."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": _DASHES[place // len(COLOURS) % len(_DASHES)],
        "marker": _MARKS[(place + 2 * (place // len(COLOURS))) % len(_MARKS)],
    }


def _short_label(label: str) -> str:
    return label if len(label) <= _MAX_LABEL else f"{label[: _MAX_LABEL - 1]}…"
