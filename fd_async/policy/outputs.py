"""Completions: from what vLLM hands over, from what its front end has of an unfinished request, and from two parts."""

from __future__ import annotations

from typing import Any

from fd_async.errors import AlignmentError, EngineError
from fd_async.types import Completion, VersionSpan

_FINISHED = ("stop", "length", "abort")


def completion_of(output: Any, request_id: str) -> Completion:
    """Turn vLLM's output into ours, checking that ids, log-probs and spans agree."""
    token_ids = list(output.token_ids)
    logprobs = list(output.logprobs.logprobs) if output.logprobs is not None else []
    spans = [VersionSpan(int(span.version), span.start, span.end) for span in output.weight_versions or []]
    edges = [0, *(span.end for span in spans)]
    if len(logprobs) != len(token_ids) or [span.start for span in spans] != edges[:-1] or edges[-1] != len(token_ids):
        raise AlignmentError(
            f"request {request_id}: vLLM returned {len(token_ids)} ids, {len(logprobs)} log-probs, spans {spans}"
        )
    if output.finish_reason not in _FINISHED:
        raise EngineError(f"request {request_id} ended with {output.finish_reason!r}")
    return Completion(token_ids=token_ids, logprobs=logprobs, spans=spans, finish_reason=output.finish_reason)


def sampled_so_far(state: Any, unproven: int | None) -> Completion | None:
    """Return what is known of a request under way, up to where ids, log-probs and spans agree; None if that is nothing.

    Args:
        state: `RequestState` of vLLM's output processor, which gathers tokens even if only the end is asked for.
        unproven: a weight version; what it sampled does not count.
    """
    logprobs = state.logprobs_processor.logprobs.logprobs
    token_ids = state.detokenizer.output_token_ids
    starts = [(int(version), start) for version, start in state.weight_version_starts]
    count = min([len(token_ids), len(logprobs)] + [start for version, start in starts if version == unproven])
    if not count or not starts or starts[0][1] != 0:
        return None
    ends = [start for _, start in starts[1:]] + [count]
    spans = [VersionSpan(v, start, min(end, count)) for (v, start), end in zip(starts, ends, strict=True)]
    return Completion(
        token_ids=list(token_ids[:count]),
        logprobs=list(logprobs[:count]),
        spans=[span for span in spans if span.start < span.end],
        finish_reason="abort",
    )


def joined(first: Completion | None, second: Completion) -> Completion:
    """Return one completion of two parts, the second sampled from the prompt and the first."""
    if first is None:
        return second
    offset = len(first.token_ids)
    spans = list(first.spans)
    for span in second.spans:
        start, end = span.start + offset, span.end + offset
        if spans and spans[-1].version == span.version:
            start = spans.pop().start
        spans.append(VersionSpan(span.version, start, end))
    return Completion(
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
        spans=spans,
        finish_reason=second.finish_reason,
    )
