"""What the tutor says about an attempt: one to three numbered orders of 10 to 50 words, nobody addressed."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import dataclass

from examples.tiny.hints import AVOID, GENERAL, USE
from examples.tiny.tutor.knowledge import recipe_for

MIN_WORDS = 10
SHARE_AVOID, SHARE_GENERAL = 0.35, 0.35
"""As often as in the critiques that the tiny model met in pre-training."""
_FILE = re.compile(r'"code":\s*("(?:[^"\\]|\\.)*")')
_NO_FILE = "Write the theorem with its proof to a file with lean_write_file, then check it with lean_check_file."
_CUT_OFF = "Be more concise: write one short proof, check it once, and end before the token limit is reached."


@dataclass(frozen=True)
class Question:
    """What the message about one attempt holds."""

    statement: str
    attempt: str
    output: str

    @property
    def recipes(self) -> list[str]:
        """Proofs that the attempt wrote, in order, without the statement."""
        files = [json.loads(code, strict=False) for code in _FILE.findall(self.attempt)]
        return [" ".join(proof.split()) for file in files if (proof := file.partition(":= by")[2].strip())]


def read_question(text: str) -> Question | None:
    """Find the three sections of the message; None when it is about something else."""
    parts = [_section(text, tag) for tag in ("formal_statement", "attempt", "final_lean_output")]
    return Question(*[part or "" for part in parts]) if parts[0] is not None else None


def _section(text: str, tag: str) -> str | None:
    found = re.search(rf"^<{tag}>\n(.*?)\n</{tag}>", text, re.DOTALL | re.MULTILINE)
    return found[1].strip() if found else None


def answer(text: str, *, named_share: float = 0.8, seed: int = 0) -> str:
    """Write the feedback; the same question gets the same answer.

    Args:
        text: the user message of the run.
        named_share: how often the right recipe is named; otherwise the advice is general.
        seed: changes which questions get which words.
    """
    rng = random.Random(hashlib.sha256(f"{seed}\n{text}".encode()).digest())
    question = read_question(text)
    if question is None:
        return _numbered([_NO_FILE])
    recipe = recipe_for(question.statement)
    tried = next((used for used in reversed(question.recipes) if used != recipe), None)
    names_it = recipe is not None and rng.random() < named_share
    items = [_long_enough(rng.choice(USE).replace("{}", recipe), rng)] if recipe and names_it else []
    if tried and (not names_it or rng.random() < SHARE_AVOID):
        items.append(_long_enough(rng.choice(AVOID).replace("{}", tried), rng))
    if not question.recipes:
        items.append(_NO_FILE)
    elif "the token limit was reached" in question.attempt and not names_it:
        items.append(_CUT_OFF)
    elif not items or rng.random() < SHARE_GENERAL:
        items.append(_long_enough(rng.choice(GENERAL), rng))
    rng.shuffle(items)
    return _numbered(items)


def count_words(item: str) -> int:
    """Count as the answer check does: quoted code is one word."""
    return sum(any(sign.isalnum() for sign in piece) for piece in re.sub(r"`[^`]*`", " code ", item).split())


def _long_enough(item: str, rng: random.Random) -> str:
    """Add a general order to one that is too short to be accepted alone."""
    return item if count_words(item) >= MIN_WORDS else f"{item} {rng.choice([g for g in GENERAL if g != item])}"


def _numbered(items: list[str]) -> str:
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
