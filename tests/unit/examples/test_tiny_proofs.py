"""The recipes of the tiny world before the small checker."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from examples.tiny.families import FAMILIES, RECIPES, fill
from examples.tiny.statements import Row, make_world
from fd_async.verifier.minilean.protocol import Repl


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Two members of every family."""
    test = make_world()["test"]
    return [row for family in FAMILIES for row in [r for r in test if r.family == family.name][:2]]


def _proves(repl: Repl, row: Row, recipe: str) -> bool:
    text = f"{row.formal_statement} by {fill(recipe, row.hypotheses)}"
    answer = repl.answer(json.dumps({"cmd": text}))
    return "env" in answer and not [m for m in answer.get("messages", []) if m["severity"] == "error"]


def test_every_known_proof_is_accepted(rows: list[Row]) -> None:
    """Each family's recipe proves its members."""
    repl = Repl()
    recipes = {family.name: family.recipe for family in FAMILIES}
    assert [row.formal_statement for row in rows if not _proves(repl, row, recipes[row.family])] == []


def test_hardly_any_recipe_proves_another_family(rows: list[Row]) -> None:
    """A recipe drawn at random solves under a tenth, so that solving takes knowledge."""
    repl, rng = Repl(), random.Random(0)
    solved = Counter(_proves(repl, row, recipe) for row in rows for recipe in rng.sample(RECIPES, 4))
    assert solved[True] / solved.total() < 0.1
