"""One attempt, from prompt to verdict; training and evaluation use the same code.

    prompt ids ─▶ generate ─▶ tool calls? ─no─▶ stopped
                     ▲             │ yes
                     │             ▼
              append tool ids ◀─ tools ─▶ proved? ─▶ solved

Invariants: ids go in and ids come out (nothing is decoded and encoded again); tool output counts against the response
budget and is never a training target; an infrastructure failure ends the attempt as `failed`, not as a reward of 0.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from fd_async.config.schema import RolloutTable
from fd_async.errors import AlignmentError, EngineDied, EngineError, PushFailed, VerifierError
from fd_async.policy.engine import Engine
from fd_async.rendering import Renderer
from fd_async.types import Completion, EndReason, Rollout, Ticket, ToolResult, Turn, Verdict, VersionSpan
from fd_async.verifier.tools.search import Search
from fd_async.verifier.tools.toolbox import Toolbox
from fd_async.verifier.verifier import Verifier

StageListener = Callable[[str], None]


class _Transcript:
    """The growing completion of one attempt; every append keeps the parallel lists aligned."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.mask: list[bool] = []
        self.logprobs: list[float] = []
        self.spans: list[VersionSpan] = []
        self.turns: list[Turn] = []

    def append_completion(self, completion: Completion, text: str, seconds: float) -> None:
        start, length = len(self.ids), len(completion.token_ids)
        if len(completion.logprobs) != length or sum(s.end - s.start for s in completion.spans) != length:
            raise AlignmentError(
                f"engine returned {length} ids, {len(completion.logprobs)} log-probs, {completion.spans}"
            )
        self.ids += completion.token_ids
        self.mask += [True] * length
        self.logprobs += completion.logprobs
        self.spans += [VersionSpan(s.version, s.start + start, s.end + start) for s in completion.spans]
        self.turns.append(Turn(role="assistant", start=start, end=len(self.ids), text=text, seconds=seconds))

    def append_tool(self, ids: list[int], name: str, result: ToolResult) -> None:
        """Record a tool's answer; `ids` may be empty when the attempt ends with it."""
        start = len(self.ids)
        self.ids += ids
        self.mask += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.turns.append(
            Turn(
                role="tool",
                start=start,
                end=len(self.ids),
                text=result.text,
                tool=name,
                ok=result.ok,
                seconds=result.seconds,
            )
        )


class _End:
    """How an attempt ended; until then as one that never wrote a file."""

    def __init__(self) -> None:
        self.reason: EndReason = "failed"
        self.failure = ""
        self.verdict = Verdict(kind="missing", reason="no file was written")
        self.file = ""

    def fail(self, failure: str, reason: str) -> None:
        """End by a cause that says nothing about the proof."""
        self.reason, self.failure = "failed", failure
        self.verdict = Verdict(kind="infrastructure", reason=reason)


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
        scratch: Path,
    ) -> None:
        self._engine = engine
        self._renderer = renderer
        self._verifier = verifier
        self._search = search
        self._config = config
        self._scratch = scratch

    async def run(self, ticket: Ticket, *, temperature: float, on_stage: StageListener = lambda _: None) -> Rollout:
        """Run one attempt to its end and return its record.

        Raises:
            EngineError: the engine died or its weights are in doubt; nothing about this attempt is recorded.
        """
        transcript, end = _Transcript(), _End()
        prompt_ids = await anyio.to_thread.run_sync(self._renderer.student_prompt, ticket.statement)
        started = anyio.current_time()
        if len(prompt_ids) > self._config.max_prompt_tokens:
            limit = f"rollout.max_prompt_tokens = {self._config.max_prompt_tokens}"
            end.fail("prompt_too_long", f"the prompt has {len(prompt_ids)} tokens, {limit}")
        else:
            try:
                await self._attempt(ticket, prompt_ids, transcript, end, temperature, on_stage)
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
            completion_ids=transcript.ids,
            sampled_mask=transcript.mask,
            logprobs=transcript.logprobs,
            spans=transcript.spans,
            turns=transcript.turns,
            verdict=end.verdict,
            end_reason=end.reason,
            failure=end.failure,
            final_file=end.file,
            seconds=anyio.current_time() - started,
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
        self,
        ticket: Ticket,
        prompt_ids: list[int],
        transcript: _Transcript,
        end: _End,
        temperature: float,
        on_stage: StageListener,
    ) -> None:
        """Converse and judge in a folder of its own, inside the attempt's deadline."""
        folder = Path(await anyio.to_thread.run_sync(lambda: tempfile.mkdtemp(dir=self._scratch)))
        try:
            toolbox = Toolbox(
                folder=folder,
                statement=ticket.statement,
                verifier=self._verifier,
                search=self._search,
                output_chars=self._config.tool_output_chars,
                caller=ticket.id,
            )
            with anyio.fail_after(self._config.timeout_s):
                end.reason, verdict = await self._converse(
                    ticket, prompt_ids, transcript, toolbox, temperature, on_stage
                )
                if verdict is None:
                    on_stage("tools")
                    verdict = await toolbox.final_verdict()
            end.verdict, end.file = verdict, toolbox.last_judged
            if verdict.is_proved:
                end.reason = "solved"
            elif verdict.is_infrastructure:
                end.fail("infrastructure", verdict.reason)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))

    async def _converse(
        self,
        ticket: Ticket,
        prompt_ids: list[int],
        transcript: _Transcript,
        toolbox: Toolbox,
        temperature: float,
        on_stage: StageListener,
    ) -> tuple[EndReason, Verdict | None]:
        """Alternate generation and tools until something ends the attempt; return the verdict if a check ended it."""
        config, renderer = self._config, self._renderer
        for turn in range(config.max_turns):
            budget = config.max_response_tokens - len(transcript.ids)
            if budget <= 0:
                return "token_budget", None
            on_stage("generating")
            started = anyio.current_time()
            completion = await self._engine.generate(
                prompt_ids + transcript.ids,
                max_tokens=budget,
                temperature=temperature,
                top_p=config.top_p if ticket.purpose == "train" else 1.0,
                request_id=f"{ticket.id}-t{turn}",
            )
            if completion.finish_reason == "abort":
                raise EngineError(f"the engine gave up {ticket.id} in turn {turn}")
            text = await anyio.to_thread.run_sync(renderer.decode, completion.token_ids)
            transcript.append_completion(completion, text, anyio.current_time() - started)
            if completion.finish_reason == "length":
                return "token_budget", None
            calls = renderer.parse_tool_calls(text)
            if not calls:
                return "stopped", None
            on_stage("tools")
            results = []
            for call in calls:
                result = await toolbox.call(call)
                results.append((call.name or "malformed", result))
                if result.verdict is not None and (result.verdict.is_proved or result.verdict.is_infrastructure):
                    for name, earlier in results:
                        transcript.append_tool([], name, earlier)
                    return ("solved" if result.verdict.is_proved else "failed"), result.verdict
            closed = completion.token_ids[-1] in renderer.stop_token_ids
            ids = await anyio.to_thread.run_sync(
                lambda results=results, closed=closed: renderer.tool_result_ids(
                    [r.text for _, r in results], closed=closed
                )
            )
            for index, (name, result) in enumerate(results):  # one block of ids answers all calls of the turn
                transcript.append_tool(ids if index == 0 else [], name, result)
        return "turn_budget", None
