"""ripgrep behind a fixed argv."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from fd_async.errors import PreflightError
from fd_async.verifier.search import Search, open_search
from tests.unit.verifier.conftest import fake_config

pytestmark = pytest.mark.anyio

HAS_RG = bool(shutil.which("rg", path=str(Path(sys.executable).parent)) or shutil.which("rg"))
needs_rg = pytest.mark.skipif(not HAS_RG, reason="ripgrep is not installed")


@pytest.fixture
def mathlib(tmp_path: Path) -> Path:
    """A small library with a secret beside it."""
    folder = tmp_path / "mathlib"
    (folder / "Mathlib").mkdir(parents=True)
    for name in "BA":
        (folder / "Mathlib" / f"{name}.lean").write_text("theorem add_comm' : x\n" * 30 + "lemma é₀ : y\n")
    (folder / "notes.txt").write_text("theorem add_comm'")
    (folder / ".gitignore").write_text("*")
    (tmp_path / "secret.lean").write_text("secret")
    return folder


def searching(folder: Path) -> Search:
    return open_search(fake_config(search_dir=str(folder)))


@needs_rg
async def test_matches_come_with_file_and_line_in_a_fixed_order(mathlib: Path) -> None:
    """Sorted by path, a few per file, Lean files only, ignore files ignored."""
    found, text = await searching(mathlib).find(r"add_comm'")
    assert found
    lines = text.splitlines()
    assert lines[0] == "Mathlib/A.lean:1:theorem add_comm' : x"
    assert [line.split(":")[0] for line in lines] == ["Mathlib/A.lean"] * 5 + ["Mathlib/B.lean"] * 5


@needs_rg
async def test_an_invalid_expression_is_said_to_be_invalid(mathlib: Path) -> None:
    """Not "no matches"."""
    found, text = await searching(mathlib).find("(")
    assert not found
    assert text.startswith("Invalid regular expression")
    assert "unclosed group" in text


@needs_rg
async def test_no_match_is_said(mathlib: Path) -> None:
    """With the pattern, so that the model sees what was looked for."""
    assert await searching(mathlib).find("zzz+") == (True, "No matches found for pattern: zzz+")


@needs_rg
@pytest.mark.parametrize("pattern", ["--files", "-f../secret.lean", "--pre=cat", "-g../*", "secret"])
async def test_a_pattern_is_never_an_option_and_never_leaves_the_folder(mathlib: Path, pattern: str) -> None:
    """Whatever it looks like, it is a pattern."""
    _, text = await searching(mathlib).find(pattern)
    assert text == f"No matches found for pattern: {pattern}"


@needs_rg
async def test_output_is_bounded(mathlib: Path) -> None:
    """Many files with long lines end at the limit, and the rest is said to exist."""
    for number in range(40):
        (mathlib / f"F{number}.lean").write_text("y" * 100_000 + "\n")
    _, text = await searching(mathlib).find("y")
    assert text.endswith("(more matches not shown)")
    assert len(text.splitlines()) == 21
    assert max(map(len, text.splitlines())) < 400


@pytest.mark.parametrize("pattern", ["", "x" * 501, "a\0b"])
async def test_impossible_patterns_are_refused(mathlib: Path, pattern: str) -> None:
    """Before any process starts."""
    found, text = await Search(mathlib).find(pattern)
    assert not found
    assert "1 to 500 characters" in text


async def test_a_slow_search_is_ended(tmp_path: Path) -> None:
    """The deadline kills it, and the model is told."""
    slow = tmp_path / "rg"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    found, text = await Search(tmp_path, str(slow), 0.1).find("x")
    assert not found
    assert "longer than 0.1 s" in text


async def test_without_mathlib_the_tool_says_so() -> None:
    """The tiny world has none."""
    found, text = await open_search(fake_config(backend="minilean")).find("x")
    assert not found
    assert text.startswith("No Mathlib is installed here")


def test_a_missing_folder_or_program_is_found_at_the_start(mathlib: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where there is something to search."""
    with pytest.raises(PreflightError, match=r"verifier\.search_dir"):
        searching(mathlib / "none")
    monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
    open_search(fake_config())
    with pytest.raises(PreflightError, match="pip install ripgrep"):
        searching(mathlib)
