"""The rungs that need no Lean: what is refused, with which reason, and what passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_async.types import Statement, Verdict
from fd_async.verifier.judge import prepare
from fd_async.verifier.source.gate import FORBIDDEN_COMMANDS
from fd_async.verifier.source.lexer import LexError, lex
from fd_async.verifier.source.reconstruct import read_statement
from tests.unit.verifier.conftest import STATEMENT
from tests.unit.verifier.reference_lexer import words_in_code

DATA = Path(__file__).parents[4] / "shared" / "data"


def test_opens_and_options_of_the_header_may_be_repeated() -> None:
    """A model that copies the given header is not refused; one that adds to it is told what."""
    header = "import Mathlib\nset_option autoImplicit false\nopen BigOperators Real Nat\nopen scoped Topology"
    good = f"{header}\n\ntheorem foo (p q : Prop) (hp : p) : p ∨ q := Or.inl hp"
    assert not isinstance(prepare(good, STATEMENT, header), Verdict)
    bad = prepare(good.replace("false", "true"), STATEMENT, header)
    assert isinstance(bad, Verdict)
    assert "autoImplicit" in bad.reason
    more = prepare(good.replace("Nat\n", "Nat Finset\n"), STATEMENT, header)
    assert isinstance(more, Verdict)
    assert "`open Finset` is not part of the given header" in more.reason


@pytest.mark.skipif(not DATA.is_dir(), reason="the recorded statements (../shared/data) are not here")
def test_recorded_statements_can_be_read_and_pass_the_gate() -> None:
    """434 LeanWorkbook statements: each is taken apart, and repeating it is no offence."""
    rows = (DATA / "leanworkbook_test_434.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, rows):
        statement = Statement(name=row["name"], formal_statement=row["formal_statement"])
        code = f"{read_statement(statement).declaration} by\n  nlinarith"
        assert not isinstance(prepare(code, statement, ""), Verdict), row["name"]
    assert len(rows) == 434


@given(st.text(alphabet=st.sampled_from(list("ab1.'!?\"\\-/ \n(«»:=@#[]{}<>λ₀é⁻¹")), max_size=40))
def test_tokens_cover_the_text_in_order(text: str) -> None:
    """Whatever the input, the lexer ends, and its tokens are pieces of the text that never overlap."""
    try:
        tokens = lex(text)
    except LexError as error:
        position = error.position
        assert 0 <= position <= len(text)
        return
    position = 0
    for token in tokens:
        assert token.start >= position
        assert token.text == text[token.start : token.end]
        position = token.end


HONEST_PIECES = [
    "theorem h : True := trivial",
    "by",
    "exact Or.inl hp",
    "simp [h₁.1, ← h']",
    "x.axiom",
    "n ! + 1.5e3",
    "⟨a, b⟩",
]
HONEST_PIECES += [
    "'a'",
    "f '' s",
    "⁻¹' t",
    "sᶜ",
    "Aᵀ",
    "0b1",
    "0x1F",
    "1_000",
    "x.1",
    "ℝ≥0",
    "αβ_γ₀",
    "|x|",
    "h!",
    "a - b / c",
    "'\\n'",
]
FORBIDDEN_PIECES = ["axiom", "instance", "run_cmd", "macro_rules", "open_ axiom", "end"]
MARKS = ["/-", "-/", "--", "/--", "/-!", '"', '\\"', "'", "\\", ".", "«", "r#", "{", "(", ")", "-", "/", "|", "!"]
MIXED = st.lists(
    st.tuples(st.sampled_from(HONEST_PIECES + 3 * FORBIDDEN_PIECES + 2 * MARKS), st.sampled_from(["", " ", "\n"])),
    max_size=14,
).map(lambda parts: "".join(piece + gap for piece, gap in parts))


@given(MIXED)
@settings(max_examples=250, deadline=None)
def test_a_lexer_written_apart_finds_the_same_words(text: str) -> None:
    """Whatever is mixed into comments, strings and code: what is read as code is the same, or the file is refused."""
    try:
        tokens = lex(text)
    except LexError:
        return
    assert [token.text for token in tokens if token.kind == "word"] == words_in_code(text)


@given(MIXED)
@settings(max_examples=150, deadline=None)
def test_no_forbidden_word_in_code_passes(text: str) -> None:
    """What the other lexer calls code decides."""
    result = prepare(text, STATEMENT, "")
    if FORBIDDEN_COMMANDS.intersection(words_in_code(text)):
        assert isinstance(result, Verdict)
        assert result.kind == "forbidden"


def test_words_in_comments_and_strings_are_no_code() -> None:
    """The other lexer, on texts with known answers."""
    assert words_in_code('a /- b /- c -/ d -/ e -- f\n"g \\" h" i') == ["a", "e", "i"]
    assert words_in_code("'a'axiom x.axiom 1.5axiom s'axiom") == ["axiom", "x.axiom", "axiom", "s'axiom"]


@pytest.mark.parametrize(
    "unit", ["/-", "(", "a ", "#s + ", "'a'", "1 ", "open ", "@[", "theorem a ", "-- \n", "let ", '"']
)
def test_long_files_of_one_kind_end_in_a_verdict(unit: str) -> None:
    """As long as a file may be, and as monotonous: no recursion, and no work that grows with the square."""
    text = f"{STATEMENT.formal_statement.removesuffix('sorry')}x {unit * (60_000 // len(unit))}"
    result = prepare(text, STATEMENT, "")
    assert isinstance(result, Verdict) == (unit not in ("a ", "#s + ", "'a'", "1 ", "-- \n", "let ", "theorem a ", '"'))
