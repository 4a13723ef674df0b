"""How often a student voices doubt: the ten epistemic words of the paper (figure 13, appendix C.4). Pure functions.

What counts is what the student itself sampled and says in words: thinking and prose of its turns, never a tool's
output. A tool call is no prose, from `<tool_call>` to `</tool_call>` or, where that is missing, to the end of the turn
or the next call; nor is a file in a ```lean block of an answer. Drafts of Lean inside the thinking do count, as
thinking. Of a call that is not closed inside the thinking, only the mark itself is left out: it was talked about.
Thinking may be cut off by the token limit; where the prompt opened it, the turn does not show that it is thinking, and
it is read as an answer.

Words are whole and in any case: neither `lean_check_file`, `checked`, `hmmm` nor Lean's `#check` is a "check" or a
"hmm". The paper does not say how it counts; these rules are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fd_async.rendering.lean_blocks import lean_blocks
from fd_async.rendering.tool_calls import CLOSE, OPEN
from fd_async.telemetry.metrics import EPISTEMIC_WORDS
from fd_async.types import Rollout

_THINKING, _END_OF_THINKING = "<think>", "</think>"


def count_words(rollout: Rollout) -> dict[str, int]:
    """Count each of the ten words over an attempt."""
    counts = dict.fromkeys(EPISTEMIC_WORDS, 0)
    for turn in rollout.turns:
        if turn.role == "assistant":
            text = "\n".join(prose(turn.text)).lower()
            for word in EPISTEMIC_WORDS:
                counts[word] += _count(text, word)
    return counts


def words_row(rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    """Return the mean number per attempt as the columns `words/WORD`, and of all ten as `words/total`."""
    counts = [count_words(rollout) for rollout in rollouts]
    sums = {word: sum(count[word] for count in counts) for word in EPISTEMIC_WORDS}
    sums["total"] = sum(sums.values())
    return {f"words/{word}": num / len(counts) if counts else None for word, num in sums.items()}


def prose(turn: str) -> Iterator[str]:
    """Yield the pieces of a turn's text that are neither tool calls nor the files of an answer."""
    thinking, mark, answer = turn.rpartition(_END_OF_THINKING)
    if mark:
        yield from _outside_calls(thinking, is_thinking=True)
    answer, mark, cut_off = answer.partition(_THINKING)
    if mark:
        yield from _outside_calls(cut_off, is_thinking=True)
    start = 0
    for begin, end, _ in lean_blocks(answer):
        yield from _outside_calls(answer[start:begin], is_thinking=False)
        start = end
    yield from _outside_calls(answer[start:], is_thinking=False)


def _outside_calls(text: str, *, is_thinking: bool) -> Iterator[str]:
    first, *rest = text.split(OPEN)
    yield first
    for piece in rest:
        body, closed, after = piece.partition(CLOSE)
        if closed or is_thinking:
            yield after if closed else body


def _count(text: str, word: str) -> int:
    """Count whole occurrences in lower-case text; a letter, digit or `_` beside one, or a `#` before, makes it none."""
    num, start = 0, text.find(word)
    while start >= 0:
        end = start + len(word)
        before, behind = text[start - 1 : start], text[end : end + 1]
        num += not (before.isalnum() or behind.isalnum() or before in ("_", "#") or behind == "_")
        start = text.find(word, end)
    return num
