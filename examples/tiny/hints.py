"""Feedback as the tiny model meets it in pre-training: a worked example, or a critique in numbered orders."""

from __future__ import annotations

import random

from examples.tiny.tokenizer import EXAMPLE

USE = [
    "Close the goal with `{}`; this is all that the statement needs.",
    "Use `{}` as the whole proof, and keep the theorem unchanged.",
    "Write `by {}` after the statement; no other step is required.",
    "Prove this theorem with `{}` and check the file before ending.",
    "Apply the right recipe for this shape of goal: `{}`.",
    "Replace the proof by `{}`, which matches the hypotheses exactly.",
    "Try `{}` first, since the goal has the form that it proves.",
    "Do use `{}` here, then run lean_check_file on the result.",
    "Finish directly with `{}` instead of trying other tactics.",
    "Complete the proof using `{}`.",
]
AVOID = [
    "Don't use `{}` for this goal, because it leaves an error.",
    "Avoid `{}`; it does not fit the shape of this statement.",
    "Do not repeat `{}`, which the compiler rejects here.",
    "Never close this goal with `{}`, its type does not match.",
]
GENERAL = [
    "Always check the file with lean_check_file after writing it.",
    "Read the compiler output and repair the proof before ending.",
    "Keep the statement exactly as given and change only the proof.",
    "Match the shape of the goal with the hypotheses before choosing a tactic.",
]


def worked_example(statement: str, recipe: str) -> str:
    """Spell a solution the way the `ground_truth` provider does."""
    return f"{EXAMPLE}{statement} by {recipe}"


def compiler_feedback(output: str) -> str:
    """Spell compiler output the way the `lean_output` provider does."""
    return f"The following is feedback from your unsuccessful earlier attempt: {output}"


def critique(recipe: str, other: str, rng: random.Random) -> str:
    """Write one to three numbered orders that name the recipe, in the manner of a tutor.

    Args:
        recipe: What to do.
        other: Another recipe, perhaps mentioned as one to avoid.
    """
    items = [rng.choice(USE).replace("{}", recipe)]
    if other != recipe and rng.random() < 0.35:
        items.append(rng.choice(AVOID).replace("{}", other))
    if rng.random() < 0.35:
        items.append(rng.choice(GENERAL))
    rng.shuffle(items)
    return "\n".join(f"{number}. {item}" for number, item in enumerate(items, 1))
