"""Headers: which text stands above a statement.

A Lean worker is bound to the exact text of a header, so two spellings of one header would load Mathlib twice.
Normalising touches layout alone: comments, blank lines, indentation and repeated imports. What a header imports, opens
and sets, and in which order, stays.
"""

from __future__ import annotations

from functools import lru_cache

from fd_async.data.sources.lean_text import NotLean, has_header, without_comments


@lru_cache(1024)
def normalise(header: str) -> str:
    """Return the header in its one spelling: a command per line, no comments, no import twice.

    A header with text in quotes, or with a comment that does not end, only loses blank lines and spaces at line ends.
    """
    text = header.replace("\r\n", "\n")
    try:
        plain = without_comments(text)
    except NotLean:
        plain = text
    if '"' in plain or "/-" in plain:
        return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
    lines: list[str] = []
    for line in plain.split("\n"):
        words = " ".join(line.split())
        if not words:
            continue
        if line[0].isspace() and lines and not has_header(words):  # goes on with the command above it
            lines[-1] += " " + words
        elif not (words.startswith("import ") and words in lines):
            lines.append(words)
    return "\n".join(lines)
