"""Names of real Lean that minilean does not implement: refused as unsupported instead of as unknown.

Lists of words only; nothing is ever accepted because of them. `known_words.txt` has one list per line.
"""

from __future__ import annotations

import functools
from importlib import resources


@functools.cache
def _lists() -> dict[str, frozenset[str]]:
    text = resources.files("fd_async.verifier.minilean").joinpath("known_words.txt").read_text(encoding="utf-8")
    lists: dict[str, set[str]] = {}
    for line in text.splitlines():
        key, colon, words = line.partition(":")
        if colon and not line.startswith("#"):
            lists.setdefault(key, set()).update(words.split())
    return {key: frozenset(words) for key, words in lists.items()}


def words(key: str) -> frozenset[str]:
    """One of the lists."""
    return _lists()[key]


def is_known_tactic(name: str) -> bool:
    """Whether Lean or Mathlib has this tactic."""
    tactics = _lists()["tactics"]
    return name in tactics or name.rstrip("?!'") in tactics


def is_known_name(name: str) -> bool:
    """Whether Lean or Mathlib may have this constant."""
    namespace, dot, _ = name.partition(".")
    return (bool(dot) and namespace in _lists()["namespaces"]) or name in _lists()["names"] | core_names()


def core_names() -> frozenset[str]:
    """Undotted names that core Lean declares, so that a theorem may not take them."""
    return _lists()["core"]
