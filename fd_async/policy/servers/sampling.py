"""One request of the caller, sampled by one server or by several one after another.

A stream tells versions only with its last event. Until then its tokens carry the version that the server had when they
arrived, never a younger one than the truth; the last event's spans replace it. A stream that is cut leaves what is
known to be good: its tokens count only when the server showed the right label since the stream began (else a server
that came back with old weights could have sampled them), and only up to where a push held the server, as long as the
probe has not agreed.
"""

from __future__ import annotations

import zlib
from typing import Literal

import anyio

from fd_async.errors import AlignmentError
from fd_async.types import Completion, VersionSpan

Finish = Literal["stop", "length"]


class Sampling:
    """What has been sampled for one `generate` call."""

    def __init__(self, prompt_ids: list[int], max_tokens: int, request_id: str, seed: int | None) -> None:
        self.prompt_ids = prompt_ids
        self.max_tokens = max_tokens
        self.request_id = request_id
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.spans: list[VersionSpan] = []
        self.stay: Stay | None = None
        """The server that samples now."""
        self._seed = seed

    @property
    def seed(self) -> int | None:
        """The seed of what comes next: the caller's at first, another after each move, lest draws repeat."""
        done = len(self.token_ids)
        return self._seed if self._seed is None or not done else zlib.crc32(f"{self._seed} {done}".encode())

    def add(self, token_ids: list[int], logprobs: list[float], version: int) -> None:
        """Append tokens of one version."""
        start = len(self.token_ids)
        self.token_ids += token_ids
        self.logprobs += logprobs
        self._add_span(VersionSpan(version, start, len(self.token_ids)))

    def relabel(self, start: int, versions: list[VersionSpan]) -> None:
        """Give the tokens from `start` on the versions that the server tells; these count from 0.

        Raises:
            AlignmentError: they do not cover exactly these tokens.
        """
        num_new = len(self.token_ids) - start
        edges = [0, *(span.end for span in versions)]
        if [span.start for span in versions] != edges[:-1] or edges[-1] != num_new:
            raise AlignmentError(f"request {self.request_id}: vLLM sampled {num_new} ids, spans {versions}")
        self._cut_spans(start)
        for span in versions:
            self._add_span(VersionSpan(span.version, start + span.start, start + span.end))

    def cut(self, length: int) -> None:
        """Forget all after the first `length` tokens."""
        del self.token_ids[length:], self.logprobs[length:]
        self._cut_spans(length)

    def finish(self, stop_token_ids: list[int]) -> Finish | None:
        """Tell how it ended, if it did: the end of a cut stream may have been there already."""
        if self.token_ids and self.token_ids[-1] in stop_token_ids:
            return "stop"
        return "length" if len(self.token_ids) >= self.max_tokens else None

    def completion(self, finish_reason: Literal["stop", "length", "abort"], length: int | None = None) -> Completion:
        """Return the first `length` tokens, or all."""
        length = len(self.token_ids) if length is None else length
        spans = [VersionSpan(s.version, s.start, min(s.end, length)) for s in self.spans if s.start < length]
        return Completion(
            token_ids=self.token_ids[:length],
            logprobs=self.logprobs[:length],
            spans=spans,
            finish_reason=finish_reason,
        )

    def partial(self) -> Completion | None:
        """Return what is known to be good so far."""
        length = len(self.token_ids) if self.stay is None else self.stay.num_good
        return self.completion("abort", length) if length else None

    def _cut_spans(self, length: int) -> None:
        self.spans = [VersionSpan(s.version, s.start, min(s.end, length)) for s in self.spans if s.start < length]

    def _add_span(self, span: VersionSpan) -> None:
        if span.start == span.end:
            return
        if self.spans and self.spans[-1].version == span.version:
            span = VersionSpan(span.version, self.spans.pop().start, span.end)
        self.spans.append(span)


class Stay:
    """A sampling's time at one server."""

    def __init__(self, sampling: Sampling) -> None:
        self.scope = anyio.CancelScope()
        """Cancelled when the server is taken away."""
        self.start = len(sampling.token_ids)
        self.has_seen_label = False
        self._sampling = sampling
        self._held_at: int | None = None

    @property
    def num_good(self) -> int:
        """Tokens of the whole sampling that stand if the server goes now."""
        if not self.has_seen_label:
            return self.start
        return len(self._sampling.token_ids) if self._held_at is None else self._held_at

    def hold(self) -> None:
        """Doubt what comes from here on: new weights are being loaded."""
        self._held_at = len(self._sampling.token_ids)

    def trust(self) -> None:
        """Doubt nothing: the probe agreed, or nothing was changed."""
        self._held_at = None
