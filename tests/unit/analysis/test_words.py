"""Epistemic words."""

from __future__ import annotations

from fd_async.analysis.words import count_epistemic, epistemic_per_1k


def test_whole_words_count_in_any_case() -> None:
    """`waiting`, `lean_check_file` and `maybe_h` are other words."""
    found, total = count_epistemic("Wait, maybe. MAYBE waiting; it's check-ed: lean_checker 42")
    assert found == {"wait": 1, "maybe": 2, "check": 1}
    assert total == 9


def test_the_rate_is_over_all_words_together() -> None:
    """A long text weighs more than a short one; no words give no rate."""
    assert epistemic_per_1k(["hmm", "a b c d e f g h i"]) == 100
    assert epistemic_per_1k(["", "12"]) is None
