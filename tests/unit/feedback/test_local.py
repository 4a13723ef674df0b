"""Feedback that no model writes."""

from __future__ import annotations

import pytest

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackRejected
from fd_async.feedback.local import prove
from fd_async.feedback.provider import open_provider
from fd_async.types import Statement, Verdict
from tests.unit.feedback.conftest import make_rollout

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("end", [":=", ":= by", ":= sorry", ":= by sorry", ":= by\n  sorry\n"])
@pytest.mark.parametrize("proof", ["by\n  omega", ":= by\n  omega", " by\n  omega\n"])
def test_a_proof_takes_the_place_of_every_open_end(end: str, proof: str) -> None:
    """The result is the same whichever way the statement was left open."""
    assert prove(f"theorem t (h : a := b) : p {end}", proof) == "theorem t (h : a := b) : p := by\n  omega"


def test_backslashes_of_a_proof_are_kept() -> None:
    """Lean's `fun` may be written with a backslash."""
    assert prove("theorem t : p :=", r"fun \x => \1") == r"theorem t : p := fun \x => \1"


async def test_ground_truth_shows_statement_and_proof() -> None:
    """The paper's wording, section 5.1."""
    async with open_provider(FeedbackTable(type="ground_truth")) as provider:
        feedback = await provider.feedback(make_rollout())
    assert feedback.text == (
        "Example of a correct solution:\ntheorem add_pos {x y : Int} (h : 0 < x) (k : 0 < y) : 0 < x + y := by\n  omega"
    )
    assert (feedback.provider, feedback.usd, feedback.asked) == ("ground_truth", 0.0, 0)


async def test_ground_truth_without_a_proof_is_dropped_by_name() -> None:
    """The cause is counted and the message names the file to mend."""
    rollout = make_rollout(statement=Statement(name="open_problem", formal_statement="theorem t : p :="))
    async with open_provider(FeedbackTable(type="ground_truth")) as provider:
        with pytest.raises(FeedbackRejected, match=r"open_problem.*data\.train") as caught:
            await provider.feedback(rollout)
        assert provider.statistics()["drops"] == {"no_known_proof": 1}
    assert caught.value.cause == "no_known_proof"


async def test_lean_output_of_a_failure_is_the_raw_output() -> None:
    """The paper's wording, section 5.1."""
    async with open_provider(FeedbackTable(type="lean_output")) as provider:
        feedback = await provider.feedback(make_rollout())
    assert feedback.text == (
        "The following is feedback from your unsuccessful earlier attempt: 3:2: error: linarith failed"
    )


async def test_lean_output_of_a_success_is_the_solution_found() -> None:
    """It has the format of the ground truth."""
    rollout = make_rollout(
        verdict=Verdict(kind="proved"), end_reason="solved", final_file="theorem t : p := by decide\n"
    )
    async with open_provider(FeedbackTable(type="lean_output")) as provider:
        feedback = await provider.feedback(rollout)
    assert feedback.text == "Example of a correct solution:\ntheorem t : p := by decide"


async def test_lean_output_of_a_success_without_its_file_is_dropped_by_name() -> None:
    """Nothing is made up in its place."""
    rollout = make_rollout(verdict=Verdict(kind="proved"), end_reason="solved")
    async with open_provider(FeedbackTable(type="lean_output")) as provider:
        with pytest.raises(FeedbackRejected) as caught:
            await provider.feedback(rollout)
    assert caught.value.cause == "no_solution"


@pytest.mark.parametrize("text", ["", "Be concise."])
async def test_constant_feedback_is_the_text_of_the_table(text: str) -> None:
    """Empty text too: it is the control experiment."""
    async with open_provider(FeedbackTable(type="constant", text=text)) as provider:
        feedback = await provider.feedback(make_rollout())
        assert provider.statistics()["calls"] == 1
        assert provider.key(make_rollout()) == feedback.prompt_hash
    assert feedback.text == text
