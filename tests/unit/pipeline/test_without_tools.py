"""A whole attempt without tools: one answer, the last file in it judged, and everything after that as with tools."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bench.sound import SoundStatements
from fd_async.config.schema import RolloutTable
from fd_async.feedback.prompts import TUTOR_PROMPTS, user_message
from fd_async.rendering import Renderer
from fd_async.rollouts import RolloutRunner
from fd_async.types import Completion, PartialRollout, Rollout, Statement, Ticket, Verdict, VersionSpan
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS
from tests.fakes.chat_tokenizer import QWEN3, QWEN3_5, chat_tokenizer

pytestmark = pytest.mark.anyio

STATEMENT = Statement(name="t", formal_statement="theorem t : True :=")
TICKET = Ticket(ordinal=0, sample=0, purpose="train", statement=STATEMENT)
GOOD, BAD = "theorem t : True := trivial\n", "theorem t : True := nope\n"
SOLVED = f"First ```lean.\n\n```lean\n{BAD}```\nor rather\n```lean4\n{GOOD}```\nDone.<|im_end|>"
CALL = '<tool_call>\n{"name": "lean_write_file", "arguments": {"file_name": "a.lean", "code": "x"}}\n</tool_call>'


class Speaker:
    """An engine that says one text, from wherever the prompt it gets has left it."""

    def __init__(self, ids: list[int], prompt: list[int]) -> None:
        self.ids, self.prompt = ids, prompt
        self.requests: list[str] = []

    async def generate(self, prompt_ids: list[int], *, max_tokens: int, request_id: str, **_: Any) -> Completion:
        self.requests.append(request_id)
        said = len(prompt_ids) - len(self.prompt)
        assert prompt_ids == [*self.prompt, *self.ids[:said]]
        ids = self.ids[said : said + max_tokens]
        reason = "stop" if said + len(ids) == len(self.ids) else "length"
        return Completion(
            token_ids=ids,
            logprobs=[-1.0] * len(ids),
            spans=[VersionSpan(0, 0, len(ids))],
            finish_reason=reason,  # type: ignore[arg-type]
        )


class Judge(SoundStatements):
    """Accepts one file, and audits it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def check(self, code: str, statement: Statement, *, caller: str = "") -> Verdict:
        self.seen.append(code)
        return Verdict(kind="proved") if code == GOOD else Verdict(kind="failed", output="error: unknown identifier")

    async def audit(self, code: str, statement: Statement, verdict: Verdict) -> Verdict:
        return msgspec.structs.replace(verdict, audit="fresh" if code == GOOD else "revoked")


class World:
    """A runner with a real renderer whose engine gives one answer."""

    def __init__(self, answer: str, *, template: str = QWEN3, thinking: bool = False, **keys: Any) -> None:
        tools = TOOL_SCHEMAS if keys.get("tools") else []
        self.renderer = Renderer(chat_tokenizer(template), tools=tools, tool_format="qwen3", thinking=thinking)
        self.prompt = self.renderer.student_prompt(STATEMENT)
        self.ids = self.renderer._encode(answer)
        self.engine, self.judge = Speaker(self.ids, self.prompt), Judge()
        self.kept: list[PartialRollout] = []
        self.runner = RolloutRunner(
            engine=self.engine,  # type: ignore[arg-type]
            renderer=self.renderer,
            verifier=self.judge,  # type: ignore[arg-type]
            search=None,  # type: ignore[arg-type]
            config=msgspec.structs.replace(RolloutTable(), **({"tools": False} | keys)),
        )

    async def run(self, partial: PartialRollout | None = None, purpose: Any = "train") -> Rollout:
        ticket = msgspec.structs.replace(TICKET, purpose=purpose)
        return await self.runner.run(ticket, temperature=1.0, partial=partial, keep=self.kept.append)


@pytest.mark.parametrize("purpose", ["train", "eval"])
@pytest.mark.parametrize(("template", "thinking"), [(QWEN3, False), (QWEN3, True), (QWEN3_5, True), (QWEN3_5, False)])
async def test_the_last_file_of_the_answer_is_judged(template: str, thinking: bool, purpose: str) -> None:
    """One turn of the assistant, every token of it sampled, judged and audited as any other attempt."""
    thought = f"```lean\n{BAD}```\nso\n</think>\n\n" if template == QWEN3_5 and thinking else ""
    world = World(thought + SOLVED, template=template, thinking=thinking)
    rollout = await world.run(purpose=purpose)
    assert (rollout.end_reason, rollout.reward, rollout.final_file) == ("solved", 1.0, GOOD)
    assert (world.judge.seen, len(world.engine.requests)) == ([GOOD], 1)
    assert [turn.role for turn in rollout.turns] == ["assistant"]
    assert rollout.completion_ids == world.ids
    assert all(rollout.sampled_mask)
    assert (await world.runner.audit(rollout)).verdict.audit == "fresh"


@pytest.mark.parametrize(
    ("answer", "verdict", "final_file"),
    [
        (f"```lean\n{BAD}```<|im_end|>", "failed", BAD),
        ("It is trivial.<|im_end|>", "missing", ""),
        (f"```lean\n{GOOD}<|im_end|>", "missing", ""),
        (f"<think>\n```lean\n{GOOD}```<|im_end|>", "missing", ""),
        (f"{CALL}<|im_end|>", "missing", ""),
    ],
)
async def test_an_answer_without_proof_stops_with_its_verdict(answer: str, verdict: str, final_file: str) -> None:
    """A file that is not there is `missing`, and tool calls that nobody offered are not run."""
    world = World(answer)
    rollout = await world.run()
    assert (rollout.end_reason, rollout.verdict.kind, rollout.final_file) == ("stopped", verdict, final_file)
    assert (rollout.failure, len(rollout.turns)) == ("", 1)
    assert ("closed ```lean block" in rollout.verdict.reason) == (verdict == "missing")


@pytest.mark.parametrize("tokens", [len(f"```lean\n{BAD}```\n"), len(f"```lean\n{BAD}"), 3])
async def test_an_answer_that_was_cut_counts_as_far_as_it_went(tokens: int) -> None:
    """The budget ends it; a file that was closed before is judged."""
    rollout = await World(f"```lean\n{BAD}```\nand so on<|im_end|>", max_response_tokens=tokens).run()
    is_whole = tokens == len(f"```lean\n{BAD}```\n")
    assert (rollout.end_reason, rollout.verdict.kind) == ("token_budget", "failed" if is_whole else "missing")


async def test_a_proof_before_the_cut_is_a_proof() -> None:
    """As with tools, where the last file written is judged when the budget is spent."""
    text = f"```lean\n{GOOD}```\n"
    rollout = await World(text + "and so on<|im_end|>", max_response_tokens=len(text)).run()
    assert (rollout.end_reason, rollout.reward) == ("solved", 1.0)


@pytest.mark.parametrize("at", [1, 20, 60, -1])
async def test_an_attempt_that_was_cut_goes_on_from_its_tokens(at: int) -> None:
    """In the middle of the answer, or between its end and its verdict."""
    whole = World(SOLVED)
    expected = await whole.run()
    (ended,) = whole.kept
    world, num = World(SOLVED), at % len(whole.ids)
    ids, logprobs = ended.completion_ids[:num], ended.logprobs[:num]
    spans = [VersionSpan(0, 0, num)]
    begun = msgspec.structs.replace(ended, completion_ids=ids, logprobs=logprobs, spans=spans, turns=[], finish="")
    for partial in (begun, ended):
        assert await world.runner.can_continue(TICKET, partial)
        rollout = await world.run(partial)
        assert rollout.completion_ids == expected.completion_ids
        assert (rollout.verdict, rollout.end_reason, rollout.final_file) == (expected.verdict, "solved", GOOD)
    assert len(world.engine.requests) == 1


async def test_an_attempt_with_tools_does_not_go_on_without() -> None:
    """Their prompts differ, so the attempt begins anew."""
    world = World(SOLVED)
    await world.run()
    other = World(SOLVED, tools=True)
    assert not await other.runner.can_continue(TICKET, world.kept[-1])


@pytest.mark.parametrize("answer", [SOLVED, f"```lean\n{BAD}```<|im_end|>", "Trivial.<|im_end|>", "I think that"])
async def test_the_tutor_hears_of_no_tools(answer: str) -> None:
    """The message about the attempt says what the student wrote and what Lean said; the prompts are the paper's."""
    message = user_message(await World(answer).run(), 60000)
    assert "tool" not in message.lower()
    assert "lean_" not in message.replace("<final_lean_output>", "").replace("</final_lean_output>", "")
    assert "[output of" not in message
    assert "must encourage the usage of tools" in TUTOR_PROMPTS[4]


async def test_without_feedback_the_teacher_sees_the_same_ids() -> None:
    """Law 9: with nothing to say, not one id differs from what the student saw."""
    world = World(SOLVED)
    rollout = await world.run()
    assert world.renderer.teacher_prompt(STATEMENT, "", 100) == rollout.prompt_ids
    assert world.renderer.teacher_prompt(STATEMENT, "Be brief.", 100) != rollout.prompt_ids
