"""Compiler output as the model reads it, and what is read out of `#print axioms`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fd_async.verifier.messages import Message, Position, read_axioms, render_messages


def error(data: str, line: int = 1, severity: str = "error") -> Message:
    return Message(data, severity, Position(line, 2))


def test_errors_come_first_and_positions_are_the_models() -> None:
    """A warning that came earlier stands behind the error."""
    text = render_messages([error("unused", 1, "warning"), error("unsolved goals\n⊢ p", 7)], lambda n: n - 4, 500)
    assert text == "3:2: error: unsolved goals\n⊢ p\n-3:2: warning: unused"


def test_repeats_are_shown_once_with_their_count() -> None:
    """The same words at ten places take one line."""
    text = render_messages([error("linarith failed", line) for line in range(1, 11)], lambda n: n, 500)
    assert text == "1:2: error: linarith failed (repeated 10 times)"


def test_the_first_error_is_kept_in_full_and_the_rest_is_counted() -> None:
    """What does not fit is a number, not half a message."""
    long = "first " * 50
    text = render_messages([error(long), *(error(f"{n} " * 100, n) for n in range(2, 9))], lambda n: n, 700)
    assert long.strip() in text
    assert text.endswith("(+6 more errors)")
    assert len(text) <= 700


@given(
    st.lists(st.tuples(st.text(max_size=300), st.sampled_from(["error", "warning", "info"])), max_size=12),
    st.integers(1, 400),
)
def test_the_budget_holds_for_every_output(items: list[tuple[str, str]], budget: int) -> None:
    """No combination of messages exceeds what the model may see."""
    messages = [Message(data, severity, Position(index, 0)) for index, (data, severity) in enumerate(items)]
    assert len(render_messages(messages, lambda n: n, budget)) <= budget


def test_axioms_are_read_only_from_an_answer_that_is_nothing_else() -> None:
    """The list may wrap; another name, another severity or a second answer is no answer."""
    listed = error("'t' depends on axioms: [propext,\n Classical.choice]", severity="info")
    assert read_axioms([listed], "t") == ["propext", "Classical.choice"]
    assert read_axioms([error("'t' does not depend on any axioms", severity="info")], "t") == []
    assert read_axioms([error("`t` depends on axioms: [propext]", severity="info")], "t") == ["propext"]
    assert read_axioms([listed], "u") is None
    assert read_axioms([listed, listed], "t") is None
    assert read_axioms([error(listed.data)], "t") is None
    assert read_axioms([error("x 't' does not depend on any axioms", severity="info")], "t") is None
