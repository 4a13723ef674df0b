"""The tutor's prompts and the message about an attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from fd_async.feedback.prompts import TUTOR_PROMPTS, compiler_output, cut_middle, user_message
from fd_async.types import Statement, Verdict
from tests.unit.feedback.conftest import STATEMENT, make_rollout

_PAPER = Path(__file__).parents[4] / "shared" / "paper.md"


@pytest.mark.skipif(not _PAPER.exists(), reason="the paper is not beside the project")
@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_tutor_prompts_are_the_papers_word_for_word(number: int) -> None:
    """Each prompt is the whole paragraph under its heading in appendix C.3, white space aside."""
    lines = [line.strip() for line in _PAPER.read_text(encoding="utf-8").splitlines() if line.strip()]
    heading = next(index for index, line in enumerate(lines) if line.startswith(f"- **Prompt ({number})"))
    assert TUTOR_PROMPTS[number] == " ".join(lines[heading + 1].split())


def test_prompts_grow_from_one_to_three() -> None:
    """(1) begins (2), (2) begins (3), and only (4) speaks of tools and of the token limit."""
    assert TUTOR_PROMPTS[2].startswith(TUTOR_PROMPTS[1])
    assert TUTOR_PROMPTS[3].startswith(TUTOR_PROMPTS[2])
    assert [("usage of tools" in prompt, "token limit" in prompt) for prompt in TUTOR_PROMPTS.values()] == [
        (False, False),
        (False, False),
        (False, False),
        (True, True),
    ]


def test_message_holds_statement_attempt_tool_output_and_final_output() -> None:
    """Everything that the paper's feedback model sees is there, in order, braces untouched."""
    message = user_message(make_rollout(), 60000)
    parts = [STATEMENT.formal_statement, "Let me check {x} first.", "[output of lean_check_file, failed]"]
    places = [message.index(part) for part in [*parts, "error: linarith failed", "<final_lean_output>\n3:2: error"]]
    assert places == sorted(places)


def test_message_never_holds_the_known_proof() -> None:
    """A tutor that saw the proof would hand it on."""
    proof = "by\n  exact_secret_proof"
    statement = Statement(name="t", formal_statement="theorem t : 1 = 1 :=", proof=proof)
    assert "exact_secret_proof" not in user_message(make_rollout(statement=statement), 60000)


def test_message_holds_the_header_that_the_statement_brings() -> None:
    """Opens change what names mean."""
    statement = Statement(name="t", formal_statement="theorem t : 1 = 1 :=", header="open Nat")
    assert "<formal_statement>\nopen Nat\ntheorem t" in user_message(make_rollout(statement=statement), 60000)


@pytest.mark.parametrize(
    ("end_reason", "said"), [("token_budget", "token limit was reached"), ("turn_budget", "limit of turns")]
)
def test_message_says_when_a_budget_ended_the_attempt(end_reason: str, said: str) -> None:
    """The note stands at the end of the attempt, and only then."""
    assert said in user_message(make_rollout(end_reason=end_reason), 60000).split("<final_lean_output>")[0]
    assert said not in user_message(make_rollout(), 60000)


def test_long_attempts_lose_their_middle_and_keep_the_note() -> None:
    """First and last characters stay, the loss is named, the other sections stay whole."""
    turn = make_rollout().turns[0]
    long = type(turn)(role="assistant", start=0, end=1, text="BEGIN" + "x" * 5000 + "END")
    message = user_message(make_rollout(turns=[long], end_reason="token_budget"), 1000)
    assert "BEGIN" in message
    assert "END" in message
    assert "characters left out" in message
    assert "token limit was reached" in message
    assert STATEMENT.formal_statement in message


def test_cut_keeps_exactly_the_allowed_characters() -> None:
    """No more and no fewer characters of the text remain, and short texts are left alone."""
    text = "".join(chr(97 + index % 26) for index in range(1001))
    cut = cut_middle(text, 101)
    head, tail = cut.split("\n[... 900 characters left out ...]\n")
    assert (len(head) + len(tail), text.startswith(head), text.endswith(tail)) == (101, True, True)
    assert cut_middle(text, 1001) == text


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict(kind="proved"), "The file compiles and proves the statement."),
        (Verdict(kind="missing"), "No Lean file was written."),
        (Verdict(kind="missing", reason="no file was written"), "no file was written"),
        (Verdict(kind="failed", reason="r", output="error: x"), "error: x"),
        (Verdict(kind="axiom", reason="uses sorryAx", output="warning: y"), "warning: y\nuses sorryAx"),
        (Verdict(kind="crash"), "The verdict is `crash`."),
    ],
)
def test_compiler_output_is_never_empty(verdict: Verdict, said: str) -> None:
    """Where Lean is silent a sentence says what happened; where a compiling file is refused the reason follows."""
    assert compiler_output(verdict) == said
