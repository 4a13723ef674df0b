"""The parts of the verifier: toolchain, project, REPL, compiled Mathlib, search, sandbox; or the server. Looks only."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from fd_async.config.files import project_of
from fd_async.config.schema import RunConfig
from fd_async.preflight.findings import Finding, needed

_PROBE_TIMEOUT_S = 10.0
_SET_UP = "run lean/setup (needs the internet once), or set verifier.project_dir"
_BUILT = ".lake/build/lib/lean/Mathlib.olean"


def _backend(config: RunConfig) -> Iterator[Finding]:
    table = config.verifier
    if table.backend == "minilean":
        lacking = [name for name in ("lark", "z3") if find_spec(name) is None]
        found = f"lacks {', '.join(lacking)}" if lacking else "the small checker, not Lean"
        yield needed(not lacking, "minilean", found, "remove .venv and call any command in bin/")
    elif table.backend == "kimina":
        yield _kimina(table.url)
        if not os.environ.get(table.api_key_env):
            yield Finding(
                "note", "kimina key", f"{table.api_key_env} is not set", "fine where the server asks for none"
            )
    elif table.command:
        program = table.command[0]
        yield needed(shutil.which(program) is not None, "REPL", program, "verifier.command[0] must be a program")
    else:
        yield from _lake_project(project_of(table), table.header)


def _kimina(url: str) -> Finding:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_PROBE_TIMEOUT_S):
            return Finding("ok", "kimina", url)
    except OSError as error:
        return Finding("missing", "kimina", f"{url}: {error}", "start the Kimina Lean Server, or change verifier.url")


def _lake_project(project: Path, header: str) -> Iterator[Finding]:
    lake = shutil.which("lake") or shutil.which("lake", path=str(Path.home() / ".elan" / "bin"))
    yield needed(lake is not None, "lake", lake or "not on PATH", _SET_UP)
    there = any((project / name).is_file() for name in ("lakefile.toml", "lakefile.lean"))
    yield needed(there, "Lake project", str(project) if there else f"none in {project}", _SET_UP)
    if there:
        yield _toolchain(project)
    repl = next(project.glob(".lake/packages/[rR][eE][pP][lL]/.lake/build/bin/repl"), None)
    found = "not built" if repl is None else "built" if os.access(repl, os.X_OK) else f"{repl} cannot be executed"
    yield needed(found == "built", "Lean REPL", found, _SET_UP)
    is_built = (project / ".lake" / "packages" / "mathlib" / _BUILT).is_file() or (project / _BUILT).is_file()
    if is_built:
        yield Finding("ok", "Mathlib", "compiled")
    elif there:
        is_wanted = "import Mathlib" in header
        yield Finding("missing" if is_wanted else "note", "Mathlib", "not compiled", _SET_UP)


def _toolchain(project: Path) -> Finding:
    """Look for the toolchain that elan would take; a Lean that elan does not manage is only tried."""
    name, theirs = (_pinned(folder) for folder in (project, project / ".lake" / "packages" / "mathlib"))
    if not name:
        return Finding("note", "toolchain", f"no lean-toolchain in {project}", "any Lean is taken")
    if theirs and theirs != name:
        found = f"{name} in {project}, but its Mathlib was made for {theirs}"
        advice = "restore lean-toolchain and lake-manifest.json of verifier.project_dir, then run lean/setup"
        return Finding("missing", "toolchain", found, advice)
    home = Path(os.environ.get("ELAN_HOME", "") or Path.home() / ".elan") / "toolchains"
    if not home.is_dir():
        return Finding("note", "toolchain", f"{name}; elan has none", "fine where lake is not elan's")
    there = (home / name.replace("/", "--").replace(":", "---")).exists()
    return needed(there, "toolchain", name if there else f"{name} is not installed", _SET_UP)


def _pinned(folder: Path) -> str:
    try:
        return (folder / "lean-toolchain").read_text().strip()
    except OSError:
        return ""


def _search(config: RunConfig) -> Iterator[Finding]:
    if not config.rollout.tools or (config.verifier.backend == "minilean" and not config.verifier.search_dir):
        return
    folder = Path(config.verifier.search_dir or project_of(config.verifier) / ".lake" / "packages" / "mathlib")
    if not folder.is_dir():
        state = "missing" if config.verifier.search_dir else "note"
        yield Finding(state, "Mathlib sources", f"none in {folder}", "run lean/setup, or set verifier.search_dir")
        return
    program = shutil.which("rg", path=str(Path(sys.executable).parent)) or shutil.which("rg")
    yield needed(
        program is not None, "rg", program or "not on PATH", "pip install ripgrep, or the package of your system"
    )


def _sandbox(config: RunConfig) -> Iterator[Finding]:
    table = config.verifier
    if table.backend == "kimina":
        return
    if table.sandbox == "unsandboxed":
        advice = "a proof that escapes the gate can do what you can; set verifier.sandbox = 'bubblewrap'"
        yield Finding("note", "sandbox", "none: verifier.sandbox = 'unsandboxed'", advice)
        return
    from fd_async.verifier.sandbox.probe import probe_sandbox
    from fd_async.verifier.sandbox.room import Room

    problem = probe_sandbox(Room(read=tuple(table.sandbox_read)))
    if problem is None:
        yield Finding("ok", "sandbox", "bubblewrap, tried from inside")
    elif table.sandbox == "bubblewrap_if_it_works" and table.backend == "minilean":
        yield Finding("note", "sandbox", "none", problem)
    else:
        yield Finding("missing", "sandbox", "does not work", problem)


PROBES: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (_backend, _search, _sandbox)
"""In the order of the report."""
