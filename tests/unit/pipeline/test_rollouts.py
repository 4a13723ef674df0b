"""One attempt: what ends it, what its record keeps, and that infrastructure is never a wrong proof."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import msgspec
import pytest

from bench.sound import SoundStatements
from fd_async.config.schema import RolloutTable
from fd_async.errors import EngineDied, EngineError, VerifierError
from fd_async.rollouts import RolloutRunner
from fd_async.types import Completion, Rollout, Statement, Ticket, ToolCall, Verdict, VersionSpan

pytestmark = pytest.mark.anyio

STATEMENT = Statement(name="t", formal_statement="theorem t : True :=")
GOOD, BAD = "theorem t : True := trivial", "theorem t : True := nope"


class Script:
    """An engine and renderer whose n-th turn makes the n-th list of tool calls."""

    stop_token_ids = (9,)

    def __init__(self, *turns: list[tuple[str, dict[str, str]]]) -> None:
        self.turns = [*turns, []]
        self.on_generate: Callable[[int], None] = lambda turn: None
        self.finish_reason = "stop"

    async def generate(self, prompt_ids: list[int], *, request_id: str, **_: Any) -> Completion:
        turn = int(request_id.rsplit("-t", 1)[1])
        self.on_generate(turn)
        await anyio.lowlevel.checkpoint()
        return Completion(
            token_ids=[turn, 9],
            logprobs=[-1.0, -1.0],
            spans=[VersionSpan(0, 0, 2)],
            finish_reason=self.finish_reason,  # type: ignore[arg-type]
        )

    def student_prompt(self, statement: Statement) -> list[int]:
        return [1, 2]

    def decode(self, ids: list[int]) -> str:
        return str(ids[0])

    def parse_tool_calls(self, text: str) -> list[ToolCall]:
        return [ToolCall(name=name, arguments=arguments) for name, arguments in self.turns[int(text)]]

    def tool_result_ids(self, results: list[str], *, closed: bool) -> list[int]:
        return [7]


class Judge(SoundStatements):
    """Accepts one file."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.callers: set[str] = set()
        self.on_check: Callable[[str], None] = lambda code: None

    async def check(self, code: str, statement: Statement, *, caller: str = "") -> Verdict:
        self.seen.append(code)
        self.callers.add(caller)
        self.on_check(code)
        return Verdict(kind="proved") if code == GOOD else Verdict(kind="failed", reason="unknown identifier")


def write(name: str, code: str) -> tuple[str, dict[str, str]]:
    return "lean_write_file", {"file_name": name, "code": code}


def check(name: str) -> tuple[str, dict[str, str]]:
    return "lean_check_file", {"file_name": name}


async def attempt(script: Script, judge: Judge, **keys: Any) -> Rollout:
    runner = RolloutRunner(
        engine=script,  # type: ignore[arg-type]
        renderer=script,  # type: ignore[arg-type]
        verifier=judge,  # type: ignore[arg-type]
        search=None,  # type: ignore[arg-type]
        config=msgspec.structs.replace(RolloutTable(), **keys),
    )
    return await runner.run(Ticket(ordinal=0, sample=0, purpose="train", statement=STATEMENT), temperature=1.0)


async def test_the_record_keeps_the_file_that_was_proved() -> None:
    """Feedback that shows the attempt's own solution needs it."""
    rollout = await attempt(Script([write("a.lean", GOOD), check("a.lean")]), Judge())
    assert (rollout.end_reason, rollout.reward, rollout.final_file) == ("solved", 1.0, GOOD)


async def test_a_check_that_proves_an_earlier_file_counts() -> None:
    """The verdict that ended the attempt is the attempt's verdict, whatever was written after that file."""
    judge = Judge()
    calls = [write("a.lean", GOOD), write("b.lean", BAD), check("a.lean")]
    rollout = await attempt(Script(calls), judge)
    assert (rollout.end_reason, rollout.reward, rollout.final_file) == ("solved", 1.0, GOOD)
    assert judge.seen == [GOOD]
    assert judge.callers == {"train-0000000-00"}


async def test_an_unchecked_file_is_judged_at_the_end() -> None:
    """The last file counts though the model never checked it."""
    rollout = await attempt(Script([write("a.lean", BAD)]), Judge())
    assert (rollout.end_reason, rollout.verdict.kind, rollout.final_file) == ("stopped", "failed", BAD)


@pytest.mark.parametrize("error", [EngineError("one request"), OSError(28, "No space left on device")])
async def test_a_failed_request_drops_the_attempt_by_name(error: Exception) -> None:
    """One slow or refused request, or a full disk, is this attempt's failure and no reward of 0."""
    script = Script([write("a.lean", BAD)])

    def fail(turn: int) -> None:
        if turn == 1:
            raise error

    script.on_generate = fail
    rollout = await attempt(script, Judge())
    assert rollout.end_reason == "failed"
    assert rollout.failure == ("engine" if isinstance(error, EngineError) else "infrastructure")
    assert rollout.verdict.is_infrastructure
    assert str(error) in rollout.verdict.reason
    assert rollout.num_sampled_tokens == 2


async def test_an_aborted_request_is_no_answer() -> None:
    """What an engine gave up half-way is not a model that stopped; what it had sampled is in the record."""
    script = Script([])
    script.finish_reason = "abort"
    rollout = await attempt(script, Judge())
    assert (rollout.end_reason, rollout.failure) == ("failed", "engine")
    assert "the engine gave up train-0000000-00-t0" in rollout.verdict.reason
    assert (rollout.completion_ids, rollout.sampled_mask, rollout.num_sampled_tokens) == ([0, 9], [True, True], 2)


async def test_the_death_of_the_engine_is_not_recorded_as_an_attempt() -> None:
    """It ends the run instead."""
    script = Script([])

    def die(turn: int) -> None:
        raise EngineDied("gone")

    script.on_generate = die
    with pytest.raises(EngineDied):
        await attempt(script, Judge())


async def test_a_verifier_that_cannot_answer_is_infrastructure() -> None:
    """The reason is the verifier's."""
    judge = Judge()

    def fail(code: str) -> None:
        raise VerifierError("no worker")

    judge.on_check = fail
    rollout = await attempt(Script([write("a.lean", GOOD), check("a.lean")]), judge)
    assert (rollout.failure, rollout.verdict.reason) == ("infrastructure", "no worker")


async def test_an_attempt_out_of_time_says_so() -> None:
    """The reason names the key."""

    class Slow(Judge):
        async def check(self, code: str, statement: Statement, *, caller: str = "") -> Verdict:
            await anyio.sleep_forever()
            raise AssertionError

    judge = Slow()
    rollout = await attempt(Script([write("a.lean", GOOD), check("a.lean")]), judge, timeout_s=0.05)
    assert rollout.failure == "timeout"
    assert "rollout.timeout_s" in rollout.verdict.reason


async def test_a_prompt_that_is_too_long_is_not_generated() -> None:
    """The reason names the key and the length."""
    rollout = await attempt(Script([]), Judge(), max_prompt_tokens=1)
    assert (rollout.failure, rollout.completion_ids) == ("prompt_too_long", [])
    assert "rollout.max_prompt_tokens" in rollout.verdict.reason
