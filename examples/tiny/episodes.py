"""Dialogues for pre-training: what a well-behaved prover without knowledge does, and how it follows a hint.

Without a hint the proof is a recipe drawn over all families, rarely the right one; with a hint, right or wrong, it is
the hint's. The model thus learns the tools, the syntax and to obey, and hardly which recipe a statement needs.
"""

from __future__ import annotations

import random

from examples.tiny.families import FAMILIES, RECIPES, fill
from examples.tiny.hints import compiler_feedback, critique, worked_example
from examples.tiny.statements import Row, is_test_shape, make_row
from examples.tiny.tokenizer import ASSISTANT, CHECK, RESULT, RESULT_END, WRITE, WRITE_END, WROTE
from fd_async.rendering import FEEDBACK_INTRO
from fd_async.rendering.renderer import INSTRUCTION_END

END = "<|im_end|>"
SHARE_HINTED = 0.5
SHARE_RIGHT_HINT = 0.5
SHARE_CRITIQUE = 0.4
"""Of the hints."""
SHARE_OUTPUT = 0.08
"""Of the dialogues: feedback that only repeats compiler output, which tells no recipe."""
SHARE_KNOWN = 0.08
"""How often the right recipe is tried without a hint, beyond chance."""
SHARE_SECOND = 0.7
"""Of the failures without a hint: shown with a second try; the others end there, to save time."""
SHARE_LATE = 0.3
"""Of the hinted dialogues: the hint is followed only after a failure, which is where a teacher often stands."""
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
    prompt = row.formal_statement + INSTRUCTION_END
    if rng.random() < SHARE_OUTPUT:
        prompt += FEEDBACK_INTRO + compiler_feedback(compiler_error(row, rng))
    prompt += ASSISTANT
    rest = _attempt(row, first)
    if first != right and rng.random() < SHARE_SECOND:
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
    if other != hinted and rng.random() < SHARE_LATE:
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
    """Make up a message in the manner of Lean, cut like a tool's output; the model only needs to have met such."""
    goal = row.formal_statement.rpartition(") : ")[2].partition(" : ")[2] or row.formal_statement.rpartition(" : ")[2]
    goal = goal.removesuffix(" :=")
    name = rng.choice(row.hypotheses) if row.hypotheses else "h"
    kind = row.formal_statement.partition(f"({name} : ")[2].partition(") (")[0].partition(") :")[0] or goal
    message = rng.choice(_ERRORS).replace("NAME", name).replace("KIND", kind).replace("GOAL", goal)
    return f"1:{rng.randint(40, 120)}: error: {message}"[: rng.choice([120, 160, 200, 240, 300])]


_ERRORS = [
    "Type mismatch\n  NAME\nhas type\n  KIND\nbut is expected to have type\n  GOAL",
    "Type mismatch\n  fun t => ...\nis a function, but is expected to have type\n  GOAL",
    "Type mismatch\n  Int.mul_comm ?m.17 ?m.18\nhas type\n  ?m.17 * ?m.18 = ?m.18 * ?m.17\n"
    "but is expected to have type\n  GOAL",
    "Application type mismatch: The argument\n  NAME\nhas type\n  KIND\nbut is expected to have type\n"
    "  ?m.54 ∨ ?m.55\nin the application\n  Or.elim NAME",
    "Application type mismatch: The argument\n  NAME\nhas type\n  KIND\nbut is expected to have type\n"
    "  ?m.6 ≤ ?m.3\nin the application\n  Nat.le_trans NAME",
    "Invalid field `mp`: The environment does not contain such a name for\n  NAME\nof type `KIND`",
    "minilean: unsupported: `.mpr` for this type",
    "minilean: unsupported: `⟨...⟩` for this type",
    "Invalid `⟨...⟩` notation: The expected type\n  GOAL\nis not an inductive type with exactly one constructor",
    "Invalid projection: Projections cannot be used on functions, and\n  NAME\nhas function type\n  KIND",
    "Function expected at\n  NAME\nbut this term has type\n  KIND",
    "Tactic `decide` failed: expected type must not contain free variables\n  GOAL\n\n"
    "Hint: Use the `+revert` option to automatically revert free variables",
    "omega could not prove the goal:\nNo usable constraints found. You may need to unfold definitions",
    "omega could not prove the goal:\na possible counterexample may satisfy the constraints\n⊢ GOAL",
    "Tactic `right` failed: target is not an inductive datatype with two constructors\n\nNAME : KIND\n⊢ GOAL",
    "Tactic `left` failed: target is not an inductive datatype with two constructors\n\nNAME : KIND\n⊢ GOAL",
    "Tactic `constructor` failed: no applicable constructors found\n\nNAME : KIND\n⊢ GOAL",
    "Tactic `introN` failed: There are no additional binders or `let` bindings in the goal to introduce\n\n"
    "NAME : KIND\n⊢ GOAL",
    "unsolved goals\nNAME : KIND\n⊢ GOAL",
    "Unknown identifier `NAME`",
]
