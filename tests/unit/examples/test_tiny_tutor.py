"""The tutor of the tiny world: what it knows, what it says, and the protocol that Claude's SDK speaks with it."""

from __future__ import annotations

import json
import random
from typing import Any

import aiohttp
import pytest

from examples.tiny.families import FAMILIES
from examples.tiny.statements import Row, make_row, make_world
from examples.tiny.tutor.directives import answer, read_question
from examples.tiny.tutor.knowledge import recipe_for
from examples.tiny.tutor.server import serve_tutor
from fd_async.config.schema import FeedbackTable
from fd_async.feedback.answers import violations
from fd_async.feedback.prompts import user_message
from fd_async.feedback.provider import open_provider
from fd_async.types import Rollout, Statement, Turn, Verdict

ROWS = make_world()["test"]


def attempt(row: Row, recipe: str = "", *, kind: str = "failed", end_reason: Any = "stopped") -> Rollout:
    """Make an attempt that wrote one file with this proof, or none."""
    call = {
        "name": "lean_write_file",
        "arguments": {"file_name": "proof.lean", "code": f"{row.formal_statement} by {recipe}"},
    }
    text = f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>" if recipe else "Nothing to write."
    return Rollout(
        id="train-0000000-00", ordinal=0, sample=0, purpose="train",
        statement=Statement(name=row.name, formal_statement=row.formal_statement, proof=row.proof),
        prompt_ids=[1], completion_ids=[2], sampled_mask=[True], logprobs=[-0.1], spans=[],
        turns=[Turn(role="assistant", start=0, end=1, text=text)],
        verdict=Verdict(kind=kind, reason="", output="1:40: error: Type mismatch"),
        end_reason=end_reason,
    )  # fmt: skip


def question(row: Row, recipe: str = "", **changes: Any) -> str:
    """Spell the message that a run sends."""
    return user_message(attempt(row, recipe, **changes), 60_000)


def test_the_tutor_knows_a_proof_of_every_held_out_statement_from_its_shape() -> None:
    """The known proof is not in the message, and yet the same recipe with the same names comes out."""
    assert [row.name for row in ROWS if recipe_for(row.formal_statement) != row.proof.removeprefix("by ")] == []


def test_the_tutor_knows_statements_of_no_split() -> None:
    """Fresh members of every family, of which it cannot have a list."""
    rng = random.Random(7)
    rows = [make_row(family, "fresh", rng) for family in FAMILIES for _ in range(10)]
    assert [row.family for row in rows if recipe_for(row.formal_statement) != row.proof.removeprefix("by ")] == []


@pytest.mark.parametrize(
    "statement",
    [
        "theorem x (p q : Prop) (h : p) : q :=",
        "theorem x (p : Prop) : p ∨ ¬p :=",
        "theorem x (p : Prop) (h : p :=",
        "theorem x {p : Prop} : p :=",
        "theorem x (a : Nat) : a ^ 2 = a :=",
        "",
        "lemma",
        "(" * 5000,
        "theorem x : " + "¬" * 50_000 + "p :=",
    ],
)
def test_a_statement_of_no_family_has_no_recipe(statement: str) -> None:
    """Nothing is made up, and rubbish is no crash."""
    assert recipe_for(statement) is None


def test_every_answer_passes_the_check_of_a_run() -> None:
    """1 to 3 items of 10 to 50 words, no second person; right, wrong, missing and cut-off attempts alike."""
    rng = random.Random(1)
    found: list[list[str]] = []
    for row in ROWS:
        recipe = rng.choice(["", "omega", "exact h", row.proof.removeprefix("by ")])
        text = question(row, recipe, end_reason=rng.choice(["stopped", "token_budget"]))
        found += [violations(answer(text, named_share=share, seed=3), 4) for share in (0.0, 0.8, 1.0)]
    assert [problems for problems in found if problems] == []


def test_the_share_decides_how_often_the_recipe_is_named() -> None:
    """All, none, and about four in five."""

    def named(share: float) -> float:
        answers = [(row, answer(question(row, "exact nothing"), named_share=share)) for row in ROWS]
        return sum(f"{row.proof.removeprefix('by ')}`" in text for row, text in answers) / len(ROWS)

    assert named(1.0) == 1.0
    assert named(0.0) == 0.0
    assert 0.7 < named(0.8) < 0.9


def test_advice_without_the_recipe_says_what_to_avoid() -> None:
    """The recipe to avoid is the one that the attempt really wrote."""
    assert "`exact nothing h`" in answer(question(ROWS[0], "exact nothing h"), named_share=0.0)


def test_a_proof_that_was_right_is_never_one_to_avoid() -> None:
    """Only other recipes are warned of."""
    for row in ROWS[:64]:
        recipe = row.proof.removeprefix("by ")
        text = answer(question(row, recipe, kind="proved"), named_share=0.0)
        assert recipe not in text


def test_an_attempt_without_a_file_is_told_to_write_one() -> None:
    """What went wrong comes first."""
    assert "lean_write_file" in answer(question(ROWS[0]))


def test_the_same_question_gets_the_same_answer_and_another_seed_another() -> None:
    """Runs can be repeated."""
    texts = [question(row, "omega") for row in ROWS[:32]]
    assert [answer(text, seed=1) for text in texts] == [answer(text, seed=1) for text in texts]
    assert [answer(text, seed=1) for text in texts] != [answer(text, seed=2) for text in texts]


def test_the_tutor_never_sees_the_known_proof() -> None:
    """The message has none, so what it names is its own finding."""
    asked = read_question(question(ROWS[0], "omega"))
    assert asked is not None
    assert ROWS[0].proof.removeprefix("by ") not in "".join([asked.statement, asked.attempt, asked.output])


@pytest.mark.anyio
async def test_the_real_sdk_gets_feedback_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole provider: prompt, HTTP, check; `configs/feedback/tiny_tutor.toml` names no key."""
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    async with serve_tutor(named_share=1.0) as address:
        table = FeedbackTable(type="anthropic", model="tiny-tutor", base_url=address, max_output_tokens=512)
        async with open_provider(table) as provider:
            feedback = await provider.feedback(attempt(ROWS[0], "omega"))
            statistics = provider.statistics()
    assert f"{ROWS[0].proof.removeprefix('by ')}`" in feedback.text
    assert (feedback.asked, feedback.usd, feedback.model) == (1, 0.0, "tiny-tutor")
    assert feedback.input_tokens > 100
    assert statistics["answered"] == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/v1/messages", b"{", 400, "invalid_request_error"),
        ("/v1/messages", b"[]", 400, "invalid_request_error"),
        ("/v1/messages", b'{"model": "m", "max_tokens": 0, "messages": []}', 400, "invalid_request_error"),
        ("/v1/messages", b'{"model": "m", "max_tokens": 5, "messages": []}', 400, "invalid_request_error"),
        ("/v1/messages", b'{"model": "m", "max_tokens": 5, "messages": [1]}', 400, "invalid_request_error"),
        (
            "/v1/messages",
            b'{"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": [{}]}]}',
            400,
            "invalid_request_error",
        ),
        ("/v1/models", b"{}", 404, "not_found_error"),
    ],
)
async def test_a_wrong_request_is_refused_as_the_api_does(path: str, body: bytes, status: int, kind: str) -> None:
    """A type and a message, and the server goes on."""
    async with serve_tutor() as address, aiohttp.ClientSession() as session:
        async with session.post(address + path, data=body) as response:
            refusal = await response.json()
            assert (response.status, refusal["type"], refusal["error"]["type"]) == (status, "error", kind)
            assert refusal["error"]["message"]
