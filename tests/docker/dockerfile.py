"""Reads the Dockerfile and .dockerignore as Docker does: instructions with their lines, files of the context."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[2]


class Instruction(NamedTuple):
    """One instruction, its continuation lines joined."""

    line: int
    word: str
    text: str
    """What follows the word, white space of continuations as it was."""
    stage: str
    """Name of the stage, empty for the last."""

    @property
    def commands(self) -> list[str]:
        """The shell commands of a RUN, which `&&` joins."""
        return [" ".join(part.split()) for part in self.text.split("&&")]

    @property
    def argv(self) -> list[str]:
        """The words of CMD in JSON form, options before it left out."""
        return json.loads(self.text[self.text.index("[") :])


def instructions(path: Path = CHECKOUT / "Dockerfile") -> Iterator[Instruction]:
    """Parse a Dockerfile."""
    stage, words, start = "", "", 0
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.lstrip().startswith("#") or (not words and not line.strip()):
            continue
        start = start or number
        words += line.rstrip().removesuffix("\\")
        if line.rstrip().endswith("\\"):
            continue
        word, _, text = words.strip().partition(" ")
        if word == "FROM":
            named = re.search(r"\sAS\s+(\S+)", text)
            stage = named[1] if named else ""
        yield Instruction(start, word, text.strip(), stage)
        words, start = "", 0


def variables(of: list[Instruction]) -> dict[str, str]:
    """Return what ENV of the last stage sets, in the order of the file; `$PATH` stays as it is."""
    found: dict[str, str] = {}
    for instruction in of:
        if instruction.word == "ENV" and not instruction.stage:
            found |= dict(pair.split("=", 1) for pair in instruction.text.split())
    return found


def context(root: Path = CHECKOUT) -> list[str]:
    """List the files of the build context: the last pattern of .dockerignore that matches decides."""
    rules = [
        (not line.startswith("!"), _regex(line.removeprefix("!").strip("/")))
        for line in map(str.strip, (root / ".dockerignore").read_text().splitlines())
        if line and not line.startswith("#")
    ]
    found = []
    for folder, names, files in os.walk(root):
        place = Path(folder).relative_to(root)
        names[:] = sorted(name for name in names if not (place == Path() and name in (".git", ".venv", "runs")))
        found += [path for name in files if not _is_left_out(path := (place / name).as_posix(), rules)]
    # Not walked because they are large; no rule takes them back.
    assert all(_is_left_out(f"{name}/x", rules) for name in (".git", ".venv", "runs"))
    return sorted(found)


def _is_left_out(path: str, rules: list[tuple[bool, re.Pattern[str]]]) -> bool:
    """A pattern stands for a file and for everything below a folder of that name."""
    verdict = False
    for leaves_out, pattern in rules:
        if pattern.match(path):
            verdict = leaves_out
    return verdict


def _regex(pattern: str) -> re.Pattern[str]:
    """Translate a pattern of Go's filepath.Match with Docker's `**`, for the path or a folder above it."""
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return re.compile("".join(words.get(part, re.escape(part)) for part in parts) + "(?:/.*)?$")
