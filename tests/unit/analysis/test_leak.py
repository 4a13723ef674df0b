"""Leaks: which grams count, what is earlier, and what is only chance."""

from __future__ import annotations

import msgspec
import pytest

from fd_async.analysis.leak import Exchange, measure, proof_grams, said_grams, share_of, tokens

STATEMENT = "theorem t (a b : ℝ) (h : 0 < a) :\n    a ^ 2 + b ^ 2 ≥ 0 := by sorry"
PROOF = "by\n  have key := sq_nonneg (a - b)\n  exact le_of_lt (add_pos (sq_pos_of_pos h) key)"
FILE = f"import Mathlib\n{STATEMENT.removesuffix('by sorry')}{PROOF}"


def exchange(name: str = "t", **changes: object) -> Exchange:
    """Return a trained, failed attempt with harmless feedback."""
    usual = Exchange(
        name=name, formal_statement=STATEMENT, known_proof=PROOF, file="", version=0, trained_at=1, feedback="Be brief."
    )
    return msgspec.structs.replace(usual, **changes)


def test_tokens_are_names_numbers_and_single_characters() -> None:
    """Dots, primes and subscripts belong to a name; comments are nothing."""
    assert tokens("exact h₀.le' x_1 ≤ 2.5 -- done\n⟨rfl⟩") == ["exact", "h₀.le'", "x_1", "≤", "2.5", "⟨", "rfl", "⟩"]
    assert tokens("Nat.mul_add _ _") == ["Nat.mul_add", "_", "_"]


def test_the_statement_and_the_imports_are_no_part_of_a_proof() -> None:
    """A file that only repeats its statement has nothing that could leak."""
    assert proof_grams(f"import Mathlib\nopen Real\n{STATEMENT.removesuffix(' by sorry')} by", STATEMENT) == frozenset()
    found = proof_grams(FILE, STATEMENT)
    assert found == proof_grams(PROOF, STATEMENT)
    assert ("have", "key", ":", "=") in found
    assert not any("Mathlib" in gram or "ℝ" in gram for gram in found)


def test_a_lemma_before_the_statement_is_part_of_the_proof() -> None:
    """What stands on either side of the statement counts, and no gram goes across it."""
    found = proof_grams(f"lemma helper_one : my_special_fact := proof_of_it\n{STATEMENT}", STATEMENT)
    assert ("lemma", "helper_one", ":", "my_special_fact") in found
    assert not any("my_special_fact" in gram and "theorem" in gram for gram in found)


def test_a_short_proof_is_one_gram_and_is_found_in_a_sentence() -> None:
    """`omega` is a proof that a feedback can give away."""
    short = proof_grams("by omega", STATEMENT)
    assert short == {("omega",)}
    assert share_of(short, said_grams("Do try `omega` first.")) == 1
    assert share_of(short, said_grams("Do try `linarith` first.")) == 0


def test_a_feedback_that_shows_the_proof_gives_all_of_it_away_and_another_none() -> None:
    """The control uses feedback on another statement."""
    leaks = measure([exchange(feedback=f"Example:\n{FILE}"), exchange("u", known_proof="by decide_it_now")])
    assert leaks.given_away is not None
    assert leaks.given_away.num == 2
    assert leaks.given_away.mean == 0.5
    assert leaks.given_away.whole == 0.5
    assert leaks.given_away.control == 0


def test_only_feedback_that_the_weights_have_seen_can_leak_into_a_proof() -> None:
    """Trained at step 3: version 3 knows it, version 2 does not."""
    teach = exchange(feedback=FILE, trained_at=3)
    before = exchange(file=FILE, proved=True, version=2, trained_at=5)
    after = exchange(file=FILE, proved=True, version=3, trained_at=6)
    assert measure([teach, before]).taken_up is None
    unseen = measure([teach, before]).unseen
    assert unseen is not None
    assert unseen.mean == 1
    found = measure([after, teach]).taken_up
    assert found is not None
    assert (found.num, found.mean, found.whole) == (1, 1, 1)


def test_what_the_earlier_attempt_had_said_itself_does_not_come_from_its_feedback() -> None:
    """The feedback repeats the attempt's own file: taken up, but not only there."""
    teach = exchange(feedback=FILE, file=FILE, trained_at=3)
    leaks = measure([teach, exchange(file=FILE, proved=True, version=4)])
    assert leaks.taken_up is not None
    assert leaks.only_there is not None
    assert leaks.taken_up.mean == 1
    assert leaks.only_there.mean == 0


def test_words_that_all_proofs_share_show_in_the_control() -> None:
    """Feedback on another statement says the same: nothing of it is a leak."""
    common = "Use `nlinarith [sq_nonneg (a - b)]`."
    proof = exchange(file="by nlinarith [sq_nonneg (a - b)]", proved=True, version=9, formal_statement="")
    leaks = measure([exchange(feedback=common), exchange("u", feedback=common), proof])
    assert leaks.taken_up is not None
    assert leaks.taken_up.control == leaks.taken_up.mean > 0.5


def test_attempts_at_one_statement_count_as_one_in_the_interval() -> None:
    """Two thousand attempts at one statement are no two thousand statements, and take no square of the time."""
    teach = exchange(feedback=FILE)
    many = measure([teach, *[exchange(file=FILE, proved=True, version=1)] * 2000]).taken_up
    assert many is not None
    assert (many.num, many.num_statements) == (2000, 1)
    assert many.low < 0.25
    assert many.high == 1


def test_a_share_and_its_control_are_means_over_the_same_statements() -> None:
    """Else one statement with many attempts would move the one and not the other."""
    other = exchange("u", known_proof="by nlinarith [mul_pos h h]", feedback=FILE)
    given = measure([exchange(), exchange(), exchange(), other]).given_away
    assert given is not None
    assert (given.num, given.num_statements, given.mean) == (4, 2, 0)
    assert given.control == 0.5  # that of `t` is 1: the feedback on `u` holds its proof


def test_an_own_feedback_does_not_speak_for_a_later_one() -> None:
    """A proof written before any feedback is not called found in its own."""
    quoted = exchange(feedback=FILE, file=FILE, proved=True, version=0, trained_at=3)
    alone = measure([quoted])
    assert alone.taken_up is alone.unseen is None
    other = measure([quoted, exchange(trained_at=5)]).unseen
    assert other is not None
    assert other.mean == 0


@pytest.mark.parametrize("file", ["", "\x00\x00", "-- only words", "⟨⟨⟨", "theorem " * 3000])
def test_rubbish_is_measured_without_an_error(file: str) -> None:
    """Nothing in it means nothing to measure."""
    measure([exchange(feedback=file), exchange(file=file, proved=True, version=7, formal_statement=file)])


def test_no_feedback_means_no_measure() -> None:
    """GRPO has none."""
    leaks = measure([exchange(feedback="", file=FILE, proved=True)])
    assert leaks.given_away is leaks.taken_up is leaks.only_there is leaks.unseen is None
