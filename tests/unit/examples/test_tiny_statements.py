"""The statements of the tiny world."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from examples.tiny.families import FAMILIES, RECIPES, fill
from examples.tiny.statements import (
    DATA,
    NUM_TEST,
    NUM_TRAIN,
    SEED,
    Row,
    make_row,
    make_split,
    make_world,
    normal_form,
    write_world,
)


@pytest.fixture(scope="module")
def world() -> dict[str, list[Row]]:
    return make_world()


def test_shipped_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    """The data can be made again, byte for byte."""
    write_world(tmp_path)
    for split in ("train", "test"):
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (DATA / f"{split}.jsonl").read_bytes()


def test_sizes_and_unique_names(world: dict[str, list[Row]]) -> None:
    """Names are unique over both splits."""
    assert (len(world["train"]), len(world["test"])) == (NUM_TRAIN, NUM_TEST)
    names = [row.name for rows in world.values() for row in rows]
    assert len(set(names)) == len(names)


def test_no_shape_of_the_test_split_occurs_in_training(world: dict[str, list[Row]]) -> None:
    """Not even after renaming every variable and hypothesis."""
    train = {normal_form(row.formal_statement) for row in world["train"]}
    assert not [row for row in world["test"] if normal_form(row.formal_statement) in train]


def test_every_family_is_in_both_splits(world: dict[str, list[Row]]) -> None:
    """So that what is learned in training can show in the test."""
    for rows in world.values():
        assert {row.family for row in rows} == {family.name for family in FAMILIES}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("theorem a (p q : Prop) (h : p ∧ q) : q ∧ p :=", "theorem b (B A : Prop)  (h1 : A ∧ B) : B  ∧ A :="),
        ("theorem a (m n : Nat) : m * n = n * m :=", "theorem b (i a : Nat) : a * i = i * a :="),
    ],
)
def test_normal_form_ignores_names_and_spaces(first: str, second: str) -> None:
    """Two spellings of one statement have one normal form."""
    assert normal_form(first) == normal_form(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("theorem a (p q : Prop) (h : p ∧ q) : q ∧ p :=", "theorem a (p q : Prop) (h : p ∧ q) : p ∧ q :="),
        ("theorem a (m n : Nat) : m * n = n * m :=", "theorem a (m n : Int) : m * n = n * m :="),
        ("theorem a (m n : Nat) : m + 2 = n :=", "theorem a (m n : Nat) : m + 3 = n :="),
    ],
)
def test_normal_form_keeps_what_matters(first: str, second: str) -> None:
    """Structure, kinds of numbers and constants distinguish statements."""
    assert normal_form(first) != normal_form(second)


def test_rows_are_valid_json_with_the_documented_keys() -> None:
    """One line per theorem, `formal_statement` up to `:=`, `proof` behind it."""
    for line in (DATA / "test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert set(row) == {"name", "formal_statement", "proof"}
        assert row["formal_statement"].startswith(f"theorem {row['name']} ")
        assert row["formal_statement"].endswith(" :=")
        assert row["proof"].startswith("by ")


def test_seed_changes_the_statements() -> None:
    """Another seed is another world."""
    rows = [make_split(24, test=False, seed=seed) for seed in (SEED, SEED + 1)]
    assert {row.formal_statement for row in rows[0]}.isdisjoint(row.formal_statement for row in rows[1])


def test_proofs_name_only_what_the_statement_declares() -> None:
    """A recipe's holes are filled with the hypotheses of the statement."""
    rng = random.Random(1)
    for family in FAMILIES:
        row = make_row(family, "tiny_0000", rng)
        assert "$" not in row.proof
        assert all(f"({name} : " in row.formal_statement for name in row.hypotheses)


def test_foreign_recipes_can_be_tried_with_any_number_of_hypotheses() -> None:
    """Missing names are taken again, or invented."""
    assert fill("exact Or.elim $1 $2 $3", ["k"]) == "exact Or.elim k k k"
    assert fill("exact $1.mp $2", []) == "exact h.mp h"
    assert len(RECIPES) == len(FAMILIES) - 1
