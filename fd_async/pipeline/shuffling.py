"""Whose feedback each attempt is shown in place of its own, when the run asks whether feedback causes what is learned.

A derangement of the batch: every attempt gets the feedback of another one, on another statement, with other words,
and no feedback is given twice, so that true and shuffled feedback are the same texts in another order.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Mapping, Sequence

from msgspec import Struct


class Exchanged(Struct, frozen=True):
    """What of an attempt decides with whom it may exchange."""

    rollout_id: str
    statement: str
    """Name of the statement."""
    formal_statement: str
    feedback: str


def derange(attempts: Sequence[Exchanged], seed: str) -> dict[str, str]:
    """Map attempts to others whose feedback they get, as many as there can be; the same for the same seed.

    Attempts that share a statement or a text, directly or through others, stand together in a circle that is turned by
    the length of the longest such stretch: nobody meets its own. Where a stretch is longer than half of the circle,
    the attempts in it that meet each other go without. Blank feedback is neither given nor replaced.
    """
    chance = random.Random(seed)
    spoken = sorted((a for a in attempts if a.feedback.strip()), key=lambda attempt: attempt.rollout_id)
    stretches = list(_alike(spoken))
    chance.shuffle(stretches)
    for stretch in stretches:
        chance.shuffle(stretch)
    circle = [(number, attempt.rollout_id) for number, stretch in enumerate(stretches) for attempt in stretch]
    turn = max(map(len, stretches), default=0)
    others = circle[turn:] + circle[:turn]
    return {own: other for (one, own), (two, other) in zip(circle, others, strict=True) if one != two}


def _alike(attempts: Sequence[Exchanged]) -> Iterator[list[Exchanged]]:
    """Yield the sets of attempts that share something, in the order of their first members."""
    parents: dict[Hashable, Hashable] = {}
    for attempt in attempts:
        root = _root(parents, ("name", attempt.statement))
        for key in (("theorem", attempt.formal_statement.strip()), ("text", attempt.feedback.strip())):
            parents[_root(parents, key)] = root
    sets: dict[Hashable, list[Exchanged]] = {}
    for attempt in attempts:
        sets.setdefault(_root(parents, ("name", attempt.statement)), []).append(attempt)
    yield from sets.values()


def _root(parents: Mapping[Hashable, Hashable], key: Hashable) -> Hashable:
    while (parent := parents.get(key, key)) != key:
        key = parent
    return key
