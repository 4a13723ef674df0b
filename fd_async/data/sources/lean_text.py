"""Lean source text, as far as reading data sets needs it: where statements begin, and where their proofs do.

No parser: comments, strings and brackets are skipped, commands are known by their keyword at the start of a line. The
pieces of a file, joined, are the file, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_COMMAND = (
    r'--[^\n]*|/-|"(?:\\.|[^"\\])*"'
    r"|^(?:theorem|lemma|import|open|set_option|universes?|namespace|section|end|variables?|def|abbrev|instance"
    r"|axiom|example|structure|inductive|class|local|scoped|attribute|notation|infix[lr]?|macro(?:_rules)?|syntax|elab"
    r"|noncomputable|private|protected|nonrec|mutual|opaque|deriving|export|run_cmd|#\w+)\b|^@\["
)
_COMMANDS = re.compile(_COMMAND, re.MULTILINE | re.DOTALL)
_ALL = re.compile(_COMMAND + r"|:=|[(\[{⟨⦃]|[)\]}⟩⦄]", re.MULTILINE | re.DOTALL)
_STATING = ("theorem", "lemma")
_BEFORE = ("@[", "private", "protected", "nonrec", "noncomputable", "/--")
"""May stand in front of `theorem` and belong to it."""
_NOTHING = re.compile(r"\s*(?:by\b)?\s*(?:sorry\b)?\s*", re.ASCII)
_ENDS_OPEN = re.compile(r":=\s*(?:by)?\s*(?:sorry)?\s*\Z")
_BINDS = re.compile(r"\b(?:let|letI|have|haveI)\b[^;\n]*\Z")
_FIRST_WORD = re.compile(r"(?:import|open|set_option|universe|namespace|section|variable|noncomputable)\b")
_NAME = re.compile(r"(?:theorem|lemma)\s+([^\s:({\[⦃]+)")


class NotLean(ValueError):
    """A text that is no header with statements; `args[0]` is one line."""


class Split(NamedTuple):
    """A file taken apart: `header` and `pieces`, joined, are the text."""

    header: str
    pieces: list[str]
    """One `theorem` or `lemma` each, with its doc comment and attributes in front."""


def split_file(text: str) -> Split:
    """Find the statements of a file.

    Raises:
        NotLean: another command stands below the first statement, or a comment does not end.
    """
    starts: list[int] = []
    begins: int | None = None
    for word, start, end in _scan(text):
        if word in _BEFORE:
            begins = start if begins is None else begins
        elif word in _STATING:
            starts.append(start if begins is None else begins)
            begins = None
        else:
            begins = None
            if starts:
                line = text.count("\n", 0, start) + 1
                raise NotLean(f"line {line}: `{text[start:end]}` stands below the first statement")
    if not starts:
        return Split(text, [])
    ends = [*starts[1:], len(text)]
    return Split(text[: starts[0]], [text[start:end] for start, end in zip(starts, ends, strict=True)])


def has_header(text: str) -> bool:
    """Say whether a statement brings its header along: its first word is a command that states nothing."""
    position = 0
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        if text.startswith("--", position):
            position = (text.find("\n", position) + 1) or len(text)
        elif text.startswith("/-", position):
            try:
                position = _comment_end(text, position)
            except NotLean:
                return False
        else:
            return _FIRST_WORD.match(text, position) is not None


def split_proof(piece: str) -> tuple[str, str | None]:
    """Cut the proof off a statement; a statement that ends in `:=`, `:= by` or `:= by sorry` stays as it is."""
    if _ENDS_OPEN.search(piece, max(0, len(piece) - 200)):
        return piece, None
    cut = _proof_start(piece)
    if cut is None:
        return piece, None
    rest = without_comments(piece[cut:])
    if _NOTHING.fullmatch(rest):
        return piece, None
    return piece[:cut], None if re.search(r"\bsorry\b", rest) else piece[cut:].strip()


def proof_of(text: str, name: str) -> str | None:
    """Take the proof out of what a column calls a proof: what follows `:=`, or a whole file that states `name`."""
    text = text.strip()
    if text.startswith(":="):
        return text[2:].strip() or None
    if not (has_header(text) or text.startswith(("theorem ", "lemma ", "/-", "--", "@["))):
        return text or None
    pieces = split_file(text).pieces
    if not pieces:
        return text
    named = [piece for piece in pieces if theorem_name(piece) == name]
    return split_proof((named or pieces)[-1])[1]


def theorem_name(piece: str) -> str:
    """Return the name that a piece states, or nothing."""
    for word, start, _ in _scan(piece):
        if word in _STATING:
            found = _NAME.match(piece, start)
            return found[1].rstrip(".") if found else ""
    return ""


def without_comments(text: str) -> str:
    """Put one space in the place of each comment."""
    parts, position = [], 0
    for start, end in _comments(text):
        parts += [text[position:start], " "]
        position = end
    return "".join([*parts, text[position:]])


def _proof_start(piece: str) -> int | None:
    """Return the end of the `:=` before the proof: the first one outside brackets that binds no `let`."""
    depth, first = 0, None
    for word, start, end in _scan(piece, _ALL):
        if word == "(":
            depth += 1
        elif word == ")":
            depth -= 1
        elif word == ":=" and depth == 0 and not _BINDS.search(piece, piece.rfind("\n", 0, start) + 1, start):
            if re.compile(r"\s*(?:by|sorry)\b").match(piece, end):
                return end
            first = end if first is None else first
    return first


def _scan(text: str, tokens: re.Pattern[str] = _COMMANDS) -> Iterator[tuple[str, int, int]]:
    """Yield (word, start, end): commands, doc comments as `/--`; with `_ALL` also `:=`, and brackets as `(` and `)`."""
    position = 0
    while found := tokens.search(text, position):
        word, start, position = found[0], found.start(), found.end()
        if word == "/-":
            position = _comment_end(text, start)
            if text.startswith("/--", start):
                yield "/--", start, position
        elif word.startswith(("--", '"')):
            continue
        elif word in "([{⟨⦃":
            yield "(", start, position
        elif word in ")]}⟩⦄":
            yield ")", start, position
        else:
            yield word, start, position


def _comments(text: str) -> Iterator[tuple[int, int]]:
    position = 0
    while found := re.compile(r'--[^\n]*|/-|"(?:\\.|[^"\\])*"', re.DOTALL).search(text, position):
        position = _comment_end(text, found.start()) if found[0] == "/-" else found.end()
        if not found[0].startswith('"'):
            yield found.start(), position


def _comment_end(text: str, start: int) -> int:
    """Return where a block comment ends; they nest.

    Raises:
        NotLean: it does not.
    """
    depth = 0
    for mark in re.compile(r"/-|-/").finditer(text, start):
        depth += 1 if mark[0] == "/-" else -1
        if depth == 0:
            return mark.end()
    raise NotLean(f"line {text.count(chr(10), 0, start) + 1}: a comment does not end")
