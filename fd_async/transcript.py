"""The growing completion of one attempt: ids, log-probs, weight versions and turns, aligned at every append.

Ids and log-probs are machine numbers, not Python objects: thousands of attempts wait with them.
"""

from __future__ import annotations

from array import array
from typing import Literal

from fd_async.errors import AlignmentError
from fd_async.types import Completion, PartialRollout, ToolResult, Turn, VersionSpan

Finish = Literal["", "stop", "length"]


class Transcript:
    """A completion in turns; tokens beyond the end of the last turn are an open turn that is still being sampled."""

    def __init__(self, partial: PartialRollout | None = None) -> None:
        """Begin, or go on where an earlier transcript was.

        Raises:
            AlignmentError: the parts of `partial` do not fit each other.
        """
        self.ids, self.logprobs = array("i"), array("d")
        self.spans: list[VersionSpan] = []
        self.turns: list[Turn] = []
        self.finish: Finish = ""
        """How the last turn of the assistant ended."""
        self.open_s = 0.0
        """Seconds spent on the open turn in earlier processes."""
        if partial is not None:
            self.ids.extend(partial.completion_ids)
            self.logprobs.extend(partial.logprobs)
            self.spans += partial.spans
            self.turns += partial.turns
            self.finish, self.open_s = partial.finish, partial.open_s
            edge = max([self.turn_start, *(span.end for span in self.spans)])
            if len(self.ids) != len(self.logprobs) or edge != len(self.ids):
                raise AlignmentError(
                    f"{partial.id}: {len(self.ids)} ids, {len(self.logprobs)} log-probs, end at {edge}"
                )

    @property
    def turn_start(self) -> int:
        """Where the open turn, or the next one, begins."""
        return self.turns[-1].end if self.turns else 0

    @property
    def num_turns(self) -> int:
        """Turns of the assistant that were sampled to their end."""
        return sum(turn.role == "assistant" for turn in self.turns)

    @property
    def awaits_tools(self) -> bool:
        """Whether the last turn is the assistant's: its calls are not answered yet."""
        return bool(self.turns) and self.turns[-1].role == "assistant"

    def add_sampled(self, completion: Completion) -> None:
        """Append tokens to the open turn."""
        start, length = len(self.ids), len(completion.token_ids)
        if len(completion.logprobs) != length or sum(s.end - s.start for s in completion.spans) != length:
            raise AlignmentError(
                f"engine returned {length} ids, {len(completion.logprobs)} log-probs, {completion.spans}"
            )
        self.ids.extend(completion.token_ids)
        self.logprobs.extend(completion.logprobs)
        for span in completion.spans:
            last = self.spans[-1] if self.spans else None
            if last and start > self.turn_start and (last.version, last.end) == (span.version, span.start + start):
                self.spans[-1] = VersionSpan(last.version, last.start, span.end + start)
            else:
                self.spans.append(VersionSpan(span.version, span.start + start, span.end + start))

    def close_turn(self, text: str, finish: Finish, seconds: float) -> None:
        """End the open turn."""
        turn = Turn(role="assistant", start=self.turn_start, end=len(self.ids), text=text, seconds=seconds)
        self.turns.append(turn)
        self.finish, self.open_s = finish, 0.0

    def add_tool(self, ids: list[int], name: str, result: ToolResult) -> None:
        """Record a tool's answer; `ids` may be empty when the attempt ends with it."""
        start = len(self.ids)
        self.ids.extend(ids)
        self.logprobs.extend([0.0] * len(ids))
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

    def sampled_mask(self) -> list[bool]:
        """Return which tokens the model sampled; the spans cover them and no others."""
        mask = [False] * len(self.ids)
        for span in self.spans:
            mask[span.start : span.end] = [True] * (span.end - span.start)
        return mask

    def copy(self) -> Transcript:
        """Return another one that grows apart."""
        twin = Transcript()
        twin.ids, twin.logprobs = self.ids[:], self.logprobs[:]
        twin.spans, twin.turns = self.spans[:], self.turns[:]
        twin.finish, twin.open_s = self.finish, self.open_s
        return twin
