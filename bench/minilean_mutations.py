"""Changes to a text that leave it nearly right: most results are wrong, some are still proofs."""

# ruff: noqa: E501 - tables read better unbroken

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_SWAPS = [
    ("left", "right"), ("inl", "inr"), (".1", ".2"), ("mp", "mpr"), ("∧", "∨"), ("→", "↔"), ("<", "≤"), ("≤", "<"), ("=", "≠"),
    ("∀", "∃"), ("¬", ""), ("+", "-"), ("-", "+"), ("*", "+"), ("Nat", "Int"), ("omega", "decide"), ("exact", "apply"), ("h1", "h2"),
    ("intro", "rintro"), ("assumption", "contradiction"), ("constructor", "left"), ("rfl", "trivial"), ("by_cases", "have"), ("⟨", "("),
    ("p", "q"), ("q", "r"), ("x", "y"), ("y", "z"), ("h", "g"), ("True", "False"), (">", "≥"), ("¬", "¬¬"), ("· ", ""), ("fun", "λ"),
    ("sorry", "exact h"), ("exact", "refine"), ("cases", "rcases"), ("_", "x"), ("∃ w", "∀ w"), ("le", "lt"), ("Or", "And"),
]  # fmt: skip


def nearly_right(text: str, rng: random.Random, lemmas: Sequence[str]) -> str:
    """Change one to three things in the last theorem of a text."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        text = rng.choice(_MUTATORS)(text, rng, lemmas)
    return text


def _swap(text: str, rng: random.Random, lemmas: Sequence[str]) -> str:
    one, two = rng.choice(_SWAPS)
    if rng.random() < 0.5 and two:
        one, two = two, one
    word = rf"(?<![\w'.]){re.escape(one)}(?![\w'])" if one.isidentifier() else re.escape(one)
    found = [match for match in re.finditer(word, text) if match.start() >= text.rfind("theorem t")]
    return _replace(text, rng.choice(found), two) if found else text


def _number(text: str, rng: random.Random, lemmas: Sequence[str]) -> str:
    found = list(re.finditer(r"(?<![\w.])\d+", text))
    return (
        _replace(text, chosen := rng.choice(found), str(max(0, int(chosen[0]) + rng.choice([-1, 1, 1, 3]))))
        if found
        else text
    )


def _name(text: str, rng: random.Random, lemmas: Sequence[str]) -> str:
    """Put one name of the text in the place of another, or a random lemma in the place of a lemma."""
    found = list(re.finditer(r"(?<![\w'.])[A-Za-z_][\w'.]*", text[text.rfind("theorem t") + 9 :]))
    if not found:
        return text
    chosen, start = rng.choice(found), text.rfind("theorem t") + 9
    new = rng.choice(lemmas) if "." in chosen[0] or rng.random() < 0.1 else rng.choice(found)[0]
    return text[: start + chosen.start()] + new + text[start + chosen.end() :]


def _line(text: str, rng: random.Random, lemmas: Sequence[str]) -> str:
    """Drop, repeat, swap or shift a line of the proof."""
    lines = text.split("\n")
    first = next((index for index, line in enumerate(lines) if line.startswith("theorem t")), 0) + 1
    if first >= len(lines):
        return text
    index = rng.randrange(first, len(lines))
    match rng.randrange(5):
        case 0:
            del lines[index]
        case 1:
            lines.insert(index, lines[index])
        case 2:
            other = rng.randrange(first, len(lines))
            lines[index], lines[other] = lines[other], lines[index]
        case 3:
            lines[index] = "  " + lines[index]
        case _:
            lines[index] = lines[index].removeprefix("  ")
    return "\n".join(lines)


def _drop_hypothesis(text: str, rng: random.Random, lemmas: Sequence[str]) -> str:
    head, mark, rest = text.partition(":=")
    found = list(re.finditer(r" \([^():]+ : [^()]*\)", head))
    return _replace(head, rng.choice(found), "") + mark + rest if found else text


def _delete(text: str, rng: random.Random, lemmas: Sequence[str]) -> str:
    found = [match for match in re.finditer(r"[\w'.]+|[^\w\s]", text) if match.start() > text.rfind("theorem t") + 9]
    return _replace(text, rng.choice(found), "") if found else text


def _replace(text: str, match: re.Match[str], new: str) -> str:
    return text[: match.start()] + new + text[match.end() :]


_MUTATORS = (_swap, _swap, _swap, _number, _name, _name, _line, _line, _drop_hypothesis, _delete)
