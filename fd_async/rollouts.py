"""One attempt, from prompt to verdict; training and evaluation use the same code.

    prompt ids ─▶ generate ─▶ tool calls? ─no─▶ stopped
                     ▲             │ yes
                     │             ▼
              append tool ids ◀─ tools ─▶ proved? ─▶ solved

Without tools (`rollout.tools = false`) the first turn is the whole attempt, and the last Lean file in it is judged.

Invariants: ids go in and ids come out (nothing is decoded and encoded again); tool output counts against the response
budget and is never a training target; an infrastructure failure ends the attempt as `failed`, not as a reward of 0; an
attempt that is cut goes on elsewhere from its tokens and its files, and its deadline counts the seconds of all lives.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence

import anyio
import anyio.to_thread
import msgspec

from fd_async.config.schema import RolloutTable
from fd_async.errors import EngineDied, EngineError, PushFailed, VerifierError
from fd_async.policy.engine import Engine
from fd_async.rendering import Renderer
from fd_async.transcript import Finish, Transcript
from fd_async.types import (
    Completion,
    EndReason,
    PartialRollout,
    Rollout,
    Ticket,
    ToolCall,
    ToolResult,
    ToolState,
    Verdict,
)
from fd_async.verifier.tools.search import Search
from fd_async.verifier.tools.toolbox import Toolbox
from fd_async.verifier.verifier import Verifier

_SHORT_TOKENS, _SHORT_CHARS = 2000, 1000
"""Decoded, or encoded, in less than a millisecond: a thread would hold the event loop up for longer."""
StageListener = Callable[[str], None]
Keep = Callable[[PartialRollout], None]


class UnderWay:
    """An attempt between its start and its record; its runner can say at any moment how far it has come."""

    def __init__(
        self,
        ticket: Ticket,
        admitted_version: int,
        prompt_ids: list[int],
        partial: PartialRollout | None,
        seed: int | None = None,
    ) -> None:
        self.ticket = ticket
        self._seed = seed
        self.prompt_ids = prompt_ids
        self.transcript = Transcript(partial)
        self.tools = partial.tools if partial else ToolState()
        """As at the end of the last turn: a turn whose tools were cut runs them again."""
        self.request_id = ""
        """Of the `generate` call under way."""
        self._admitted_version = partial.admitted_version if partial else admitted_version
        self._earlier_s = partial.seconds if partial else 0.0
        self._started = self.turn_started = anyio.current_time()

    @property
    def seconds(self) -> float:
        """Spent on this attempt, in this process and in those before."""
        return self._earlier_s + anyio.current_time() - self._started

    @property
    def turn_s(self) -> float:
        """Spent on sampling the open turn, likewise."""
        return self.transcript.open_s + anyio.current_time() - self.turn_started

    @property
    def next_seed(self) -> int | None:
        """Seed of what is sampled next; another at each place, lest turns repeat each other's draws."""
        if self._seed is None:
            return None
        return random.Random(f"{self._seed} {len(self.transcript.ids)}").getrandbits(63)

    def cut(self, completion: Completion) -> None:
        """Take what the request under way had sampled when it was cut."""
        self.request_id = ""
        self.transcript.open_s = self.turn_s
        self.turn_started = anyio.current_time()
        self.transcript.add_sampled(completion)

    def snapshot(self, sampled: Completion | None = None) -> PartialRollout:
        """Return what continues this attempt, with what a request under way has sampled so far."""
        transcript, open_s = self.transcript, self.transcript.open_s
        if sampled is not None:
            transcript, open_s = transcript.copy(), self.turn_s
            transcript.add_sampled(sampled)
        return PartialRollout(
            id=self.ticket.id,
            ordinal=self.ticket.ordinal,
            sample=self.ticket.sample,
            admitted_version=self._admitted_version,
            prompt_ids=self.prompt_ids,
            completion_ids=transcript.ids[:],
            logprobs=transcript.logprobs[:],
            spans=transcript.spans[:],
            turns=transcript.turns[:],
            tools=self.tools,
            finish=transcript.finish,
            seconds=self.seconds,
            open_s=open_s,
        )


class _End:
    """How an attempt ended; until then as one that never wrote a file."""

    def __init__(self) -> None:
        self.reason: EndReason = "failed"
        self.failure = ""
        self.verdict = Verdict(kind="missing", reason="no file was written")
        self.file = ""

    def fail(self, failure: str, reason: str, verdict: Verdict | None = None) -> None:
        """End by a cause that says nothing about the proof."""
        self.reason, self.failure = "failed", failure
        self.verdict = verdict or Verdict(kind="infrastructure", reason=reason)


class RolloutRunner:
    """Runs attempts; holds what they share. Safe to call from many tasks at once."""

    def __init__(
        self,
        *,
        engine: Engine,
        renderer: Renderer,
        verifier: Verifier,
        search: Search,
        config: RolloutTable,
    ) -> None:
        self._engine = engine
        self._renderer = renderer
        self._verifier = verifier
        self._search = search
        self._config = config
        self._under_way: dict[str, tuple[UnderWay, Keep]] = {}

    async def run(
        self,
        ticket: Ticket,
        *,
        temperature: float,
        on_stage: StageListener = lambda _: None,
        admitted_version: int = 0,
        partial: PartialRollout | None = None,
        keep: Keep | None = None,
        seed: int | None = None,
    ) -> Rollout:
        """Run one attempt to its end and return its record.

        Args:
            ticket: of the attempt.
            temperature: of the sampling.
            on_stage: hears where the attempt is.
            admitted_version: for `keep`; that of `partial` where there is one.
            partial: goes on from there; see `can_continue`.
            keep: takes how far the attempt is: at the end of each turn, and when the attempt is cancelled or fails by
                the engine, with every token that was sampled; must return at once.
            seed: of the sampling; None draws from the engine's own.

        Raises:
            EngineError: the engine died or its weights are in doubt; nothing about this attempt is recorded.
        """
        prompt_ids = await anyio.to_thread.run_sync(self._renderer.student_prompt, ticket.statement)
        attempt = UnderWay(ticket, admitted_version, prompt_ids, partial, seed)
        if keep is None:
            return await self._run(attempt, temperature, on_stage, lambda _: None)
        self._under_way[ticket.id] = attempt, keep
        try:
            return await self._run(attempt, temperature, on_stage, keep)
        except BaseException:
            keep(attempt.snapshot(self._sampled(attempt)))
            raise
        finally:
            del self._under_way[ticket.id]

    def sampling(self) -> list[str]:
        """Return the tickets of attempts that wait for the engine and have a `keep`."""
        return [name for name, (attempt, _) in self._under_way.items() if attempt.request_id]

    def keep_sampled(self, ticket_ids: Sequence[str]) -> None:
        """Give those of these attempts that sample now to their `keep`, with the tokens of the open turn."""
        for attempt, keep in (self._under_way[name] for name in ticket_ids if name in self._under_way):
            if sampled := self._sampled(attempt):
                keep(attempt.snapshot(sampled))

    async def can_continue(self, ticket: Ticket, partial: PartialRollout) -> bool:
        """Say whether an attempt that another process began is one that this configuration could have begun."""
        prompt_ids = await anyio.to_thread.run_sync(self._renderer.student_prompt, ticket.statement)
        fits = len(partial.completion_ids) <= self._config.max_response_tokens
        return fits and list(partial.prompt_ids) == prompt_ids

    def _sampled(self, attempt: UnderWay) -> Completion | None:
        return self._engine.partial(attempt.request_id) if attempt.request_id else None

    async def _run(self, attempt: UnderWay, temperature: float, on_stage: StageListener, keep: Keep) -> Rollout:
        ticket, prompt_ids, transcript, end = attempt.ticket, attempt.prompt_ids, attempt.transcript, _End()
        if len(prompt_ids) > self._config.max_prompt_tokens:
            limit = f"rollout.max_prompt_tokens = {self._config.max_prompt_tokens}"
            end.fail("prompt_too_long", f"the prompt has {len(prompt_ids)} tokens, {limit}")
        elif fault := self._verifier.known_fault(ticket.statement):
            end.fail("bad_statement", fault.reason, fault)
        else:
            try:
                await self._attempt(attempt, end, temperature, on_stage, keep)
            except TimeoutError:
                end.fail("timeout", f"not done within rollout.timeout_s = {self._config.timeout_s:g} s")
            except (EngineDied, PushFailed):
                raise
            except EngineError as error:
                end.fail("engine", str(error))
            except (VerifierError, OSError) as error:
                end.fail("infrastructure", str(error))
        return Rollout(
            id=ticket.id,
            ordinal=ticket.ordinal,
            sample=ticket.sample,
            purpose=ticket.purpose,
            suite=ticket.suite,
            statement=ticket.statement,
            prompt_ids=prompt_ids,
            completion_ids=transcript.ids.tolist(),
            sampled_mask=transcript.sampled_mask(),
            logprobs=transcript.logprobs.tolist(),
            spans=transcript.spans,
            turns=transcript.turns,
            verdict=end.verdict,
            end_reason=end.reason,
            failure=end.failure,
            final_file=end.file,
            seconds=attempt.seconds,
            generate_s=sum(turn.seconds for turn in transcript.turns if turn.role == "assistant"),
            tool_s=sum(turn.seconds for turn in transcript.turns if turn.role == "tool"),
        )

    async def audit(self, rollout: Rollout) -> Rollout:
        """Have an accepted proof judged once more, from nothing; the same object when that changed nothing."""
        verdict = await self._verifier.audit(rollout.final_file, rollout.statement, rollout.verdict)
        if verdict is rollout.verdict:
            return rollout
        end = rollout.end_reason if verdict.is_proved else "stopped"
        return msgspec.structs.replace(rollout, verdict=verdict, end_reason=end)

    async def _attempt(
        self, attempt: UnderWay, end: _End, temperature: float, on_stage: StageListener, keep: Keep
    ) -> None:
        """Converse and judge with files of its own, inside the attempt's deadline."""
        toolbox = Toolbox(
            statement=attempt.ticket.statement,
            verifier=self._verifier,
            search=self._search,
            output_chars=self._config.tool_output_chars,
            caller=attempt.ticket.id,
        )
        with anyio.fail_after(self._config.timeout_s - attempt.seconds):
            toolbox.restore(attempt.tools)
            end.reason, verdict = await self._converse(attempt, toolbox, temperature, on_stage, keep)
            if verdict is None:
                on_stage("tools")
                verdict = await self._final_verdict(attempt.transcript, toolbox)
        end.verdict, end.file = verdict, toolbox.last_judged
        if verdict.is_proved:
            end.reason = "solved"
        elif verdict.is_infrastructure:
            end.fail("infrastructure", verdict.reason)
        else:
            await self._blame_the_statement(attempt, end)

    async def _final_verdict(self, transcript: Transcript, toolbox: Toolbox) -> Verdict:
        """Judge the last file written; without tools, the one that the answer holds."""
        if self._config.tools:
            return await toolbox.final_verdict()
        text = transcript.turns[-1].text if transcript.turns else ""
        is_short = len(text) <= _SHORT_CHARS
        parse = self._renderer.parse_answer
        return await toolbox.judge_answer(parse(text) if is_short else await anyio.to_thread.run_sync(parse, text))

    async def _blame_the_statement(self, attempt: UnderWay, end: _End) -> None:
        """End as `bad_statement` what no proof could have solved: the statement does not compile by itself."""
        with anyio.move_on_after(max(0.0, self._config.timeout_s - attempt.seconds)):
            alone = await self._verifier.examine(attempt.ticket.statement, caller=attempt.ticket.id)
            if alone.is_bad_statement:
                end.fail("bad_statement", alone.reason, alone)

    async def _converse(
        self, attempt: UnderWay, toolbox: Toolbox, temperature: float, on_stage: StageListener, keep: Keep
    ) -> tuple[EndReason, Verdict | None]:
        """Alternate generation and tools until something ends the attempt; return the verdict if a check ended it."""
        config, transcript = self._config, attempt.transcript
        while True:
            if not transcript.awaits_tools:
                if transcript.num_turns >= config.max_turns:
                    return "turn_budget", None
                if len(transcript.ids) >= config.max_response_tokens and len(transcript.ids) == transcript.turn_start:
                    return "token_budget", None
                on_stage("generating")
                await self._sample_turn(attempt, temperature)
                keep(attempt.snapshot())
            if transcript.finish == "length":
                return "token_budget", None
            calls = self._renderer.parse_tool_calls(transcript.turns[-1].text) if config.tools else []
            if not calls:
                return "stopped", None
            on_stage("tools")
            verdict = await self._answer(transcript, toolbox, calls)
            if verdict is not None:
                return ("solved" if verdict.is_proved else "failed"), verdict
            attempt.tools = toolbox.state
            keep(attempt.snapshot())

    async def _sample_turn(self, attempt: UnderWay, temperature: float) -> None:
        """Sample the next turn, or the rest of one that was cut, to its end."""
        config, transcript, renderer = self._config, attempt.transcript, self._renderer
        attempt.turn_started = anyio.current_time()
        num_open = len(transcript.ids) - transcript.turn_start
        budget = config.max_response_tokens - len(transcript.ids)
        finish: Finish = ""
        if num_open:  # what was cut may have been complete
            finish = "stop" if transcript.ids[-1] in renderer.stop_token_ids else "length" if budget <= 0 else ""
        if not finish:
            name = f"{attempt.ticket.id}-t{transcript.num_turns}"
            attempt.request_id = f"{name}-{num_open}" if num_open else name
            completion = await self._engine.generate(
                attempt.prompt_ids + transcript.ids.tolist(),
                max_tokens=budget,
                temperature=temperature,
                top_p=config.top_p if attempt.ticket.purpose == "train" else 1.0,
                request_id=attempt.request_id,
                seed=attempt.next_seed,
                salvage=attempt.cut,
            )
            transcript.add_sampled(completion)
            if completion.finish_reason == "abort":
                raise EngineError(f"the engine gave up {attempt.request_id}")
            finish, attempt.request_id = completion.finish_reason, ""
        ids = transcript.ids[transcript.turn_start :].tolist()
        is_short = len(ids) <= _SHORT_TOKENS
        text = renderer.decode(ids) if is_short else await anyio.to_thread.run_sync(renderer.decode, ids)
        transcript.close_turn(text, finish, attempt.turn_s)

    async def _answer(self, transcript: Transcript, toolbox: Toolbox, calls: list[ToolCall]) -> Verdict | None:
        """Run the calls of a turn and append what they say; return the verdict if one of them ends the attempt."""
        results: list[tuple[str, ToolResult]] = []
        for call in calls:
            result = await toolbox.call(call)
            results.append((call.name or "malformed", result))
            if result.verdict is not None and _ends_attempt(result.verdict):
                for name, earlier in results:
                    transcript.add_tool([], name, earlier)
                return result.verdict
        closed = transcript.ids[-1] in self._renderer.stop_token_ids
        texts = [result.text for _, result in results]
        render = functools.partial(self._renderer.tool_result_ids, texts, closed=closed)
        is_short = sum(map(len, texts)) <= _SHORT_CHARS
        ids = render() if is_short else await anyio.to_thread.run_sync(render)
        for index, (name, result) in enumerate(results):  # one block of ids answers all calls of the turn
            transcript.add_tool(ids if index == 0 else [], name, result)
        return None


def _ends_attempt(verdict: Verdict) -> bool:
    return verdict.is_proved or verdict.is_infrastructure or verdict.is_bad_statement
