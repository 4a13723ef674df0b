"""The published files: all of MiniF2F and LeanWorkbook load byte for byte, fit a prompt, and their faults are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers, trainers

from fd_async.app.examining import Fault, examine_with
from fd_async.config.schema import Data, RolloutTable
from fd_async.data.sources import Sources
from fd_async.data.sources.canonical import split, statements_hash
from fd_async.data.sources.rows import make_statement, read_columns
from fd_async.data.sources.summary import num_bytes
from fd_async.rendering import Renderer
from fd_async.types import Statement
from fd_async.verifier.backend import LeanAnswer, LeanRequest
from fd_async.verifier.judge import Judge
from fd_async.verifier.messages import Message, Position
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS
from fd_async.verifier.verifier import Verifier
from tests.fakes.chat_tokenizer import QWEN3, QWEN3_5_CALLS, chat_tokenizer

ROOT = Path(__file__).parents[3]
SHARED = ROOT.parent / "shared" / "data"
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not SHARED.is_dir(), reason=f"there is no {SHARED}")]

DEEPSEEK = SHARED / "minif2f" / "deepseek_v1.5_minif2f_valid_test.jsonl"
YANGKY = SHARED / "minif2f" / "yangky11_lean4" / "MiniF2F"
WORKBOOK = SHARED / "leanworkbook_test_434.jsonl"
PUBLISHED = {
    f"{DEEPSEEK}#split=test": (244, "edb3e78d166e3e10c4bfab9250a5f7b59b11d0432cc49bf1d34ddc860b5f400b"),
    f"{DEEPSEEK}#split=valid": (244, "cf4c393d4963b73dc67f59bce5fe10ba63afbc3b9f8cf72da9cd1f995e4377b7"),
    f"{YANGKY}/Test": (244, "c6064cc811377785674081674f5a486bde8e98ee83df4b9aef6d0b4aba2c20e3"),
    f"{YANGKY}/Valid": (244, "04967b5ac177a1ad180f04d4770cca9d0547ec64dd391180685f3c7b276dc74d"),
    str(WORKBOOK): (434, "9d96294a672d337f4bcdcae861d82d6f66df0960d603cc51886936a0cd58a5aa"),
}
"""As docs/data.md prints them."""


@pytest.mark.parametrize("source", PUBLISHED, ids=lambda source: source.rpartition("/")[2])
def test_published_files_have_their_published_hashes(source: str) -> None:
    """Whatever is done with headers does not change what a version is called, unless they are taken away."""
    for headers in ("keep", "normalise"):
        rows = Sources(Data(headers=headers)).read(source)  # type: ignore[arg-type]
        assert (len(rows), statements_hash(rows)) == PUBLISHED[source]


def test_every_statement_is_kept_byte_for_byte() -> None:
    """Rows of JSONL files, and whole Lean files: header and statement together are the file."""
    for path in (DEEPSEEK, WORKBOOK):
        raw = [json.loads(line) for line in path.read_bytes().splitlines()]
        found = Sources(Data(headers="keep")).read(str(path))
        assert [(row["name"], row["formal_statement"], row.get("header", "")) for row in raw] == [
            (row.name, row.formal_statement, row.header) for row in found
        ]
    for part in ("Test", "Valid"):
        rows = {row.name: row for row in Sources(Data(headers="keep")).read(str(YANGKY / part))}
        paths = sorted((YANGKY / part).glob("*.lean"))
        assert len(paths) == len(rows) == 244
        for path in paths:
            assert (rows[path.stem].header + rows[path.stem].formal_statement).encode() == path.read_bytes()


def test_the_split_of_the_published_file_is_the_published_one() -> None:
    """A test vector for whoever recomputes the rule."""
    train, test = split(Sources(Data()).read(str(WORKBOOK)), 300, 100, "here")
    assert statements_hash(train) == "bfa1f09eb8b6e8a1113ea0ca0106584b0a7c05ddf4336ed6a3b71b8d11455f6e"
    assert statements_hash(test) == "00a08176ae40f8f33dc8a9be53a4bbb1a13b7dc7fdbb7bb37338475662050420"


def test_full_proofs_of_the_workbook_are_taken_apart() -> None:
    """Header, statement and proof of each; comments above the theorem do not make a header of its own."""
    columns = read_columns(["name=problem_id", "formal_statement=full_proof", "proof=full_proof"])
    headers = set()
    paths = sorted((SHARED / "kimina_match" / "input").glob("*.lean"))
    for path in paths:
        text, name = path.read_bytes().decode(), path.stem.removeprefix("goedel-")
        row = make_statement({"problem_id": name, "full_proof": text}, columns)
        assert text.startswith(row.header + row.formal_statement)
        assert row.formal_statement.startswith(f"theorem {name}")
        assert row.proof is not None
        assert (row.proof[:2], row.proof) == ("by", text[len(row.header + row.formal_statement) :].strip())
        headers.add(Sources(Data())._with_header(row).header)
    assert (len(paths), len(headers)) == (60, 1)


def trained_tokenizer(template: str) -> Any:
    """Train a byte-level BPE of 2,000 entries on this project's documentation: a 76th of Qwen's, none of it Lean's."""
    tokenizer = chat_tokenizer(template)
    words = tokenizer.backend_tokenizer
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, show_progress=False, initial_alphabet=alphabet)
    words.train_from_iterator([path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))], trainer)
    return tokenizer


@pytest.mark.parametrize(("template", "tool_format"), [(QWEN3, "qwen3"), (QWEN3_5_CALLS, "qwen3_5")])
def test_every_statement_fits_a_prompt(template: str, tool_format: Any) -> None:
    """No tokenizer needs more tokens than bytes, and a small one needs about half as many."""
    limit = RolloutTable().max_prompt_tokens
    rows = [row for source in (WORKBOOK, DEEPSEEK, YANGKY) for row in Sources(Data()).read(str(source))]
    assert (len(rows), limit) == (434 + 488 + 488, 2048)
    by_bytes, trained = (
        Renderer(tokenizer, tools=TOOL_SCHEMAS, tool_format=tool_format, thinking=True)
        for tokenizer in (chat_tokenizer(template), trained_tokenizer(template))
    )
    longest = sorted(rows, key=num_bytes)[-40:]
    assert len(by_bytes.student_prompt(longest[-1])) < limit + 100
    assert max(len(trained.student_prompt(row)) for row in longest) < 0.6 * limit


class RecordedLean:
    """Answers what a Lean answered once to the same file."""

    name, toolchain, root = "recorded", "recorded", "_root_."

    def __init__(self, recorded: dict[str, dict[str, Any]]) -> None:
        self._recorded = recorded

    async def run(self, request: LeanRequest) -> LeanAnswer:
        found = self._recorded[body_key(request.body)]
        messages = [
            Message(row["data"], row["severity"], Position(row["pos"]["line"], row["pos"]["column"]))
            for row in (*found["errors"], *found["warnings"])
        ]
        return LeanAnswer(messages, len(found["sorries"]), found["verify_time"], probe=[])

    def statistics(self) -> dict[str, float]:
        return {}


def body_key(text: str) -> str:
    """Name a statement whatever stands between it and `sorry`."""
    return "".join(text.split())


@pytest.fixture
def recorded() -> tuple[list[Statement], list[dict[str, Any]]]:
    """434 files `HEADER theorem ... := by sorry` with what a Lean said of each."""
    path = SHARED / "lean_traces" / "leanworkbook_statement_typecheck_434.json"
    rows = json.loads(path.read_bytes())
    parts = [row["code"].partition("theorem") for row in rows]
    return [
        Statement(name=row["name"], formal_statement=word + rest, header=header)
        for row, (header, word, rest) in zip(rows, parts, strict=True)
    ], rows


async def test_the_report_names_exactly_the_statements_that_lean_refused(
    recorded: tuple[list[Statement], list[dict[str, Any]]],
) -> None:
    """With Lean's words, in the order of the source; what Lean accepted is not in it."""
    statements, rows = recorded
    answers = {
        body_key(statement.formal_statement): row["compilation_result"]
        for statement, row in zip(statements, rows, strict=True)
    }
    verifier = Verifier(Judge(RecordedLean(answers), "", frozenset(), 2400))
    done: list[tuple[int, int]] = []
    faults: list[Fault] = await examine_with(verifier, statements, 16, lambda num, bad: done.append((num, bad)))
    refused = [row for row in rows if not row["compilation_result"]["pass"]]
    assert [fault.name for fault in faults] == [row["name"] for row in refused]
    assert (len(statements), len(faults), done[-1]) == (434, 90, (434, 90))
    for fault, row in zip(faults, refused, strict=True):
        assert fault.kind == "bad_statement"
        first = " ".join(row["compilation_result"]["errors"][0]["data"].split())[:60]
        assert first in " ".join(fault.output.split()) or "statement" in fault.reason
