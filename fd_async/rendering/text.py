"""Untrusted text on its way into a prompt: made harmless, cut to size."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

ZERO_WIDTH_SPACE = "\u200b"
_TAG = re.compile(r"<[^<>\s]+>")
_BOUNDARY = re.compile(r"(?<!\d)[.!?](?=\s)|\n")
_SPACE = re.compile(r"\s")


class Neutraliser:
    """Break up every control token that a text spells out.

    Statements, feedback and compiler output may contain `<|im_end|>` or `</tool_response>`. A zero-width space
    behind the first character keeps such text readable and encodes it as ordinary tokens.
    """

    def __init__(self, control_tokens: Iterable[str]) -> None:
        longest_first = sorted(set(control_tokens), key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(token) for token in longest_first)) if longest_first else None

    def __call__(self, text: str) -> str:
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: match[0][0] + ZERO_WIDTH_SPACE + match[0][1:], text)


def control_tokens(added_tokens: Iterable[str], special_tokens: Iterable[str]) -> list[str]:
    """Choose the tokens that text must not spell: the special ones and every added token shaped like a tag."""
    return [*special_tokens, *(token for token in added_tokens if _TAG.fullmatch(token))]


def cut_text(text: str, max_tokens: int, token_ends: Callable[[str], list[int]]) -> str:
    """Keep the beginning of `text` that fits, up to the end of a line or sentence.

    Falls back to the last word, then to the last token, where the part that fits has no such end.

    Args:
        token_ends: End of every token of a text, characters.
    """
    ends = token_ends(text)
    if len(ends) <= max_tokens:
        return text
    fits = text[: ends[max_tokens - 1]] if max_tokens > 0 else ""
    for pattern in (_BOUNDARY, _SPACE):
        if found := [match.end() for match in pattern.finditer(fits)]:
            return fits[: found[-1]].rstrip()
    return fits
