"""The Lean files in an answer: fenced code blocks, read line by line as Markdown does.

    a fence     a line of at most three blanks and three or more backticks, with a first word for the language
    opens       a fence with a language, or a bare one outside of a block
    closes      a bare fence at least as long as the one that opened the block
    begins anew a fence with a language, at least as long, inside a block: the block before it was never closed

So backticks inside a line of Lean are Lean, a file that has such lines itself stands in a longer fence, and what is
not closed is no file.
"""

from __future__ import annotations

import re

LANGUAGES = frozenset(["lean", "lean4"])
_FENCE = re.compile(r"^ {0,3}(`{3,}+)[ \t]*+([^`\s]*+)[^`\n]*+(?:\n|\Z)", re.MULTILINE)


def lean_blocks(text: str) -> list[tuple[int, int, str]]:
    """Return every closed Lean block with its place in the text, fences included, and its file byte for byte.

    A block of blanks holds no file.
    """
    blocks: list[tuple[int, int, str]] = []
    opening: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif len(fence[1]) < len(opening[1]):
            continue
        elif fence[2]:
            opening = fence
        else:
            code = text[opening.end() : fence.start()]
            if opening[2].lower() in LANGUAGES and code.strip():
                blocks.append((opening.start(), fence.end(), code))
            opening = None
    return blocks
