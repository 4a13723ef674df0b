"""Cut Lean source into tokens, strictly enough that nothing a compiler would read is hidden from the gate.

Lean's tokens depend on the notations in scope, so no lexer outside Lean is exact. This one never guesses: wherever
an outsider could lose track of what is comment, string or code, it refuses the file (`LexError`). Words are split
as finely as Lean splits them (`identFn`, `isLetterLike` of Lean's `Init`), so no keyword can hide inside a word.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

_FIRST = (
    "A-Za-z_\u03b1-\u03ba\u03bc-\u03c9\u0391-\u039f\u03a1\u03a2\u03a4-\u03a9\u03ca-\u03fb"
    "\u1f00-\u1ffe\u2100-\u214f\U0001d49c-\U0001d59f"
)
_REST = _FIRST + r"0-9'!?\u2080-\u2089\u2090-\u209c\u1d62-\u1d6a\u2c7c"
_WORD = f"[{_FIRST}][{_REST}]*"

_TOKEN = re.compile(
    rf"""(?P<space>[ \n]+)
    |(?P<line>--[^\n]*)
    |(?P<block>/-)
    |(?P<word>{_WORD}(?:\.{_WORD})*)
    |(?P<number>0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?)
    |(?P<string>")
    |(?P<symbol>.)""",
    re.VERBOSE | re.DOTALL,
)
_BLOCK = re.compile(r"/-|-/")
_STRING = re.compile(r'(?:[^"\\]|\\.)*"', re.DOTALL)
_HIDDEN = re.compile(
    "[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff0-\ufff8]"
)
_BEFORE_COMMENT = re.compile(rf"[\s{_REST})\]}}⟩,;]")


class LexError(ValueError):
    """The source cannot be read safely; `args[0]` says why, `position` is an index into it."""

    def __init__(self, reason: str, position: int) -> None:
        super().__init__(reason)
        self.position = position


class Token(NamedTuple):
    """`source[start:end]`; dotted names are one token, operators one token per character."""

    text: str
    start: int
    end: int
    kind: Literal["word", "number", "string", "symbol"]


def lex(source: str) -> list[Token]:
    """Return the tokens without white space and comments; the source has `\\n` line ends."""
    hidden = _HIDDEN.search(source)
    if hidden:
        raise LexError(f"invisible or control character U+{ord(hidden[0]):04X}", hidden.start())
    tokens: list[Token] = []
    position = 0
    while position < len(source):
        match = _TOKEN.match(source, position)
        assert match is not None  # `symbol` matches every character
        kind, text, end = match.lastgroup, match[0], match.end()
        if kind in ("line", "block"):
            _demand_clear_opening(source, position)
            end = end if kind == "line" else _block_end(source, position)
        elif kind == "string":
            end = _string_end(source, position)
            tokens.append(Token(source[position:end], position, end, "string"))
        elif kind == "word" or kind == "number":
            tokens.append(Token(text, position, end, kind))
        elif kind == "symbol":
            if text in "«»":
                raise LexError("escaped names («...») are not allowed", position)
            tokens.append(Token(text, position, end, "symbol"))
        position = end
    return tokens


def _demand_clear_opening(source: str, position: int) -> None:
    """Refuse `<--` and the like: Lean may read an operator where we would read a comment."""
    if position and not _BEFORE_COMMENT.match(source[position - 1]):
        raise LexError("put a space before the comment", position)
    if source.startswith("/--/", position):
        raise LexError("`/--/` is neither an open nor a closed comment", position)


def _block_end(source: str, position: int) -> int:
    depth = 0
    for match in _BLOCK.finditer(source, position):
        depth += 1 if match[0] == "/-" else -1
        if depth == 0:
            return match.end()
    raise LexError("unterminated comment", position)


def _string_end(source: str, position: int) -> int:
    before = source[max(0, position - 2) : position]
    if before.endswith(("'", "'\\")):
        raise LexError("a character literal of a double quote is not allowed", position)
    if before.endswith(("r", "#")):
        raise LexError("raw strings are not allowed", position)
    match = _STRING.match(source, position + 1)
    if match is None:
        raise LexError("unterminated string", position)
    if "{" in match[0]:
        raise LexError("strings with braces are not allowed", position)
    return match.end()
