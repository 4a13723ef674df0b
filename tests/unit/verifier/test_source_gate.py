"""The rungs that need no Lean: what is refused, with which reason, and what passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fd_async.types import Statement, Verdict
from fd_async.verifier.judge import prepare
from fd_async.verifier.lexer import LexError, lex
from fd_async.verifier.reconstruct import read_statement
from tests.unit.verifier.conftest import STATEMENT
from tests.unit.verifier.exploits import CHANGED, FORBIDDEN
from tests.unit.verifier.honest import HONEST

DATA = Path(__file__).parents[4] / "shared" / "data"


@pytest.mark.parametrize(("what", "reason", "code"), FORBIDDEN, ids=[row[0] for row in FORBIDDEN])
def test_what_no_honest_proof_needs_is_refused_with_its_reason(what: str, reason: str, code: str) -> None:
    """Every entry of the list ends at the gate, before Lean."""
    verdict = prepare(code, STATEMENT, "")
    assert isinstance(verdict, Verdict), what
    assert verdict.kind == "forbidden"
    assert reason in verdict.reason
    assert "error: " in verdict.output


@pytest.mark.parametrize(("what", "reason", "code"), CHANGED, ids=[row[0] for row in CHANGED])
def test_another_statement_is_never_ours(what: str, reason: str, code: str) -> None:
    """The statement must stand there token for token, under its own name, with nothing in front."""
    result = prepare(code, STATEMENT, "")
    if isinstance(result, Verdict):
        assert result.kind == "statement_changed"
        assert reason in result.reason
    else:
        assert reason == "does not state", what
        assert not result.rebuilt.has_theorem


@pytest.mark.parametrize("code", HONEST.values(), ids=HONEST.keys())
def test_honest_proofs_pass(code: str) -> None:
    """Varied style, comments and names are no reason to refuse a proof."""
    result = prepare(code, STATEMENT, "")
    assert not isinstance(result, Verdict), result
    assert result.rebuilt.has_theorem
    assert "theorem foo (p q : Prop) (hp : p) : p ∨ q :=" in result.rebuilt.body
    assert not result.has_sorry


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


@pytest.mark.skipif(not DATA.is_dir(), reason="the recorded checks (../shared/data) are not here")
def test_recorded_proofs_pass_the_gate() -> None:
    """No proof that a real Lean accepted in the recorded runs is refused before Lean sees it."""
    refused, seen = [], 0
    for line in (DATA / "lean_traces" / "minif2f_rounds_0_5.jsonl").read_text(encoding="utf-8").splitlines()[::4]:
        row = json.loads(line)
        if not row["complete"]:
            continue
        head, _, rest = row["code"].partition(f"theorem {row['name']}")
        statement = Statement(name=row["name"], formal_statement=f"theorem {row['name']}{_signature(rest)} := by")
        result = prepare(row["code"], statement, _header(head))
        seen += 1
        if isinstance(result, Verdict):
            refused.append((row["name"], result.reason))
    assert refused == []
    assert seen > 100


@pytest.mark.skipif(not DATA.is_dir(), reason="the recorded statements (../shared/data) are not here")
def test_recorded_statements_can_be_read_and_pass_the_gate() -> None:
    """434 LeanWorkbook statements: each is taken apart, and repeating it is no offence."""
    rows = (DATA / "leanworkbook_test_434.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, rows):
        statement = Statement(name=row["name"], formal_statement=row["formal_statement"])
        code = f"{read_statement(statement).declaration} by\n  nlinarith"
        assert not isinstance(prepare(code, statement, ""), Verdict), row["name"]
    assert len(rows) == 434


def _signature(rest: str) -> str:
    return rest[: rest.index(":= by")].rstrip()


def _header(head: str) -> str:
    return head.partition("/--")[0]


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
