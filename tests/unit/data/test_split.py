"""The published split: a rule that anyone can recompute."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_async.data.sources.canonical import canonical, place, shared, split, statements_hash
from fd_async.data.sources.headers import normalise
from fd_async.errors import PreflightError
from fd_async.types import Statement


def make(ids: list[int], suffix: str = "") -> list[Statement]:
    return [
        Statement(name=f"n{i}{suffix}", formal_statement=f"theorem n{i}{suffix} : {i} = {i} := by sorry") for i in ids
    ]


def published() -> Callable[[str], str]:
    """Run what docs/data.md prints."""
    page = (Path(__file__).parents[3] / "docs/data.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {"re": re, "hashlib": hashlib}
    exec(snippet, names)
    place: Callable[[str], str] = names["place"]
    return place


published_place = published()
ids = st.lists(st.integers(0, 10_000), min_size=12, max_size=80, unique=True)


@settings(deadline=None, max_examples=60)
@given(ids, st.integers(1, 4), st.integers(1, 8), st.randoms(use_true_random=False))
def test_the_split_is_that_of_the_published_rule_whatever_the_order(
    numbers: list[int], num_test: int, num_train: int, dice: random.Random
) -> None:
    """Test takes the smallest places and train the largest."""
    rows = make(numbers)
    ordered = sorted(rows, key=lambda row: published_place(row.formal_statement))
    dice.shuffle(rows)
    train, test = split(rows, num_train, num_test, "here")
    assert (train, test) == (ordered[-num_train:], ordered[:num_test])
    everything, test = split(rows, 0, num_test, "here")
    assert everything + test == ordered[num_test:] + ordered[:num_test]


@settings(deadline=None, max_examples=60)
@given(ids, st.lists(st.integers(20_000, 30_000), max_size=10, unique=True))
def test_more_rows_move_few_statements_and_none_from_test_to_train(numbers: list[int], more: list[int]) -> None:
    """Each new row displaces at most one statement of each part."""
    num = len(numbers) // 3
    train, test = split(make(numbers), num, num, "here")
    new_train, new_test = split(make(numbers + more), num, num, "here")
    old_train, old_test = ({row.name for row in part} for part in (train, test))
    assert not old_test & {row.name for row in new_train}
    assert not old_train & {row.name for row in new_test}
    assert len(old_train - {row.name for row in new_train}) <= len(more)
    assert len(old_test - {row.name for row in new_test}) <= len(more)


@settings(deadline=None, max_examples=60)
@given(ids, st.sets(st.integers(0, 11)), st.randoms(use_true_random=False))
def test_a_renamed_twin_of_a_test_statement_is_never_trained_on(
    numbers: list[int], twins: set[int], dice: random.Random
) -> None:
    """Nor one with other spaces, another ending or another header; of twins the one with the smallest name counts."""
    text = "lemma  z{} :\n {}  =  {} :="
    rows = make(numbers) + [
        Statement(name=f"z{i}", formal_statement=text.format(i, numbers[i], numbers[i]), header="open Nat")
        for i in twins
    ]
    dice.shuffle(rows)
    train, test = split(rows, 0, 4, "here")
    assert not shared(train, test)
    assert len(train) + len(test) == len(numbers)
    assert all(row.name.startswith("n") for row in train + test)


def test_too_few_statements_are_told_with_what_to_lower() -> None:
    """The published sizes do not fit every source."""
    with pytest.raises(PreflightError, match=r"here: has 5 different statements, data.num_test .* need 10256: lower"):
        split(make([1, 2, 3, 4, 5]), 10_000, 256, "here")


def test_what_counts_as_the_same_statement() -> None:
    """Names, bound ones too, comments, endings and spaces do not; everything else does."""
    base = canonical("theorem a (x y : ℝ) (h : 0 < x) : ∃ z, x * z = y ∧ y.foo = f h.1 := by sorry")
    for same in (
        "lemma b (x y : ℝ) (h : 0 < x) : ∃ z, x * z = y ∧ y.foo = f h.1",
        "theorem c  (x y:ℝ)(h: 0<x):∃ z, x*z=y∧y.foo = f h.1 :=  by",
        "/-- The theorem of Foo. -/ theorem «d e»(x y : ℝ) (h : 0 < x) -- why\n : ∃ z, x * z = y ∧ y.foo = f h.1 :=",
        "theorem a (u x : ℝ) (h₀ : 0 < u) : ∃ v, u * v = x ∧ x.foo = f h₀.1 := by sorry",
    ):
        assert canonical(same) == base
    for other in (
        "theorem a (x y : ℝ) (h : 0 < y) : ∃ z, x * z = y ∧ y.foo = f h.1 := by sorry",
        "theorem a (x y : ℝ) (h : 0 < x) : ∃ z, x * z = y ∧ y.bar = f h.1 := by sorry",
        "theorem a (x y : ℝ) (h : 0 < x) : ∃ z, x * z = y ∧ y.foo = g h.1 := by sorry",
        "theorem a (x y : ℚ) (h : 0 < x) : ∃ z, x * z = y ∧ y.foo = f h.1 := by sorry",
    ):
        assert canonical(other) != base


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("theorem a : ∀ n > 0, ∑ i in range n, i = ∑' j, g j :=", ":∀#0>0,∑#1inrange#0,#1=∑'#2,g#2"),
        ("theorem a (f : ℕ → ℕ) : (fun x => f x) = fun y ↦ f y :=", "(#0:ℕ→ℕ):(fun#1=>#0#1)=fun#2↦#0#2"),
        ("theorem a.{u} {α : Type u} [inst : Foo α] : ∃! s ∈ t, s.card = (2 : ℕ) :=",
         "{u}{#0:Typeu}[#1:Foo#0]:∃!#2∈t,#2.card=(2:ℕ)"),
    ],
)  # fmt: skip
def test_only_names_that_a_binder_introduces_are_numbered(text: str, kept: str) -> None:
    """Words of the language, constants, fields and numbers stay."""
    assert canonical(text) == kept
    assert place(text) == published_place(text)


def test_the_hash_of_a_set_of_statements_does_not_depend_on_order_or_spelling_of_headers() -> None:
    """It does on names, headers and every byte of a statement."""
    rows = make(list(range(9)))
    known = statements_hash(rows)
    assert statements_hash(rows[::-1]) == known
    first = rows[0]
    for changes in ({"name": "other"}, {"header": "open Nat"}, {"formal_statement": first.formal_statement + " "}):
        fields = {"name": first.name, "formal_statement": first.formal_statement, **changes}
        assert statements_hash([Statement(**fields), *rows[1:]]) != known
    spelt = [Statement(name="a", formal_statement="b", header=text) for text in ("open Nat", "\n-- x\nopen  Nat \r\n")]
    assert statements_hash(spelt[:1]) == statements_hash(spelt[1:])


@pytest.mark.parametrize(
    "spelling",
    [
        "import Mathlib\nimport Aesop\n\nset_option maxHeartbeats 0\n\nopen Nat Real\n\n",
        "import Mathlib\r\nimport Aesop\r\nimport Mathlib\r\nset_option maxHeartbeats 0\r\nopen Nat\r\n  Real\r\n",
        "import Mathlib\n/- b -/ import Aesop\n  set_option maxHeartbeats 0\n/- c\n-/ open Nat\n /- d -/ Real",
        "import  Mathlib -- all\n/- a\nopen A /- b -/ -/\nimport Aesop\nset_option maxHeartbeats 0\nopen Nat Real",
    ],
)
def test_spellings_of_one_header_become_one(spelling: str) -> None:
    """Each distinct text would cost a Lean worker of its own."""
    assert normalise(spelling) == "import Mathlib\nimport Aesop\nset_option maxHeartbeats 0\nopen Nat Real"
    assert normalise(normalise(spelling)) == normalise(spelling)


def test_headers_that_differ_stay_different() -> None:
    """Order counts, and text in quotes is not touched."""
    assert normalise("open Nat\nopen Real") != normalise("open Real\nopen Nat")
    assert normalise('set_option a "x  -- y"\n\n') == 'set_option a "x  -- y"'
