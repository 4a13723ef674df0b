"""Is an answer usable feedback? Pure text, no I/O.

The paper's prompts demand 1 to 3 numbered items (prompts 2 to 4), 10 to 50 words each (2 to 4), and no second person
(3 and 4). An answer is held to what its own prompt demanded, so prompt (1) accepts any text.

Counting words: a word is a piece between white space that holds a letter or a digit, so dashes and bullets do not
count. A code span (`...`) or a fenced block is one word however long it is: Lean code is quoted, not prose. The second
person is looked for outside code only.
"""

from __future__ import annotations

import re
from typing import Final

MIN_WORDS: Final = 10
MAX_WORDS: Final = 50
MAX_ITEMS: Final = 3

_THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
_ITEM = re.compile(r"^[ \t]*(?:\*\*)?(\d{1,2})[.)](?:\*\*)?[ \t]+", re.MULTILINE)
_SECOND_PERSON = re.compile(r"\b(?:you|your|yours|yourself|yourselves)\b", re.IGNORECASE)


def clean(text: str) -> str:
    """Drop a thinking block that the server left in front of the answer, and outer white space.

    A block that never closes leaves nothing: the answer ended before it began.
    """
    text = _THINKING.sub("", text, count=1).strip()
    return "" if text.startswith("<think>") else text


def count_words(text: str) -> int:
    """Count words; a code span is one."""
    return sum(any(char.isalnum() for char in piece) for piece in _CODE.sub(" code ", text).split())


def violations(text: str, prompt: int) -> list[str]:
    """List what the answer does against its prompt, one sentence each, worded for the model that wrote it.

    Args:
        text: the cleaned answer, not empty.
        prompt: which tutor prompt was sent, 1 to 4.
    """
    found: list[str] = []
    if prompt >= 2:
        found += _format_violations(text)
    if prompt >= 3:
        words = sorted({match.group().lower() for match in _SECOND_PERSON.finditer(_CODE.sub(" ", text))})
        if words:
            found.append(f"The second person is not allowed, but the answer uses {_quoted(words)}.")
    return found


def ask_again(user: str, answer: str, problems: list[str]) -> str:
    """Return the user message of the second and last try, with the refused answer and what is wrong with it."""
    listed = "\n".join(f"- {problem}" for problem in problems)
    refused = f"<refused_answer>\n{answer}\n</refused_answer>\n\n" if answer else ""
    return (
        f"{user}\n\n{refused}An earlier answer to this was refused:\n{listed}\n"
        "Write the feedback again so that it follows every rule."
    )


def _format_violations(text: str) -> list[str]:
    masked = _CODE.sub(lambda code: "x" * len(code.group()), text)  # same offsets, and no numbers inside code
    starts = list(_ITEM.finditer(masked))
    if not starts:
        return ['The answer must consist of numbered items and begin with "1.".']
    found: list[str] = []
    if masked[: starts[0].start()].strip():
        found.append('Nothing may stand before the "1." of the first item.')
    if [int(start.group(1)) for start in starts] != list(range(1, len(starts) + 1)):
        found.append("The items must be numbered 1, 2, 3 in order.")
    if len(starts) > MAX_ITEMS:
        found.append(f"There are {len(starts)} items; at most {MAX_ITEMS} are allowed.")
    ends = [start.start() for start in starts[1:]] + [len(text)]
    for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
        words = count_words(text[start.end() : end])
        if not MIN_WORDS <= words <= MAX_WORDS:
            found.append(f"Item {number} has {words} words; each item needs {MIN_WORDS} to {MAX_WORDS}.")
    return found


def _quoted(words: list[str]) -> str:
    return ", ".join(f'"{word}"' for word in words)
