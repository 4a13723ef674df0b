"""Make the statements of the tiny world: `python -m examples.tiny.statements`.

Deterministic. The two splits share no statement: every shape (`normal_form`) belongs to one split by its hash. A shape
keeps the names of hypotheses that have brackets in brackets, so three test statements occur in training up to names.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from examples.tiny.families import FAMILIES, HYPOTHESES, Body, Family, fill

DATA = Path(__file__).parent / "data"
NUM_TRAIN, NUM_TEST = 3000, 256
TEST_SHARE = 8
"""One shape in this many belongs to the test split."""
SEED = 20260
_BINDER = re.compile(r"\(([^():]+) : ([^()]*(?:\([^()]*\)[^()]*)*)\)")


@dataclass(frozen=True)
class Row:
    """One theorem with its family, its hypothesis names and a proof (the text after `:=`)."""

    name: str
    formal_statement: str
    proof: str
    family: str
    hypotheses: list[str]

    def to_json(self) -> str:
        """Encode what a data file holds."""
        row = {"name": self.name, "formal_statement": self.formal_statement, "proof": self.proof}
        return json.dumps(row, ensure_ascii=False)


def normal_form(formal_statement: str) -> str:
    """Spell a statement without its names: variables and hypotheses numbered by first use, declarations dropped."""
    _, _, rest = formal_statement.split(" ", 2)
    declared: dict[str, str] = {}
    for names, kind in _BINDER.findall(rest):
        if kind in ("Prop", "Nat", "Int"):
            declared |= dict.fromkeys(names.split(), kind)
        else:
            declared[names.strip()] = "h"
    rest = re.sub(r"\([^():]+ : (?:Prop|Nat|Int)\)", "", rest)
    numbers: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        word = match[0]
        return numbers.setdefault(word, f"{declared[word]}{len(numbers)}") if word in declared else word

    return "".join(re.sub(r"[A-Za-z_]\w*", number, rest).split())


def print_statement(name: str, body: Body, hypotheses: list[str], rng: random.Random) -> str:
    """Write Lean text up to and including `:=`, with the variables in random order."""
    binders: list[str] = []
    for kind, variables in body.variables.items():
        binders.append(f"({' '.join(rng.sample(variables, len(variables)))} : {kind})")
    binders += [f"({label} : {formula})" for label, formula in zip(hypotheses, body.hypotheses, strict=True)]
    return f"theorem {' '.join([name, *binders])} : {body.goal} :="


def make_row(family: Family, name: str, rng: random.Random) -> Row:
    """Draw one member of a family."""
    body = family.make(rng)
    hypotheses = rng.sample(HYPOTHESES, len(body.hypotheses))
    return Row(
        name=name,
        formal_statement=print_statement(name, body, hypotheses, rng),
        proof=f"by {fill(family.recipe, hypotheses)}",
        family=family.name,
        hypotheses=hypotheses,
    )


def is_test_shape(formal_statement: str) -> bool:
    """Decide the split by the hash of the shape."""
    digest = hashlib.sha256(normal_form(formal_statement).encode()).digest()
    return digest[0] % TEST_SHARE == 0


def make_split(count: int, *, test: bool, seed: int, names: list[str] | None = None) -> list[Row]:
    """Draw `count` different rows, families in turn."""
    rng = random.Random(f"{seed}-{test}")
    names = names or [f"tiny_{number:04d}" for number in rng.sample(range(10_000), count)]
    rows: list[Row] = []
    seen: set[str] = set()
    while len(rows) < count:
        row = make_row(FAMILIES[len(rows) % len(FAMILIES)], names[len(rows)], rng)
        text = row.formal_statement.split(" ", 2)[2]
        if is_test_shape(row.formal_statement) == test and text not in seen:
            seen.add(text)
            rows.append(row)
    rng.shuffle(rows)
    return rows


def make_world() -> dict[str, list[Row]]:
    """Make both splits, with theorem names that are unique over both."""
    numbers = random.Random(SEED).sample(range(10_000), NUM_TRAIN + NUM_TEST)
    names = [f"tiny_{number:04d}" for number in numbers]
    return {
        "train": make_split(NUM_TRAIN, test=False, seed=SEED, names=names[:NUM_TRAIN]),
        "test": make_split(NUM_TEST, test=True, seed=SEED, names=names[NUM_TRAIN:]),
    }


def write_world(folder: Path = DATA) -> None:
    """Write `train.jsonl` and `test.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in make_world().items():
        (folder / f"{split}.jsonl").write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    write_world()
