"""minilean against a written semantics: `python -m bench.minilean [--quick]`.

Keys: `cases` tried (valid by construction, nearly right, random) and how many of them were `accepted`; `unsound`:
accepted with a counterexample, must be 0; `undecided`: accepted, neither refuted nor confirmed; `unread`: accepted and
outside the semantics, must be 0; `internal_errors`: bugs that the checker caught in itself; `valid_accepted`: share of
the proofs right by construction that pass; `false_share_of_refused`: how many refused statements have a counterexample
(of every tenth); `forms_missing` of the fragment that no accepted proof used; `startup_s` of the worker until its first
answer; `check_ms_p50` and `check_ms_p99` of the tiny world's proofs through judge, pool and REPL client.
"""

from __future__ import annotations

import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec

from bench.common import arguments, emit
from bench.minilean_cases import Case, Maker, random_case
from bench.minilean_mutations import nearly_right
from bench.minilean_oracle import truth
from bench.minilean_statement import Unread, read_statement
from fd_async.config.schema import Verifier as VerifierTable
from fd_async.errors import VerifierError
from fd_async.types import Statement
from fd_async.verifier.minilean import prelude
from fd_async.verifier.minilean.commands import Environment, Runner
from fd_async.verifier.minilean.lexer import blank_comments, split_commands, tokenize
from fd_async.verifier.minilean.parser import parse_command
from fd_async.verifier.minilean.syntax import Binary, Focus, Node, Pattern, Quantified, Repeat, Simple, Unary
from fd_async.verifier.minilean.tactics import Tactics
from fd_async.verifier.verifier import open_verifier

_TINY = Path(__file__).parents[1] / "examples/tiny/data/train.jsonl"
_NOT_PROOFS = frozenset(["sorry", "admit"])
_TAGGED = {Simple: "name", Binary: "op", Unary: "op", Quantified: "op", Focus: "kind", Repeat: "kind", Pattern: "kind"}


class Tally:
    """What became of the cases."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.forms: Counter[str] = Counter()
        self.unsound: list[str] = []
        self.undecided: list[str] = []

    def add(self, case: Case, check_refused: bool = False) -> None:
        """Check one case, and what the checker accepts against the semantics."""
        result = Runner(Environment(), case.text).run()
        self.counts["cases"] += 1
        self.counts[case.kind] += 1
        internal = [m.data for m in result.messages if "internal error" in m.data or "by the kernel" in m.data]
        self.counts["internal_errors"] += bool(internal)
        if not result.messages and result.environment.theorems:
            self.counts["accepted"] += 1
            self.counts[f"{case.kind}_accepted"] += 1
            self.forms.update(forms(case.text))
            self._confirm(case)
        elif check_refused:
            self.counts["wrong_statements"] += self._verdict(case.text) == "false"

    def _confirm(self, case: Case) -> None:
        found = self._verdict(case.text)
        if found == "false":
            self.unsound.append(case.text)
        elif found == "unread":
            self.counts["unread"] += 1
            self.undecided.append(case.text)
        elif found == "unknown":
            self.undecided.append(case.text)

    def _verdict(self, text: str) -> str:
        """The worst of what the semantics says of the theorems in a text."""
        found = set()
        for part in re.split(r"^(?=theorem )", text, flags=re.MULTILINE)[1:]:
            try:
                statement = read_statement(part)
                found.add(truth(statement))
            except Unread:
                found.add("unread")
        return next(worst for worst in ("false", "unread", "unknown", "true") if worst in found)


def forms(text: str) -> set[str]:
    """Return the tactic and term forms in a text that the checker can read."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, Node):
            tag = _TAGGED.get(type(value))
            found.add(type(value).__name__ + (f" {getattr(value, tag)}" if tag else ""))
            for name in value.__struct_fields__:
                walk(getattr(value, name))
        elif isinstance(value, list):
            for part in value:
                walk(part)

    for tokens in split_commands(tokenize(blank_comments(text))):
        walk(parse_command(tokens)[0])
    return found


def all_forms() -> set[str]:
    """Return every form of the fragment that a proof without `sorry` may use."""
    tactics = {name.removeprefix("do_") for name in dir(Tactics) if name.startswith("do_")} - _NOT_PROOFS
    plain = "Ident DotIdent Numeral Hole SortTerm Apply Project Fun Anonymous Ascription Paren By Show HaveTerm"
    blocks = "Typed HaveTactic ShowTactic SufficesTactic Cases Alternative Destruct Rintro First Then"
    tagged = {
        "Focus": "cdot braces parens case next",
        "Repeat": "try repeat all_goals any_goals",
        "Quantified": "FORALL EXISTS",
    }
    tagged |= {
        "Binary": "ARROW AND OR IFF = ≠ < ≤ > ≥ PLUS MINUS TIMES",
        "Unary": "NOT MINUS",
        "Simple": " ".join(tactics),
    }
    return {
        *plain.split(),
        *blocks.split(),
        *(f"{kind} {tag}" for kind, tags in tagged.items() for tag in tags.split()),
    }


def corpus() -> list[str]:
    """Return the tiny world's statements with their proofs, as theorem `t`."""
    rows = [json.loads(line) for line in _TINY.read_text(encoding="utf-8").splitlines()]
    return [re.sub(r"^theorem \S+", "theorem t", f"{row['formal_statement']} {row['proof']}") for row in rows]


def cases(seed: int, count: int, proofs: list[str]) -> Iterator[Case]:
    """Yield cases: two fifths valid, two fifths nearly right, a fifth random; the same for the same seed."""
    rng = random.Random(seed)
    lemmas = [name for name in prelude.lemma_names() if not name.startswith("#")]
    for _ in range(count):
        valid = rng.choice(proofs) if rng.random() < 0.25 else Maker(rng).theorem()
        draw = rng.random()
        if draw < 0.4:
            yield Case(valid, "valid")
        elif draw < 0.8:
            yield Case(nearly_right(valid, rng, lemmas), "nearly_right")
        else:
            yield Case(random_case(rng), "random")


def startup_s(times: int) -> float:
    """Median seconds from the start of a worker process to its first answer."""
    command = json.dumps({"cmd": "theorem t (p : Prop) (h : p) : p := h"}) + "\n\n"
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        argv = [sys.executable, "-m", "fd_async.verifier.minilean"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(command)
            process.stdin.flush()
            process.stdout.readline()
            seconds.append(time.perf_counter() - started)
            process.stdin.close()
    return statistics.median(seconds)


async def check_seconds(count: int) -> list[float]:
    """Seconds of each check of the tiny world's proofs, one at a time, through the verifier."""
    rows = [msgspec.json.decode(line, type=Statement) for line in _TINY.read_bytes().splitlines()[:count]]
    table = VerifierTable(backend="minilean", workers=1, spares=0, sandbox="bubblewrap_if_it_works", audit="off")
    seconds = []
    async with open_verifier(table, output_chars=2000) as verifier:
        for row in rows:
            started = time.perf_counter()
            verdict = await verifier.check(f"{row.formal_statement} {row.proof}", row)
            seconds.append(time.perf_counter() - started)
            if not verdict.is_proved:
                raise VerifierError(f"{row.name}: {verdict.kind}: {verdict.reason}")
    return seconds


def main() -> None:
    """Run the cases, then measure start-up and checks."""
    quick = arguments(__doc__).quick
    started = time.perf_counter()
    tally = Tally()
    for number, case in enumerate(cases(20, 1_500 if quick else 12_000, corpus())):
        tally.add(case, check_refused=number % 10 == 0)
    for text in [*tally.unsound, *tally.undecided]:
        print(text, end="\n\n", file=sys.stderr)
    seconds = sorted(anyio.run(check_seconds, 200 if quick else 1_000))
    counts, missing = tally.counts, sorted(all_forms() - set(tally.forms))
    emit(
        {
            "cases": counts["cases"],
            "accepted": counts["accepted"],
            "unsound": len(tally.unsound),
            "undecided": len(tally.undecided) - counts["unread"],
            "unread": counts["unread"],
            "internal_errors": counts["internal_errors"],
            "valid": counts["valid"],
            "valid_accepted": round(counts["valid_accepted"] / counts["valid"], 4),
            "nearly_right": counts["nearly_right"],
            "nearly_right_accepted": counts["nearly_right_accepted"],
            "random": counts["random"],
            "random_accepted": counts["random_accepted"],
            "false_share_of_refused": round(
                counts["wrong_statements"] * 10 / (counts["cases"] - counts["accepted"]), 3
            ),
            "forms": len(all_forms()),
            "forms_missing": missing,
            "rarest_forms": dict(sorted(tally.forms.items(), key=lambda item: item[1])[:8]),
            "startup_s": round(startup_s(3 if quick else 9), 3),
            "check_ms_p50": round(1000 * statistics.median(seconds), 2),
            "check_ms_p99": round(1000 * seconds[int(0.99 * (len(seconds) - 1))], 2),
            "seconds": round(time.perf_counter() - started, 1),
        }
    )


if __name__ == "__main__":
    main()
