"""The three tools as a model meets them."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from fd_async.errors import VerifierError
from fd_async.types import Statement, ToolCall, ToolState, Verdict
from fd_async.verifier.judge import Judge
from fd_async.verifier.tools.search import Search
from fd_async.verifier.tools.toolbox import Toolbox
from fd_async.verifier.verifier import Verifier
from tests.unit.verifier.conftest import STATEMENT, ScriptedLean, proof

pytestmark = pytest.mark.anyio


class RecordingVerifier:
    """Answers each file with the next verdict of a list and remembers what it was asked."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = list(verdicts)
        self.codes: list[str] = []
        self.callers: list[str] = []

    async def check(self, code: str, statement: Statement, *, caller: str = "") -> Verdict:
        self.codes.append(code)
        self.callers.append(caller)
        return self.verdicts.pop(0) if self.verdicts else Verdict(kind="proved")


def toolbox(*verdicts: Verdict, output_chars: int = 200) -> tuple[Toolbox, RecordingVerifier]:
    verifier = RecordingVerifier(*verdicts)
    return Toolbox(STATEMENT, verifier, Search(None), output_chars), verifier  # type: ignore[arg-type]


async def use(box: Toolbox, tool: str, **arguments: Any) -> tuple[bool, str]:
    result = await box.call(ToolCall(name=tool, arguments=arguments))
    return result.ok, result.text


async def test_the_verifier_learns_who_asks() -> None:
    """Without it the queue could not be fair between rollouts."""
    verifier = RecordingVerifier()
    box = Toolbox(STATEMENT, verifier, Search(None), 200, caller="train-7")  # type: ignore[arg-type]
    await use(box, "lean_write_file", file_name="a.lean", code="x")
    await use(box, "lean_check_file", file_name="a.lean")
    await box.final_verdict()
    assert verifier.callers == ["train-7", "train-7"]


async def test_write_check_and_final_verdict() -> None:
    """The texts that a model is trained on are exactly these."""
    box, verifier = toolbox()
    assert await use(box, "lean_write_file", file_name="a.lean", code=proof("exact h")) == (True, "Wrote a.lean.")
    assert await use(box, "lean_check_file", file_name="a.lean") == (True, "a.lean compiles and proves the theorem.")
    assert (await box.final_verdict()).is_proved
    assert box.state.files["a.lean"] == proof("exact h") == verifier.codes[0]


async def test_a_failed_check_answers_with_the_compilers_output() -> None:
    """Nothing is added to it; feedback can be made of it later."""
    failed = Verdict(kind="failed", reason="r", output="2:2: error: unsolved goals\n⊢ p")
    box, _ = toolbox(failed)
    await use(box, "lean_write_file", file_name="a.lean", code="x")
    result = await box.call(ToolCall(name="lean_check_file", arguments={"file_name": "a.lean"}))
    assert (result.ok, result.text, result.verdict) == (False, failed.output, failed)
    assert box.last_output == failed.output


async def test_infrastructure_is_told_plainly_and_judged_again() -> None:
    """The model is not blamed, and the final verdict is a new try."""
    box, verifier = toolbox(Verdict(kind="infrastructure", reason="no worker"))
    await use(box, "lean_write_file", file_name="a.lean", code="x")
    ok, text = await use(box, "lean_check_file", file_name="a.lean")
    assert (ok, "was not judged" in text) == (False, True)
    assert (await box.final_verdict()).is_proved
    assert verifier.codes == ["x", "x"]


async def test_the_last_written_file_counts() -> None:
    """Not the last checked one, and not the best one."""
    box, verifier = toolbox()
    await use(box, "lean_write_file", file_name="a.lean", code="one")
    await use(box, "lean_write_file", file_name="b.lean", code="two")
    await use(box, "lean_check_file", file_name="a.lean")
    await box.final_verdict()
    assert verifier.codes == ["one", "two"]


async def test_nothing_written_is_missing() -> None:
    """A rollout that never wrote has a verdict all the same."""
    box, _ = toolbox()
    assert (await box.final_verdict()).kind == "missing"


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
        "а.lean",  # Cyrillic
        "a\u200b.lean",
        "a．lean",  # a full-width dot
        "a∕b.lean",  # a division slash
        "..\\a.lean",
        "a.lean/",
        "a\0.lean",
        "\ud800.lean",
        "٣.lean",  # a digit, but not of ASCII
        "lakefile.lean",
        "LakeFile.lean",
        "a.LEAN",
        "-a.lean",
        "a" * 65 + ".lean",
        "",
    ],
)
async def test_only_flat_names_are_written(name: str) -> None:
    """What a resume or a reader of the ledger writes out again must not lead anywhere."""
    box, _ = toolbox()
    ok, text = await use(box, "lean_write_file", file_name=name, code="x")
    assert not ok
    assert text.startswith("Invalid file name")
    text.encode()
    assert box.state.files == {}


@pytest.mark.parametrize(
    "code", ["", "x", "a\r\nb\r", "\ufeffx", "é ∀ 𝔸 \u202e", "\u2028\x0b\x1b[0m", "a\u0301", "x" * 9999]
)
async def test_the_bytes_judged_are_the_bytes_written(lean: ScriptedLean, code: str) -> None:
    """By the hash in the verdict: no line ending, mark or accent is changed on the way."""
    verifier = Verifier(Judge(lean, "", frozenset(), 200))
    box = Toolbox(STATEMENT, verifier, Search(None), 200)
    await use(box, "lean_write_file", file_name="a.lean", code=code)
    verdict = (await box.call(ToolCall(name="lean_check_file", arguments={"file_name": "a.lean"}))).verdict
    assert box.state.files == {"a.lean": code}
    assert verdict is not None
    assert verdict.file_hash == hashlib.sha256(code.encode()).hexdigest()


@pytest.mark.parametrize("code", ["a\ud800b", "\udcff", "a\0b", "\udc80" * 10])
async def test_text_that_has_no_bytes_is_refused(code: str) -> None:
    """It could not be judged and written as the same thing; the file before it stays the answer."""
    box, verifier = toolbox()
    await use(box, "lean_write_file", file_name="a.lean", code="first")
    ok, text = await use(box, "lean_write_file", file_name="a.lean", code=code)
    assert (ok, "not valid in a Lean file" in text) == (False, True)
    text.encode()
    await box.final_verdict()
    assert verifier.codes == ["first"]
    assert box.state.files == {"a.lean": "first"}


async def test_the_size_of_all_files_together_is_bounded() -> None:
    """Writing one again counts once."""
    box, _ = toolbox()
    big = "∀" * 60_000
    for _ in range(9):
        assert (await use(box, "lean_write_file", file_name="a.lean", code=big))[0]
    answers = [await use(box, "lean_write_file", file_name=f"b{n}.lean", code=big) for n in range(30)]
    assert sum(ok for ok, _ in answers) == 22
    assert "too long" in answers[-1][1]
    assert sum(len(code.encode()) for code in box.state.files.values()) <= 4 << 20


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
async def test_wrong_calls_are_explained(call: ToolCall, words: str) -> None:
    """The model reads what was wrong and can try again."""
    box, _ = toolbox()
    result = await box.call(call)
    assert not result.ok
    assert words in result.text


async def test_every_answer_fits_the_models_budget() -> None:
    """Also an error about a long argument."""
    box, _ = toolbox(Verdict(kind="failed", output="x" * 10_000), output_chars=80)
    await use(box, "lean_write_file", file_name="a.lean", code="x")
    for tool, arguments in (("lean_check_file", {"file_name": "a.lean"}), ("x" * 500, {}), ("lean_check_file", {})):
        _, text = await use(box, tool, **arguments)
        assert len(text) <= 80


async def test_the_number_of_files_is_bounded() -> None:
    """A loop of writes fills no memory."""
    box, _ = toolbox()
    answers = [await use(box, "lean_write_file", file_name=f"f{n}.lean", code="x") for n in range(70)]
    assert sum(ok for ok, _ in answers) == 64
    assert "Too many files" in answers[-1][1]


async def test_another_toolbox_goes_on_where_one_was_left() -> None:
    """Files, the last one written, what was judged and what the compiler said are all there."""
    box, _ = toolbox(Verdict(kind="failed", reason="r", output="error: no"))
    await use(box, "lean_write_file", file_name="b.lean", code="second")
    await use(box, "lean_write_file", file_name="a.lean", code="⊢ first, again")
    await use(box, "lean_check_file", file_name="b.lean")
    later, verifier = toolbox()
    later.restore(box.state)
    assert later.state == box.state
    assert (later.last_judged, later.last_output) == ("second", "error: no")
    assert later.state.files["a.lean"] == "⊢ first, again"
    await later.final_verdict()
    assert verifier.codes == ["⊢ first, again"]


async def test_what_the_ledger_holds_is_not_trusted_with_the_file_system() -> None:
    """A name that no tool would have written ends the attempt."""
    box, _ = toolbox()
    with pytest.raises(VerifierError, match="a file of the ledger is refused"):
        box.restore(ToolState(files={"../x.lean": "y"}))
