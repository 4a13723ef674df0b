"""How much of a feedback leaks into proofs: n-grams of Lean tokens that stand in both. Pure functions, no I/O.

A token is a name (dots, primes and subscripts belong to it), a number, or one other character; blanks and line
comments do not count. A gram is NUM_TOKENS tokens in a row, of which one is a name of three letters or more; a shorter
text is one gram. What stands in the statement is no leak, and neither are imports and options.

    given away    share of the known proof's grams that stand in a feedback
    taken up      share of an accepted proof's grams that stand in a feedback on an earlier attempt at the statement
    only there    of those, what did not stand in the file of that earlier attempt: the model had not said it before
    unseen        share of an accepted proof's grams that stand in a feedback on another attempt, trained on later only

"Earlier" is causal: the feedback's attempt was trained at a step that the newest weights of the proof include. Two
things look like a leak and are none. Proofs share words ("nlinarith [sq_nonneg"): so each share has a control, the same
proof against the feedback on another statement up to the same step. And a statement may have one natural proof, which
the model finds alone: `unseen` says how often. A leak is what `taken up` is above both.
"""

from __future__ import annotations

import bisect
import math
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence

from msgspec import Struct

from fd_async.analysis.passk import interval_of_mean

NUM_TOKENS = 4
_MAX_LOOKED_AT = 64
"""Statements that are asked for a control before there is none."""
Gram = tuple[str, ...]
Grams = frozenset[Gram]

_TOKEN = re.compile(r"--[^\n]*|([^\W\d][\w'!?₀-₉]*(?:\.[^\W\d][\w'!?₀-₉]*)*|\d+(?:\.\d+)?|[^\w\s])")
_PREAMBLE = re.compile(r"^\s*(?:import|open|set_option|universe|namespace|end|section)\b[^\n]*$", re.MULTILINE)
_OPEN_END = re.compile(r":=\s*(?:by\b\s*)?(?:sorry\b\s*)?\Z")


class Exchange(Struct, frozen=True, kw_only=True):
    """One attempt with its feedback, as far as leaks are concerned."""

    name: str
    """Of the statement."""
    formal_statement: str
    known_proof: str = ""
    file: str = ""
    """The Lean file that was judged."""
    proved: bool = False
    version: int = 0
    """Newest weight version that wrote a token of it."""
    trained_at: int | None = None
    """Gradient step that learned from the feedback; None where none did."""
    feedback: str = ""


class Share(Struct, frozen=True):
    """A mean over statements with its 95 % interval, and in how many cases it was everything."""

    num: int
    """Cases: feedbacks or proofs."""
    num_statements: int
    mean: float
    low: float
    high: float
    whole: float
    """Share of the cases in which every gram was found."""
    control: float | None
    """The same with feedback on another statement; None where there is none."""


class Leaks(Struct, frozen=True):
    """What `measure` found; None where there was no case."""

    given_away: Share | None
    taken_up: Share | None
    only_there: Share | None
    unseen: Share | None


def tokens(text: str) -> list[str]:
    """Cut Lean or prose into tokens."""
    return [found for found in _TOKEN.findall(text) if found]


def said_grams(text: str) -> Grams:
    """Return all that a text says: its distinct grams of up to NUM_TOKENS tokens, so that short proofs are found."""
    words = tokens(text)
    return frozenset(gram for size in range(1, NUM_TOKENS + 1) for gram in _runs(words, size))


def proof_grams(file: str, formal_statement: str) -> Grams:
    """Return the grams of what a file adds to its statement."""
    head = tokens(_OPEN_END.sub("", formal_statement.rstrip()))
    body = tokens(_PREAMBLE.sub("", file))
    place = _find(body, head)
    parts = [body[:place], body[place + len(head) :]] if place is not None else [body]
    inside = _grams(head)
    return frozenset().union(*(_grams(_without_opening(part)) for part in parts)) - inside


def share_of(wanted: Grams, said: Container[Gram]) -> float:
    """Return the share of grams that were said.

    Raises:
        ZeroDivisionError: if none is wanted.
    """
    return sum(gram in said for gram in wanted) / len(wanted)


def measure(exchanges: Sequence[Exchange]) -> Leaks:
    """Measure all shares over the attempts of a run. The time grows with their number, however few the statements."""
    spoken = [said_grams(one.feedback) for one in exchanges]
    told: dict[str, _Told] = {}
    trained = [(one.trained_at, i) for i, one in enumerate(exchanges) if one.trained_at is not None and spoken[i]]
    for step, index in sorted(trained):
        one, feedback = exchanges[index], spoken[index]
        told.setdefault(one.name, _Told(step, feedback)).add(step, feedback, said_grams(one.file))
    others = _Others(told)
    given: list[_Case] = []
    taken: list[_Case] = []
    only: list[_Case] = []
    unseen: list[_Case] = []
    for one, feedback in zip(exchanges, spoken, strict=True):
        known = proof_grams(one.known_proof, one.formal_statement) if feedback else frozenset()
        if known:
            other = others.after(one.name, math.inf)
            given.append(_Case(one.name, share_of(known, feedback), share_of(known, other.sample) if other else None))
        wanted = proof_grams(one.file, one.formal_statement) if one.proved else frozenset()
        mine = told.get(one.name) if wanted else None
        if mine is not None and mine.since <= one.version:
            other = others.after(one.name, one.version)
            control = other.share(wanted, one.version) if other else None
            taken.append(_Case(one.name, mine.share(wanted, one.version), control))
            only.append(_Case(one.name, mine.share(wanted, one.version, only_there=True), None))
            continue
        own = feedback if one.trained_at is not None else frozenset()
        if mine is not None and mine.num > bool(own):
            other = others.after(one.name, math.inf)
            control = other.share(wanted, math.inf) if other else None
            unseen.append(_Case(one.name, mine.share_by_others(wanted, own), control))
    return Leaks(_summary(given), _summary(taken), _summary(only), _summary(unseen))


class _Told:
    """What the feedback on the attempts at one statement says, and from which step on."""

    def __init__(self, since: int, sample: Grams) -> None:
        self.since = since
        self.sample = sample
        self.num = 0
        self._first: dict[Gram, int] = {}
        self._first_alone: dict[Gram, int] = {}
        self._twice: set[Gram] = set()

    def add(self, step: int, feedback: Grams, file: Grams) -> None:
        """Take in the feedback on an attempt with this file, trained at this step; steps rise."""
        self.num += 1
        self._twice |= feedback & self._first.keys()
        self._first.update(dict.fromkeys(feedback - self._first.keys(), step))
        self._first_alone.update(dict.fromkeys(feedback - file - self._first_alone.keys(), step))

    def share(self, wanted: Grams, version: float, *, only_there: bool = False) -> float:
        """Return the share of grams that these weights have been told."""
        first = self._first_alone if only_there else self._first
        return sum(gram in first and first[gram] <= version for gram in wanted) / len(wanted)

    def share_by_others(self, wanted: Grams, own: Grams) -> float:
        """Return the share of grams that stand in feedback on other attempts than the one with this feedback."""
        return sum(gram in self._first and (gram not in own or gram in self._twice) for gram in wanted) / len(wanted)


class _Case(Struct, frozen=True):
    name: str
    share: float
    control: float | None


class _Others:
    """Another statement, chosen without chance: the next in the order of names that weights have been told of."""

    def __init__(self, told: Mapping[str, _Told]) -> None:
        self._told = told
        self._names = sorted(told)

    def after(self, name: str, version: float) -> _Told | None:
        """Return what was said about it up to a version; None where nothing was."""
        start = bisect.bisect_right(self._names, name)
        for offset in range(min(len(self._names), _MAX_LOOKED_AT)):
            other = self._names[(start + offset) % len(self._names)]
            if other != name and self._told[other].since <= version:
                return self._told[other]
        return None


def _summary(cases: Sequence[_Case]) -> Share | None:
    """Average over statements: attempts at one statement are no independent evidence."""
    if not cases:
        return None
    means = _means([(case.name, case.share) for case in cases])
    mean = math.fsum(means) / len(means)
    low, high = interval_of_mean(means)
    controls = _means([(case.name, case.control) for case in cases if case.control is not None])
    return Share(
        num=len(cases),
        num_statements=len(means),
        mean=mean,
        low=low,
        high=high,
        whole=sum(case.share == 1 for case in cases) / len(cases),
        control=math.fsum(controls) / len(controls) if controls else None,
    )


def _means(shares: Iterable[tuple[str, float]]) -> list[float]:
    """Return the mean share of each statement."""
    by_name: dict[str, list[float]] = defaultdict(list)
    for name, share in shares:
        by_name[name].append(share)
    return [math.fsum(found) / len(found) for found in by_name.values()]


def _grams(words: Sequence[str]) -> Grams:
    size = min(NUM_TOKENS, len(words))
    names = {word for word in words if len(word) > 2 and word[0].isalpha()}
    return frozenset(gram for gram in _runs(words, size) if not names.isdisjoint(gram))


def _runs(words: Sequence[str], size: int) -> Iterable[Gram]:
    """Return all runs of so many tokens."""
    return zip(*(words[start:] for start in range(size)), strict=False)


def _without_opening(words: Sequence[str]) -> Sequence[str]:
    """Drop `:=` and `by` in front of a proof: every proof has them."""
    start = 0
    while start < len(words) and words[start] in (":", "=", "by"):
        start += 1
    return words[start:]


def _find(words: Sequence[str], part: Sequence[str]) -> int | None:
    """Return where a run of tokens begins, None where it does not stand."""
    if not part:
        return None
    return next(
        (
            place
            for place in range(len(words) - len(part) + 1)
            if words[place] == part[0] and list(words[place : place + len(part)]) == list(part)
        ),
        None,
    )
