"""Epistemic words: how often a policy voices doubt. Source: paper appendix C.4, figure 13."""

from __future__ import annotations

import re
from collections import Counter

EPISTEMIC_WORDS = (
    "wait",
    "hmm",
    "perhaps",
    "maybe",
    "actually",
    "alternatively",
    "seems",
    "might",
    "likely",
    "check",
)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def count_epistemic(text: str) -> tuple[Counter[str], int]:
    """Return occurrences of each epistemic word, whole words in any case, and the number of all words."""
    words = Counter(word.casefold() for word in _WORD.findall(text))
    return Counter({word: words[word] for word in EPISTEMIC_WORDS if words[word]}), words.total()


def epistemic_per_1k(texts: list[str]) -> float | None:
    """Return epistemic words per 1,000 words over all texts together, None without words."""
    hits = total = 0
    for text in texts:
        found, num_words = count_epistemic(text)
        hits += found.total()
        total += num_words
    return 1000 * hits / total if total else None
