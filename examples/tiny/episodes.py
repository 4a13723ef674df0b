"""Dialogues for pre-training: what a well-behaved prover without knowledge does, and how it follows a hint.

Without a hint the proof is a recipe drawn over all families, rarely the right one; with a hint, right or wrong, it is
the hint's. The model thus learns the tools, the syntax and to obey, and hardly which recipe a statement needs.
"""

from __future__ import annotations

import random

from examples.tiny.families import FAMILIES, RECIPES, fill
from examples.tiny.hints import critique, worked_example
from examples.tiny.statements import Row, is_test_shape, make_row
from examples.tiny.tokenizer import ASSISTANT, CHECK, RESULT, RESULT_END, WRITE, WRITE_END, WROTE
from fd_async.rendering import FEEDBACK_INTRO
from fd_async.rendering.renderer import INSTRUCTION_END

END = "<|im_end|>"
SHARE_HINTED = 0.5
SHARE_RIGHT_HINT = 0.5
SHARE_CRITIQUE = 0.4
"""Of the hints."""
SHARE_KNOWN = 0.06
"""How often the right recipe is tried without a hint, beyond chance."""
_RECIPE_OF = {family.name: family.recipe for family in FAMILIES}


def draw_row(rng: random.Random) -> Row:
    """Draw a statement whose shape is not one of the test split."""
    while True:
        row = make_row(rng.choice(FAMILIES), f"tiny_{rng.randrange(10_000):04d}", rng)
        if not is_test_shape(row.formal_statement):
            return row


def draw_episode(rng: random.Random) -> tuple[str, str]:
    """Draw the text after the opening of the prompt, as (rest of the prompt, everything after it).

    Assistant turns are the texts between `ASSISTANT` or `RESULT_END` and `<|im_end|>`. A turn that must not be
    learned (a first try against the hint) ends with `UNLEARNED`, which the caller removes.
    """
    row = draw_row(rng)
    right = _RECIPE_OF[row.family]
    if rng.random() < SHARE_HINTED:
        return _follow_hint(row, right, rng)
    first = _guess(right, [], rng)
    prompt = row.formal_statement + INSTRUCTION_END + ASSISTANT
    rest = _attempt(row, first)
    if first != right:
        second = _guess(right, [first], rng)
        rest += _failure(row, rng) + _attempt(row, second)
        if second != right and rng.random() < 0.1:
            rest += _failure(row, rng) + _attempt(row, _guess(right, [first, second], rng))
    return prompt, rest


UNLEARNED = "\u241d"


def _follow_hint(row: Row, right: str, rng: random.Random) -> tuple[str, str]:
    hinted = right if rng.random() < SHARE_RIGHT_HINT else rng.choice(RECIPES)
    other = rng.choice(RECIPES)
    recipe = fill(hinted, row.hypotheses)
    if rng.random() < SHARE_CRITIQUE:
        hint = critique(recipe, fill(other, row.hypotheses), rng)
    else:
        hint = worked_example(row.formal_statement, recipe)
    prompt = row.formal_statement + INSTRUCTION_END + FEEDBACK_INTRO + hint + ASSISTANT
    if other != hinted and rng.random() < 0.4:
        return prompt, _attempt(row, other, learned=False) + _failure(row, rng) + _attempt(row, hinted)
    rest = _attempt(row, hinted)
    if hinted != right and rng.random() < 0.2:
        rest += _failure(row, rng) + _attempt(row, hinted)
    return prompt, rest


def _guess(right: str, tried: list[str], rng: random.Random) -> str:
    if right not in tried and rng.random() < SHARE_KNOWN:
        return right
    return rng.choice([recipe for recipe in RECIPES if recipe not in tried])


def _attempt(row: Row, recipe: str, *, learned: bool = True) -> str:
    """Write the file, read the answer, check it."""
    write = f"{WRITE}{row.formal_statement} by {fill(recipe, row.hypotheses)}{WRITE_END}"
    return write + ("" if learned else UNLEARNED) + END + RESULT + WROTE + RESULT_END + CHECK + END


def _failure(row: Row, rng: random.Random) -> str:
    return RESULT + compiler_error(row, rng) + RESULT_END


def compiler_error(row: Row, rng: random.Random) -> str:
    """Make up a message in the manner of Lean; what matters is that the model has met many."""
    words = row.formal_statement.split(" : ", 1)[1].removesuffix(" :=")
    word = rng.choice(row.hypotheses) if row.hypotheses else "h"
    return f"1:{rng.randint(40, 120)}: error: " + rng.choice(
        [
            f"Type mismatch\n  {word}\nhas type\n  {words[:30]}\nbut is expected to have type\n  {words[-30:]}",
            f"Unknown identifier `{word}`",
            "omega could not prove the goal",
            f"Tactic `decide` failed: expected type must not contain free variables\n  {words[-30:]}",
            f"unsolved goals\n⊢ {words[-40:]}",
            f"Application type mismatch: the argument {word}",
            "Invalid projection: expected a structure",
            f"Invalid `⟨...⟩` notation: expected type {words[-20:]} is not an inductive type",
            f"Tactic `introN` failed: no more binders\n⊢ {words[-30:]}",
            f"minilean: unsupported: {words[-20:]}",
            f"Function expected at\n  {word}",
            "Tactic `left` failed: target is not an inductive datatype with two constructors",
        ]
    )
