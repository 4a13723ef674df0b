"""The local files and folders that a configuration names."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import msgspec

from fd_async.config.checks import Problem
from fd_async.config.places import parse_place
from fd_async.config.schema import RunConfig, Verifier
from fd_async.errors import ConfigError

CHECKOUT = Path(__file__).resolve().parents[2]
"""Where relative paths are looked for when they are not below the current directory."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def resolve(config: RunConfig) -> tuple[RunConfig, list[Problem]]:
    """Make paths that exist only below the checkout absolute, and list what is missing.

    A model path of the form `name` or `owner/name` that is no folder here is a Hugging Face id and not looked up.
    """
    missing: list[Problem] = []

    def find(key: str, path: str, kind: str) -> str:
        is_there = {"folder": _is_folder, "file": _is_file, "file or folder": _exists}[kind]
        for place in (_expanded(path), CHECKOUT / path):
            if is_there(place):
                return path if place == Path(path) else str(place)
        shown = path if len(path) <= 300 else f"{path[:300]}..."
        missing.append(Problem(config, (key,), f"there is no {kind} {shown}{_suggest(path)}"))
        return path

    def find_source(key: str, text: str) -> str:
        try:
            place = parse_place(text)
        except ConfigError:
            return text  # a problem that the rules name
        return find(key, place.base, "file or folder") + text[len(place.base) :] if place.is_local else text

    data, model = config.data, config.model
    source = find_source("data.source", data.source)
    train = find_source("data.train", data.train)
    suites = [find_source("data.eval", text) for text in ([data.eval] if isinstance(data.eval, str) else data.eval)]
    start = model.path
    if not is_hub_id(start):
        start = find("model.path", start, "folder")
    init_from = find("model.init_from", model.init_from, "folder") if model.init_from else ""
    resolved = msgspec.structs.replace(
        config,
        data=msgspec.structs.replace(data, source=source, train=train, eval=suites),
        model=msgspec.structs.replace(model, path=start, init_from=init_from),
    )
    return resolved, missing


def is_hub_id(path: str) -> bool:
    """True where `model.path` names a model on the Hugging Face hub and not a local folder."""
    return _HUB_ID.fullmatch(path) is not None and not _is_folder(Path(path)) and not _is_folder(CHECKOUT / path)


def _suggest(path: str) -> str:
    if len(path) > 300:
        return ""
    for folder in (Path(path).parent, CHECKOUT / Path(path).parent):
        if _is_folder(folder):
            found = difflib.get_close_matches(Path(path).name, _names_in(folder), n=1)
            return f"; did you mean {Path(path).parent / found[0]}?" if found else ""
    return f", nor a folder {Path(path).parent}"


def _names_in(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:  # not ours to read
        return []


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~` of nobody
        return Path(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name too long, a folder that we may not look into
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def project_of(table: Verifier) -> Path:
    """Return the Lake project of `verifier.project_dir`; one that is not there is looked for inside the checkout."""
    project = Path(table.project_dir)
    return (project if project.is_dir() else CHECKOUT / project).resolve()
