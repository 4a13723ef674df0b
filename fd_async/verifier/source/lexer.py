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

_HIDDEN_CLASS = (
    "\u0000-\u0009\u000b-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff0-\ufffb"
    "\ud800-\udfff"
)
_TOKEN = re.compile(
    rf"""(?P<symbol>[^{_FIRST}0-9\s"'/«»{_HIDDEN_CLASS}\-])
    |(?P<space>[ \n]+)
    |(?P<word>{_WORD}(?:\.{_WORD})*)
    |(?P<line>--[^\n]*)
    |(?P<block>/-)
    |(?P<number>0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)
    |(?P<string>"[^"\\]*(?:\\.[^"\\]*)*")
    |(?P<char>'(?:[^'"\\]|\\(?:x[0-9a-fA-F]{{2}}|u[0-9a-fA-F]{{4}}|[^"xu]))')
    |(?P<bad>["«»{_HIDDEN_CLASS}])
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
_BLOCK = re.compile(r"/-|-/")
_HIDDEN = re.compile(f"[{_HIDDEN_CLASS}]")
_HIDDEN_IN_COMMENT = re.compile("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029\ufff0-\ufffb\ud800-\udfff]")
"""Tabs and zero-width or directional marks cannot end a comment; what some reader takes for a line end can."""
_ESCAPES = re.compile(r"""(?:[^\\]|\\(?:[\\"'rnt]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|\n))*""")
_AFTER_DOCUMENTATION = frozenset(
    {"@", "#", "theorem", "lemma", "example", "private", "protected", "nonrec", "open", "set_option"}
    | {"def", "abbrev", "instance", "structure", "inductive", "class", "axiom", "notation", "macro", "syntax"}
)
_OPEN_QUOTE = re.compile(r"'(?:\\\S{0,5}|[^'])?\Z", re.DOTALL)
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
    """Literals of characters are strings."""


def lex(source: str) -> list[Token]:
    """Return the tokens without white space and comments; the source has `\\n` line ends."""
    tokens: list[Token] = []
    documentation: list[tuple[int, int]] = []
    position = 0
    while position < len(source):
        position = _lex_run(source, position, tokens, documentation)
    for index, start in documentation:
        after = tokens[index] if index < len(tokens) else None
        if after is not None and after.text not in _AFTER_DOCUMENTATION:
            raise LexError(
                "a documentation comment must stand before a command; inside a proof write `/- ... -/`", start
            )
    return tokens


def _lex_run(source: str, position: int, tokens: list[Token], documentation: list[tuple[int, int]]) -> int:
    """Append tokens up to the end of the next block comment, or of the source; return that place.

    `documentation` gets the index of the next token and the place of each `/--` and `/-!`: after an error Lean goes
    on inside of those that stand where it does not expect them.
    """
    for match in _TOKEN.finditer(source, position):
        kind, start = match.lastgroup, match.start()
        if kind == "symbol" or kind == "other":
            tokens.append(Token(match[0], start, match.end(), "symbol"))
        elif kind == "word" or kind == "number":
            if kind == "word" and "'" in match[0] and source[max(0, start - 2) : start].endswith(("'", "'\\")):
                raise LexError("put a space after the quote", start)
            tokens.append(Token(match[0], start, match.end(), kind))
        elif kind == "line":
            _demand_clear_opening(source, start)
            _demand_no_open_quote(source, start, tokens)
            _demand_visible(_HIDDEN_IN_COMMENT, source, start, match.end())
        elif kind == "block":
            _demand_clear_opening(source, start)
            _demand_no_open_quote(source, start, tokens)
            end = _block_end(source, start)
            if source[start + 2] in "-!":
                documentation.append((len(tokens), start))
            _demand_visible(_HIDDEN_IN_COMMENT, source, start, end)
            return end
        elif kind == "string":
            _demand_plain_string(source, start, match[0])
            _demand_no_open_quote(source, start, tokens)
            tokens.append(Token(match[0], start, match.end(), "string"))
        elif kind == "char":
            _demand_visible(_HIDDEN, source, start, match.end())
            tokens.append(Token(match[0], start, match.end(), "string"))
        elif kind == "bad":
            _refuse(source, start)
    return len(source)


def _refuse(source: str, position: int) -> None:
    """Say why this character may not begin a token."""
    _demand_visible(_HIDDEN, source, position, position + 1)
    if source[position] == '"':
        _demand_plain_string(source, position, "")
        raise LexError("unterminated string", position)
    raise LexError("escaped names («...») are not allowed", position)


def _demand_visible(hidden: re.Pattern[str], source: str, start: int, end: int) -> None:
    found = hidden.search(source, start, end)
    if found:
        raise LexError(f"invisible or control character U+{ord(found[0]):04X}", found.start())


def _demand_clear_opening(source: str, position: int) -> None:
    """Refuse `<--` and the like: Lean may read an operator where we would read a comment."""
    if position and not _BEFORE_COMMENT.match(source[position - 1]):
        raise LexError("put a space before the comment", position)
    if source.startswith("/--/", position):
        raise LexError("`/--/` is neither an open nor a closed comment", position)


def _demand_no_open_quote(source: str, position: int, tokens: list[Token]) -> None:
    """Refuse `'--`, `' "` and the like: Lean may fail on the quote, and go on inside the comment or string."""
    first = max(0, position - 8)
    found = _OPEN_QUOTE.search(source, first, position)
    if found and not (tokens and tokens[-1].kind in ("word", "string") and tokens[-1].end > found.start()):
        raise LexError("put more space between the quote and the comment or string", found.start())


def _block_end(source: str, position: int) -> int:
    depth = 0
    for match in _BLOCK.finditer(source, position):
        depth += 1 if match[0] == "/-" else -1
        if depth == 0:
            return match.end()
    raise LexError("unterminated comment", position)


def _demand_plain_string(source: str, position: int, text: str) -> None:
    before = source[max(0, position - 2) : position]
    if before.endswith(("'", "'\\")):
        raise LexError("a character literal of a double quote is not allowed", position)
    if before.endswith(("r", "#")):
        raise LexError("raw strings are not allowed", position)
    if "{" in text:
        raise LexError("strings with braces are not allowed", position)
    if "\\" in text and not _ESCAPES.fullmatch(text):  # Lean would go on inside the string
        raise LexError("a string with an escape that Lean does not know", position)
    _demand_visible(_HIDDEN, source, position, position + len(text))
