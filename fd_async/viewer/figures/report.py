"""All figures of some runs in one folder: images, numbers and index.html."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from fd_async.errors import PreflightError
from fd_async.telemetry.sinks import replace_file
from fd_async.viewer.figures import page
from fd_async.viewer.figures.curves import Curve, Drawn, Missing, curve, resolve_key, thinned
from fd_async.viewer.figures.drawing import Axes, draw, require_matplotlib
from fd_async.viewer.figures.leaks import read_leaks
from fd_async.viewer.figures.numbers import numbers
from fd_async.viewer.figures.runs import NO_FEEDBACK, Group, name_groups, read_group, suites
from fd_async.viewer.figures.scaling import Match, match, read_evaluations
from fd_async.viewer.figures.table import FIGURES, Figure, Panel

Form = Literal["svg", "png"]
SCALING = Panel("pass@k from the same pass@1", "eval/SUITE/pass@K", "share")


class Written(Struct, frozen=True, kw_only=True):
    """What was written, and how long each part took, in seconds."""

    index: Path
    num_figures: int
    empty: list[str]
    """Numbers of the figures for which no run has anything."""
    seconds: Mapping[str, float]


def write_figures(named: Sequence[tuple[str, Sequence[Path]]], out: Path, form: Form = "svg") -> Written:
    """Draw every figure of the table for the runs, and write index.html.

    Blocks for some seconds: call it in a thread.

    Args:
        named: label, empty for the folder's name, and run folders; several folders are seeds.
        out: folder for the files, made where it is not there.

    Raises:
        ConfigError: labels or folders repeat.
        PreflightError: a folder is no run, no run has anything to draw, matplotlib is missing, or `out` refuses files.
    """
    clock = _Clock()
    groups = [read_group(label, folders) for label, folders in name_groups(named)]
    evaluations = read_evaluations(groups)
    if not evaluations and not any(run.rows for group in groups for run in group.runs):
        problems = "; ".join(f"{run.folder}: {run.problem}" for group in groups for run in group.runs)
        raise PreflightError(f"there is nothing to draw yet: {problems}")
    clock.lap("read")
    require_matplotlib()
    clock.lap("import matplotlib")
    make_folder(out)
    parts = suites(groups)
    pair = match(evaluations)
    made = [collect(figure, groups, parts, pair) for figure in FIGURES]
    table = numbers(groups, parts)
    clock.lap("compute")
    leaks = read_leaks(groups)
    clock.lap("leaks")
    files: dict[str, bytes] = {"numbers.csv": page.numbers_csv(table), "leaks.csv": page.leaks_csv(leaks)}
    images: dict[str, bytes] = {}
    for one in made:
        name = one.figure.name
        if one.has_data:
            labels, note = _labels(one, groups), _image_note(one, groups)
            picture = draw(_title(one.figure), _axes(one), labels, form, shares_y=one.figure.shares_y, note=note)
            images[name] = files[f"{name}.{form}"] = picture
            files[f"{name}.csv"] = page.figure_csv(one.figure, one.panels)
    clock.lap("draw")
    files["index.html"] = page.index_html(groups, made, images, form, table, leaks, parts)
    _write(out, files, {one.figure.name for one in made})
    clock.lap("write")
    return Written(
        index=out / "index.html",
        num_figures=len(images),
        empty=[one.figure.number for one in made if not one.has_data],
        seconds=clock.laps,
    )


def collect(figure: Figure, groups: Sequence[Group], parts: Mapping[str, str], pair: Match | str) -> Drawn:
    """Return a figure's curves, and who lacks what."""
    drawn = Drawn(figure=figure)
    for panel in figure.panels:
        key = resolve_key(panel, parts)
        found = [curve(group, place, panel, key) for place, group in enumerate(groups)]
        curves = [one for one in found if isinstance(one, Curve)]
        drawn.panels.append((panel, key, curves))
        drawn.missing += [(panel.title, one) for one in found if isinstance(one, Missing)]
        drawn.notes += [f"{panel.title}: {one.note}" for one in curves if one.note]
    if figure.has_scaling:
        drawn.panels.append((SCALING, SCALING.key, _scaling_curves(pair)))
        drawn.notes.append(f"{SCALING.title}: {pair if isinstance(pair, str) else pair.note}")
    if unlike := unlike_the_paper(figure, drawn.groups(groups)):
        drawn.notes.append(unlike)
    return drawn


def unlike_the_paper(figure: Figure, groups: Sequence[Group]) -> str:
    """Say why a figure does not show what the paper's does; empty where it may, and for a label alone.

    Labels that differ in other things are drawn all the same, and whoever sees the image alone must know.
    """
    if len(groups) < 2:
        return ""
    key = figure.compares[0]
    if len({value for group in groups if (value := group.setting(key)) != NO_FEEDBACK}) < 2:
        return f"Not the comparison of the title: these runs do not differ in {key}."
    if figure.about and figure.about[1] not in {group.setting(figure.about[0]) for group in groups}:
        return f"Not the comparison of the title: no run here has {figure.about[0]} = {figure.about[1]}."
    return ""


def _image_note(drawn: Drawn, groups: Sequence[Group]) -> str:
    """Say what an image must say itself: it may be shown without the page."""
    said = []
    if any(one.num_runs > 1 for _, _, curves in drawn.panels for one in curves):
        said.append("Lines: means over runs. Bands: lowest to highest run.")
    if any(curves for panel, _, curves in drawn.panels if panel is SCALING):
        said.append("Bands of pass@k: 95 % intervals.")
    if empty := [panel.title for panel, _, curves in drawn.panels if not curves]:
        said.append(f"Nothing to draw of: {', '.join(empty)}.")
    return " ".join([*said, unlike_the_paper(drawn.figure, drawn.groups(groups))]).strip()


def make_folder(out: Path) -> None:
    """Make the folder of the report, and see that it takes files.

    Raises:
        PreflightError: it does not.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / ".fd-report", b"")
        (out / ".fd-report").unlink()
    except OSError as error:
        raise PreflightError(
            f"--to {out}: cannot write there: {error.strerror or error}; name another folder"
        ) from error


def _scaling_curves(pair: Match | str) -> list[Curve]:
    if isinstance(pair, str):
        return []
    curves = []
    for one in pair.both:
        k, value, low, high = zip(*one.scaling(), strict=True)
        curves.append(
            Curve(
                label=one.label, colour=one.colour, x=list(k), y=list(value), low=list(low), high=list(high), marks=True
            )
        )
    return curves


def _axes(drawn: Drawn) -> list[Axes]:
    """Return the axes of the panels that have a curve."""
    made = []
    for panel, _, curves in drawn.panels:
        if not curves:
            continue
        made.append(
            Axes(
                title=panel.title,
                x_name=_x_name(panel),
                unit=panel.unit,
                curves=thinned(curves),
                is_doubling=panel is SCALING,
                is_logarithmic=panel.transform == "per step",
            )
        )
    return made


def _x_name(panel: Panel) -> str:
    if panel is SCALING:
        return "k, samples per statement"
    return "gradient steps since the run began" if panel.transform == "per step" else "gradient step"


def _labels(drawn: Drawn, groups: Sequence[Group]) -> list[tuple[str, int]]:
    shown = {one.colour for _, _, curves in drawn.panels for one in curves}
    return [
        (f"{group.label}, {len(group.runs)} runs" if len(group.runs) > 1 else group.label, place)
        for place, group in enumerate(groups)
        if place in shown
    ]


def _title(figure: Figure) -> str:
    return f"Figure {figure.number}. {figure.title}" if figure.number.isdecimal() else figure.title


def _write(out: Path, files: Mapping[str, bytes], names: set[str]) -> None:
    """Write the files and take away figures of an earlier report that this one does not have."""
    try:
        for name, data in files.items():
            replace_file(out / name, data)
        for name in names:
            for ending in ("svg", "png", "csv"):
                if f"{name}.{ending}" not in files:
                    (out / f"{name}.{ending}").unlink(missing_ok=True)
    except OSError as error:
        raise PreflightError(f"{out}: cannot write there: {error.strerror or error}; name another with --to") from error


class _Clock:
    """Seconds of each part."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._since
        self._since = now
