"""Labels and their runs: folders, rows, settings, and the step at which a run's curve begins."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from fd_async.errors import ConfigError, PreflightError
from fd_async.telemetry.sinks import read_rows
from fd_async.viewer.curves import is_step, merge_rows

_STEP = re.compile(r"step_(\d+)\Z")
NO_FEEDBACK = "none (GRPO)"
"""What every setting of `feedback` is of a run that has none."""
_MAX_ORIGINS = 16
"""Longest chain of `model.init_from` that is followed; also ends a circle."""


class Run(Struct, frozen=True, kw_only=True):
    """One run folder as it was read."""

    folder: Path
    settings: Mapping[str, Any]
    """Tables of config.toml; empty where it is missing."""
    rows: Sequence[Mapping[str, Any]]
    """One per step, in order."""
    start: int = 0
    """Step of the checkpoint that it was started from: its own step 0 is drawn there."""
    problem: str = ""
    """Why there are no rows; empty where there are some."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def setting(self, key: str) -> Any:
        """Return a `table.key` of the configuration, None where it is not said."""
        table, _, name = key.partition(".")
        found = self.settings.get(table)
        return found.get(name) if isinstance(found, Mapping) else None


class Group(Struct, frozen=True, kw_only=True):
    """What one label stands for: one run, or the seeds of one experiment."""

    label: str
    runs: Sequence[Run]

    def setting(self, key: str) -> str:
        """Return a setting as text; the values of seeds that differ are joined by ` / `."""
        return " / ".join(dict.fromkeys(_said(run, key) for run in self.runs))


def name_groups(named: Sequence[tuple[str, Sequence[Path]]]) -> list[tuple[str, list[Path]]]:
    """Give every group a label of its own; without one it is the name of its folder.

    Folders of one name are told apart by the folder that they are in.

    Raises:
        ConfigError: a label is given twice, or a folder stands twice behind one label.
    """
    given = Counter(label for label, _ in named if label)
    if twice := next((label for label, count in given.items() if count > 1), None):
        raise ConfigError(f"label {twice!r} is given twice: write {twice}=RUN,RUN for seeds, or another label")
    for label, folders in named:
        places = Counter(folder.resolve() for folder in folders)
        if twice := next((place for place, count in places.items() if count > 1), None):
            what = f"{label or twice.name}: run {twice.name} stands twice"
            raise ConfigError(f"{what}; one seed counts once, leave one out")
    bare = [folders[0].resolve() for label, folders in named if not label]
    clash = Counter(folder.name for folder in bare)
    taken: set[str] = set(given)
    groups = []
    for label, folders in named:
        first = folders[0].resolve()
        shown = label or (first.name if clash[first.name] == 1 else f"{first.parent.name}/{first.name}")
        base, number = shown, 2
        while not label and shown in taken:
            shown, number = f"{base} ({number})", number + 1
        taken.add(shown)
        groups.append((_printable(shown), list(folders)))
    return groups


def read_group(label: str, folders: Sequence[Path]) -> Group:
    """Read the runs of one label.

    Raises:
        PreflightError: a folder is no run folder, or its metrics.jsonl has a line that is not a row.
    """
    return Group(label=label, runs=[read_run(folder) for folder in folders])


def read_run(folder: Path) -> Run:
    """Read a run folder; without metrics it has no rows and says why.

    Raises:
        PreflightError: it is no run folder, or a file in it cannot be read.
    """
    config, metrics = folder / "config.toml", folder / "metrics.jsonl"
    if not config.is_file() and not metrics.is_file():
        raise PreflightError(
            f"{folder}: neither config.toml nor metrics.jsonl there, so it is no run folder: name runs/NAME"
        )
    try:
        settings = tomllib.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        rows = read_rows(metrics)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PreflightError(f"{config}: cannot be read as TOML ({error}); put back the run's copy") from error
    except OSError as error:
        raise PreflightError(f"{folder}: cannot read the run: {error.strerror or error}") from error
    for number, row in enumerate(rows, start=1):
        if not is_step(step := row.get("step")):
            raise PreflightError(f"{metrics}: row {number} has no step but {step!r}; remove that line")
    problem = "" if rows else ("metrics.jsonl has no row yet" if metrics.is_file() else "there is no metrics.jsonl")
    start = first_step(settings, folder)
    return Run(folder=folder, settings=settings, rows=merge_rows(rows), start=start, problem=problem)


def first_step(settings: Mapping[str, Any], folder: Path) -> int:
    """Return the step of the checkpoint that a run began with, with those of the runs before it; 0 without one.

    A checkpoint says its step by its name. A run folder stands for its newest checkpoint.
    """
    total = 0
    for _ in range(_MAX_ORIGINS):
        model = settings.get("model")
        origin = model.get("init_from") if isinstance(model, Mapping) else None
        if not isinstance(origin, str) or not origin:
            break
        found = _STEP.search(origin.rstrip("/"))
        place = _find(Path(origin), folder)
        run = place.parent.parent if found else place
        newest = max((int(m[1]) for entry in _entries(run / "checkpoints") if (m := _STEP.search(entry))), default=0)
        total += int(found[1]) if found else newest
        try:
            settings, folder = tomllib.loads((run / "config.toml").read_text(encoding="utf-8")), run
        except (OSError, ValueError):
            break
    return total


def points(run: Run, key: str, *, per_step: bool = False) -> list[tuple[int, float]]:
    """Return (step as drawn, value) where there is a finite number.

    A rate has no value at the run's step 0, and counts the run's own steps: what was found before the run began is not
    in its total.
    """
    found = []
    for row in run.rows:
        value, step = row.get(key), row["step"]
        if value is None:
            continue
        if not per_step:
            found.append((run.start + step, float(value)))
        elif step:
            found.append((step, value / step))
    return found


def suites(groups: Sequence[Group]) -> dict[str, str]:
    """Return which evaluated suite plays which part: `minif2f`, and `test`, the one that most runs share.

    Among equals a name with `workbook` goes first, then the alphabet.
    """
    pattern = re.compile(r"eval/(.+)/pass@1\Z")
    counted: Counter[str] = Counter()
    for group in groups:
        for run in group.runs:
            counted.update(
                {m[1] for row in run.rows for key in row if key[:5] == "eval/" and (m := pattern.match(key))}
            )
    ranked = sorted(counted, key=lambda suite: (-counted[suite], "workbook" not in suite.lower(), suite))
    mini = [suite for suite in ranked if "minif2f" in _bare(suite)]
    test = [suite for suite in ranked if "minif2f" not in _bare(suite)]
    return {part: found[0] for part, found in (("minif2f", mini), ("test", test)) if found}


def _bare(suite: str) -> str:
    return suite.lower().replace("_", "").replace("-", "")


def _said(run: Run, key: str) -> str:
    """Return a setting as people read it; a checkpoint is its run and step, wherever it lies."""
    if key.startswith("feedback.") and run.setting("algorithm.type") == "grpo":
        return NO_FEEDBACK
    value = run.setting(key)
    if value is None:
        return "not said"
    text = str(value) or "none"
    if key == "model.init_from" and value:
        parts = Path(text).parts
        return f"{parts[-3]}, {parts[-1]}" if len(parts) > 2 and _STEP.search(text) else parts[-1]
    return text


def _find(origin: Path, folder: Path) -> Path:
    """Return the folder of a relative path: where the report is made, or beside the run, which may have moved."""
    if origin.is_dir():
        return origin
    parts = origin.parts[-3:] if _STEP.search(origin.name) else origin.parts[-1:]
    return folder.resolve().parent.joinpath(*parts)


def _entries(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
