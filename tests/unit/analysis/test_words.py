"""Epistemic words: what counts as the student's own words."""

from __future__ import annotations

import pytest

from fd_async.analysis.words import count_words, prose, words_row
from fd_async.telemetry.metrics import EPISTEMIC_WORDS, is_documented
from fd_async.types import Rollout, Statement, Turn, Verdict

CALL = '<tool_call>\n{"name": "lean_check_file", "arguments": {"file_name": "check.lean"}}\n</tool_call>'
XML = "<tool_call>\n<function=lean_write_file>\n<parameter=code>\n-- wait, maybe check\n</parameter>\n</function>\n"


def attempt(*turns: str | Turn) -> Rollout:
    """Return an attempt with these turns; a bare text is the assistant's."""
    return Rollout(
        id="r",
        ordinal=0,
        sample=0,
        purpose="train",
        statement=Statement(name="t", formal_statement="theorem t : True :="),
        prompt_ids=[1],
        completion_ids=[2],
        sampled_mask=[True],
        logprobs=[-1.0],
        spans=[],
        turns=[Turn(role="assistant", start=0, end=1, text=t) if isinstance(t, str) else t for t in turns],
        verdict=Verdict(kind="missing"),
        end_reason="stopped",
    )


def counted(text: str) -> dict[str, int]:
    return {word: num for word, num in count_words(attempt(text)).items() if num}


def test_the_ten_words_of_the_paper_are_counted() -> None:
    """Each once, and nothing else."""
    text = "Wait, hmm, perhaps maybe actually alternatively it seems that x might, likely, check."
    assert counted(text) == dict.fromkeys(EPISTEMIC_WORDS, 1)
    assert len(EPISTEMIC_WORDS) == 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("WAIT wait... Wait! (wait) “wait” 'wait' wait—wait", {"wait": 8}),
        ("await waits waiter wait_for x.wait2 _wait", {}),
        ("hmmm hm", {}),
        ("checked checking lean_check_file #check Nat.add", {}),
        ("Check.\nCHECK,check;check", {"check": 4}),
        ("maybe-likely", {"maybe": 1, "likely": 1}),
        ("unlikely", {}),
        ("éwait waitß", {}),
        ("", {}),
    ],
)
def test_only_whole_words_in_any_case_count(text: str, expected: dict[str, int]) -> None:
    """Letters, digits and underscores beside it make a longer word; punctuation does not."""
    assert counted(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"Let me check.\n{CALL}", {"check": 1}),
        (f"{CALL}\nWait.{CALL}maybe", {"wait": 1, "maybe": 1}),
        (f"hmm {XML}</tool_call> hmm", {"hmm": 2}),
        (f"hmm {XML}", {"hmm": 1}),
        (f"hmm {XML}{CALL} perhaps", {"hmm": 1, "perhaps": 1}),
        ("I could <tool_call> something, maybe.\n</think>\n\nNo.", {"maybe": 1}),
        (f"<think>{CALL} perhaps</think>{CALL}", {"perhaps": 1}),
        ("Likely:\n```lean\n-- wait, check\ntheorem t : True := trivial\n```\nPerhaps.", {"likely": 1, "perhaps": 1}),
        ("<think>\n```lean\n-- wait\n```\n</think>\n```lean\n-- wait\n```", {"wait": 1}),
        ("```text\nwait\n```", {"wait": 1}),
        ("<think>\n```lean\n-- wait\n```\nI could <tool_call> it, perhaps", {"wait": 1, "perhaps": 1}),  # cut off
    ],
)
def test_calls_and_files_are_no_prose(text: str, expected: dict[str, int]) -> None:
    """What is handed to a tool or to Lean is left out, also where its end is missing."""
    assert counted(text) == expected


def test_cutting_a_call_out_joins_no_words() -> None:
    """`wa<call>it` is no `wait`."""
    assert counted(f"wa{CALL}it") == {}
    assert list(prose(f"wa{CALL}it")) == ["wa", "it"]


def test_tool_output_is_not_the_students() -> None:
    """Lean may well say `check`; only turns of the assistant count."""
    tool = Turn(role="tool", start=1, end=1, text="wait, maybe check this", tool="lean_check_file")
    assert sum(count_words(attempt("hmm", tool, "Perhaps")).values()) == 2


def test_the_row_is_a_mean_per_attempt() -> None:
    """Words of a batch over its attempts; without attempts there is no number."""
    row = words_row([attempt("wait wait", "check"), attempt("nothing")])
    assert (row["words/wait"], row["words/check"], row["words/hmm"], row["words/total"]) == (1.0, 0.5, 0.0, 1.5)
    assert all(is_documented(key) for key in row)
    assert set(words_row([]).values()) == {None}


def test_hostile_turns_take_linear_time() -> None:
    """Eight thousand opened calls or fences are read once, not once each."""
    num = 200_000
    for text in ("<tool_call>" * num, "<tool_call>" * num + "</think>", "```lean\n" * num, "<think>" * num):
        assert counted(text + " wait") in ({}, {"wait": 1})
