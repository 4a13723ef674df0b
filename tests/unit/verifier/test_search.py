"""ripgrep behind a fixed argv."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import anyio
import pytest

from fd_async.errors import PreflightError, VerifierError
from fd_async.verifier.tools.search import Search, open_search
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
@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("*a", "repetition operator"),
        ("[z-a]", "invalid character class range"),
        ("(?=a)", "look-around"),
        (r"(a)\1", "backreferences"),
        (r"\p{Nonsense}", "Unicode property"),
        (r"\C", "escape sequence"),
        ("a\nb", "not allowed"),
        (r"\w{1000}{1000}", "size limit"),
        ("(" * 499, "nest|unclosed"),
    ],
)
async def test_every_way_to_be_invalid_is_told_as_such(mathlib: Path, pattern: str, words: str) -> None:
    """Also what is only too large; without advice about options that the model does not have."""
    found, text = await searching(mathlib).find(pattern)
    assert not found
    assert text.startswith("Invalid regular expression")
    assert re.search(words, text)
    assert "--" not in text


@needs_rg
@pytest.mark.parametrize("pattern", ["a\ud800b", "\udcff"])
async def test_a_pattern_that_no_program_can_be_given_is_refused(mathlib: Path, pattern: str) -> None:
    """Half a character would end the rollout with a traceback."""
    found, text = await searching(mathlib).find(pattern)
    assert (found, "valid Unicode" in text) == (False, True)


@needs_rg
async def test_binary_files_huge_files_and_links_are_left_out(mathlib: Path) -> None:
    """None of them is Mathlib."""
    (mathlib / "Binary.lean").write_bytes(b"\0needle\n")
    (mathlib / "Huge.lean").write_bytes(b"needle\n" + b"x" * (5 << 20))
    (mathlib / "Link.lean").symlink_to("../secret.lean")
    (mathlib / "Out").symlink_to("..")
    (mathlib / "Fine.lean").write_bytes(b"\xff needle\n")
    search = searching(mathlib)
    assert (await search.find("needle"))[1] == "Fine.lean:1:\ufffd needle"
    assert (await search.find("secret"))[1].startswith("No matches")


@needs_rg
async def test_unreadable_files_are_no_invalid_pattern(mathlib: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ripgrep then ends like after an invalid one, but says nothing."""
    assert (await scripted(mathlib, "exit 2").find("x"))[1] == "No matches found for pattern: x"


def scripted(folder: Path, script: str, timeout_s: float = 10.0) -> Search:
    program = folder / "rg"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return Search(folder, str(program), timeout_s)


@pytest.mark.parametrize("script", ["exit 3", "kill -9 $$", "echo 'x: no such (os error 2)' >&2; exit 2", "exit 126"])
async def test_a_search_that_breaks_is_not_the_models_fault(tmp_path: Path, script: str) -> None:
    """It ends the rollout as infrastructure, and is not remembered."""
    search = scripted(tmp_path, script)
    with pytest.raises(VerifierError, match="ripgrep ended with"):
        await search.find("x")
    scripted(tmp_path, "echo ./a.lean:1:x")
    assert await search.find("x") == (True, "a.lean:1:x")


async def test_a_program_or_folder_that_is_gone_is_not_the_models_fault(tmp_path: Path) -> None:
    """The disk was unmounted, the program removed."""
    for search in (Search(tmp_path, str(tmp_path / "none")), Search(tmp_path / "none", "rg")):
        with pytest.raises(VerifierError, match="rg_in_mathlib"):
            await search.find("x")


async def test_ripgrep_gets_no_secrets_no_input_and_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it reads or does, there is nothing to take."""
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("RIPGREP_CONFIG_PATH", "/evil")
    found, text = await scripted(tmp_path, "env; pwd; cat; ulimit -t; ulimit -v; ulimit -f").find("x")
    assert found
    lines = text.splitlines()
    assert {line.split("=")[0] for line in lines if "=" in line} <= {"PATH", "PWD", "OLDPWD", "_", "SHLVL"}
    assert lines[-4:] == [str(tmp_path), "11", str(4 << 20), "2048"]


async def test_a_search_and_all_it_started_end_together(tmp_path: Path) -> None:
    """The deadline kills the group, not only the first process."""
    os.mkfifo(tmp_path / "alive")
    search = scripted(tmp_path, f"sleep 20 > {tmp_path}/alive & wait", 2.0)

    def read_to_the_end() -> bytes:
        return (tmp_path / "alive").read_bytes()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(search.find, "x")
            assert await anyio.to_thread.run_sync(read_to_the_end) == b""  # nobody holds its other end any more


async def test_many_searches_run_a_few_at_a_time_and_each_gets_its_answer(tmp_path: Path) -> None:
    """Also when they are the same; an answer is computed again only where none is known."""
    search = scripted(tmp_path, f"echo run >> {tmp_path}/runs; echo ./a.lean")
    running: list[int] = []
    most = 0
    original = search._run

    async def watched(pattern: str, folder: Path) -> tuple[bool, str]:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        try:
            return await original(pattern, folder)
        finally:
            running.pop()

    search._run = watched  # type: ignore[method-assign]
    answers: list[bool] = []

    async def one(number: int) -> None:
        answers.append((await search.find(f"p{number % 32}"))[0])

    async with anyio.create_task_group() as tasks:
        for number in range(64):
            tasks.start_soon(one, number)
    assert answers == [True] * 64
    assert most == 4
    runs = len((tmp_path / "runs").read_text().splitlines())
    await search.find("p1")
    assert len((tmp_path / "runs").read_text().splitlines()) == runs


async def test_waiting_too_long_for_a_turn_is_not_the_models_fault(tmp_path: Path) -> None:
    """The machine is overloaded; a simpler pattern would not help."""
    search = scripted(tmp_path, "sleep 60", 0.02)
    for _ in range(4):
        await search._limit.acquire()
    with pytest.raises(VerifierError, match=r"no turn within 0\.2 s.*verifier\.search_timeout_s"):
        await search.find("x")


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
