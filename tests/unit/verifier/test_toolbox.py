"""The three tools as a model meets them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fd_async.errors import VerifierError
from fd_async.types import Statement, ToolCall, Verdict
from fd_async.verifier.search import Search
from fd_async.verifier.toolbox import Toolbox
from tests.unit.verifier.conftest import STATEMENT, proof

pytestmark = pytest.mark.anyio


class RecordingVerifier:
    """Answers each file with the next verdict of a list and remembers what it was asked."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.codes: list[str] = []

    async def check(self, code: str, statement: Statement) -> Verdict:
        self.codes.append(code)
        return self.verdicts.pop(0) if self.verdicts else Verdict(kind="proved")


def toolbox(folder: Path, *verdicts: Verdict, output_chars: int = 200) -> tuple[Toolbox, RecordingVerifier]:
    verifier = RecordingVerifier(*verdicts)
    return Toolbox(folder / "rollout", STATEMENT, verifier, Search(None), output_chars), verifier  # type: ignore[arg-type]


async def use(box: Toolbox, tool: str, **arguments: Any) -> tuple[bool, str]:
    result = await box.call(ToolCall(name=tool, arguments=arguments))
    return result.ok, result.text


async def test_write_check_and_final_verdict(tmp_path: Path) -> None:
    """The texts that a model is trained on are exactly these."""
    box, verifier = toolbox(tmp_path)
    assert await use(box, "lean_write_file", file_name="a.lean", code=proof("exact h")) == (True, "Wrote a.lean.")
    assert await use(box, "lean_check_file", file_name="a.lean") == (True, "a.lean compiles and proves the theorem.")
    assert (await box.final_verdict()).is_proved
    assert (tmp_path / "rollout" / "a.lean").read_text() == proof("exact h") == verifier.codes[0]


async def test_a_failed_check_answers_with_the_compilers_output(tmp_path: Path) -> None:
    """Nothing is added to it; feedback can be made of it later."""
    failed = Verdict(kind="failed", reason="r", output="2:2: error: unsolved goals\n⊢ p")
    box, _ = toolbox(tmp_path, failed)
    await use(box, "lean_write_file", file_name="a.lean", code="x")
    result = await box.call(ToolCall(name="lean_check_file", arguments={"file_name": "a.lean"}))
    assert (result.ok, result.text, result.verdict) == (False, failed.output, failed)
    assert box.last_output == failed.output


async def test_infrastructure_is_told_plainly_and_judged_again(tmp_path: Path) -> None:
    """The model is not blamed, and the final verdict is a new try."""
    box, verifier = toolbox(tmp_path, Verdict(kind="infrastructure", reason="no worker"))
    await use(box, "lean_write_file", file_name="a.lean", code="x")
    ok, text = await use(box, "lean_check_file", file_name="a.lean")
    assert (ok, "was not judged" in text) == (False, True)
    assert (await box.final_verdict()).is_proved
    assert verifier.codes == ["x", "x"]


async def test_what_was_written_is_what_is_judged(tmp_path: Path) -> None:
    """Changing the file on disk between write and check changes nothing."""
    box, verifier = toolbox(tmp_path)
    await use(box, "lean_write_file", file_name="a.lean", code="honest")
    (tmp_path / "rollout" / "a.lean").write_text("forged")
    await use(box, "lean_check_file", file_name="a.lean")
    assert verifier.codes == ["honest"]


async def test_the_last_written_file_counts(tmp_path: Path) -> None:
    """Not the last checked one, and not the best one."""
    box, verifier = toolbox(tmp_path)
    await use(box, "lean_write_file", file_name="a.lean", code="one")
    await use(box, "lean_write_file", file_name="b.lean", code="two")
    await use(box, "lean_check_file", file_name="a.lean")
    await box.final_verdict()
    assert verifier.codes == ["one", "two"]


async def test_nothing_written_is_missing(tmp_path: Path) -> None:
    """A rollout that never wrote has a verdict all the same, and no folder."""
    box, _ = toolbox(tmp_path)
    assert (await box.final_verdict()).kind == "missing"
    assert not (tmp_path / "rollout").exists()


@pytest.mark.parametrize(
    "name",
    [
        "../a.lean",
        "/tmp/a.lean",
        "a/b.lean",
        "..lean",
        ".lean",
        "a.txt",
        "a.lean\n",
        "a b.lean",
        "é.lean",
        "a" * 65 + ".lean",
        "",
    ],
)
async def test_only_flat_names_are_written(tmp_path: Path, name: str) -> None:
    """No path leaves the rollout's folder."""
    box, _ = toolbox(tmp_path)
    ok, text = await use(box, "lean_write_file", file_name=name, code="x")
    assert not ok
    assert text.startswith("Invalid file name")
    assert os.listdir(tmp_path) == []


async def test_links_are_never_followed(tmp_path: Path) -> None:
    """A link in the folder is an error of the machine, not a way out."""
    box, _ = toolbox(tmp_path)
    (tmp_path / "rollout").mkdir()
    (tmp_path / "victim").write_text("safe")
    (tmp_path / "rollout" / "a.lean").symlink_to(tmp_path / "victim")
    with pytest.raises(VerifierError, match=r"cannot write a\.lean"):
        await use(box, "lean_write_file", file_name="a.lean", code="x")
    assert (tmp_path / "victim").read_text() == "safe"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (ToolCall(name="rm", arguments={}), "Unknown tool 'rm'. The tools are: lean_write_file"),
        (ToolCall(name="lean_write_file", arguments={"file_name": "a.lean"}), "argument 'code' is missing"),
        (ToolCall(name="lean_write_file", arguments={"file_name": 3, "code": ""}), "'file_name' must be a string"),
        (ToolCall(name="lean_check_file", arguments={"file_name": "a.lean", "x": 1}), "unknown argument 'x'"),
        (ToolCall(name="lean_check_file", arguments={"file_name": "a.lean"}), "There is no file 'a.lean'"),
        (ToolCall(name="", error="The tool call is not valid JSON."), "not valid JSON"),
        (ToolCall(name="rg_in_mathlib", arguments={"pattern": "x"}), "No Mathlib is installed"),
        (ToolCall(name="lean_write_file", arguments={"file_name": "a.lean", "code": "x" * 200_001}), "too long"),
    ],
)
async def test_wrong_calls_are_explained(tmp_path: Path, call: ToolCall, words: str) -> None:
    """The model reads what was wrong and can try again."""
    box, _ = toolbox(tmp_path)
    result = await box.call(call)
    assert not result.ok
    assert words in result.text


async def test_every_answer_fits_the_models_budget(tmp_path: Path) -> None:
    """Also an error about a long argument."""
    box, _ = toolbox(tmp_path, Verdict(kind="failed", output="x" * 10_000), output_chars=80)
    await use(box, "lean_write_file", file_name="a.lean", code="x")
    for tool, arguments in (("lean_check_file", {"file_name": "a.lean"}), ("x" * 500, {}), ("lean_check_file", {})):
        _, text = await use(box, tool, **arguments)
        assert len(text) <= 80


async def test_the_number_of_files_is_bounded(tmp_path: Path) -> None:
    """A loop of writes does not fill the disk."""
    box, _ = toolbox(tmp_path)
    answers = [await use(box, "lean_write_file", file_name=f"f{n}.lean", code="x") for n in range(70)]
    assert sum(ok for ok, _ in answers) == 64
    assert "Too many files" in answers[-1][1]
