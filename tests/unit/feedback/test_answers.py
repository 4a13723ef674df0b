"""Which answers are usable feedback."""

from __future__ import annotations

import pytest

from fd_async.feedback.answers import ask_again, clean, count_words, violations
from tests.fakes.scripted_http import FEEDBACK_TEXT

ITEM = "Call lean_check_file after every edit and read the first error before changing anything else."


def test_three_good_items_pass_every_prompt() -> None:
    """The fakes' default answer is usable whatever was asked."""
    assert [violations(FEEDBACK_TEXT, prompt) for prompt in (1, 2, 3, 4)] == [[], [], [], []]


@pytest.mark.parametrize("text", [f"1. {ITEM}", f"1) {ITEM}\n\n2) {ITEM}", f"**1.** {ITEM}"])
def test_usual_ways_of_numbering_are_accepted(text: str) -> None:
    """Dot, bracket and bold numbers are all numbered items."""
    assert violations(text, 4) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (ITEM, 'begin with "1."'),
        (f"Here is my advice:\n1. {ITEM}", 'before the "1."'),
        (f"2. {ITEM}", "numbered 1, 2, 3"),
        (f"1. {ITEM}\n1. {ITEM}", "numbered 1, 2, 3"),
        ("\n".join(f"{n}. {ITEM}" for n in (1, 2, 3, 4)), "There are 4 items"),
        ("1. Use omega here.", "Item 1 has 3 words"),
        (f"1. {ITEM}\n2. " + "word " * 51, "Item 2 has 51 words"),
        (f"1. {ITEM} Check Your goal.", '"your"'),
        (f"1. {ITEM} Then you can finish.", '"you"'),
    ],
)
def test_each_violation_is_named(text: str, said: str) -> None:
    """Exactly one rule is broken and the message says which."""
    found = violations(text, 4)
    assert len(found) == 1
    assert said in found[0]


def test_limits_of_words_are_inclusive() -> None:
    """10 and 50 words pass, 9 and 51 do not."""
    passes = {count: not violations("1. " + "word " * count, 4) for count in (9, 10, 50, 51)}
    assert passes == {9: False, 10: True, 50: True, 51: False}


def test_prompts_are_held_only_to_what_they_demanded() -> None:
    """(1) demands no format, (2) allows the second person."""
    free = "Just use omega, you know."
    assert violations(free, 1) == []
    assert violations(f"1. {ITEM} Then you can finish.", 2) == []
    assert violations(free, 2) != []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("two words", 2),
        ("`rw [Nat.add_comm, Nat.mul_comm a b]` rewrites", 2),
        ("before\n```lean\ntheorem t : 1 = 1 := by\n  rfl\n```\nafter", 3),
        ("dashes — and + signs are no words", 6),
        ("x ≤ y holds", 3),
        ("", 0),
    ],
)
def test_a_code_span_is_one_word_and_punctuation_none(text: str, words: int) -> None:
    """Quoted Lean does not use up the word limit."""
    assert count_words(text) == words


def test_numbers_and_second_person_inside_code_do_not_count() -> None:
    """A fenced block may hold lines that look like items or names that look like people."""
    text = f"1. {ITEM}\n```lean\n2. not an item\nexact your_lemma you\n```"
    assert violations(text, 4) == []


def test_thinking_in_front_of_the_answer_is_dropped() -> None:
    """Servers without a reasoning parser leave it in the text; one that never closes leaves no answer."""
    assert clean("<think>you might\n1. wrong</think>\n\n1. Right.\n") == "1. Right."
    assert clean("<think>still thinking") == ""
    assert clean("1. Mention <think> tags.") == "1. Mention <think> tags."


def test_second_question_names_the_problems_and_the_refused_answer() -> None:
    """The model sees what it wrote and every rule it broke, after the unchanged first question."""
    again = ask_again("QUESTION {x}", "BAD", ["Rule one.", "Rule two."])
    assert again.startswith("QUESTION {x}\n\n<refused_answer>\nBAD\n</refused_answer>")
    assert "- Rule one.\n- Rule two." in again
