"""How a record becomes bytes: a body with what people read, and the tokens apart, so that they can go alone.

Ids are packed as int32 and log-probs as float32, which is what vLLM's are; where one of them is no float32 all of that
attempt stay float64, so nothing is ever rounded. Both parts are compressed by zlib at level 1.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Sequence

import msgspec

from fd_async.types import PartialRollout, Rollout, TokenScores, Verdict

_HEADER = struct.Struct("<IIc")
"""Prompt ids, completion ids, type of the log-probs ("f" or "d")."""
_rollout = msgspec.msgpack.Decoder(Rollout)
_partial = msgspec.msgpack.Decoder(PartialRollout)


class _Numbers(msgspec.Struct):
    """Of the scores of an attempt, all but the texts."""

    deltas: list[float]
    choices: dict[int, list[tuple[str, float]]]


_numbers = msgspec.msgpack.Decoder(_Numbers | list[float])
"""A ledger may hold differences alone."""


class _Judged(msgspec.Struct):
    """The part of a recorded attempt that is read alone."""

    verdict: Verdict


_judged = msgspec.msgpack.Decoder(_Judged)


def pack(record: Rollout | PartialRollout) -> tuple[bytes, bytes]:
    """Return (body, tokens) of an attempt."""
    tokens = _pack_tokens(record.prompt_ids, record.completion_ids, record.logprobs)
    return pack_body(record), tokens


def pack_body(record: Rollout | PartialRollout) -> bytes:
    """Return the body of an attempt: everything but token ids and log-probs."""
    bare = msgspec.structs.replace(record, prompt_ids=[], completion_ids=[], logprobs=[])
    return zlib.compress(msgspec.msgpack.encode(bare), 1)


def unpack_rollout(body: bytes, tokens: bytes | None) -> Rollout:
    """Return a recorded attempt; without its tokens, ids and log-probs are empty."""
    rollout = _rollout.decode(zlib.decompress(body))
    if tokens is None:
        return rollout
    prompt_ids, completion_ids, logprobs = (part.tolist() for part in _unpack_tokens(tokens))
    return msgspec.structs.replace(rollout, prompt_ids=prompt_ids, completion_ids=completion_ids, logprobs=logprobs)


def unpack_verdict(body: bytes) -> Verdict:
    return _judged.decode(zlib.decompress(body)).verdict


def unpack_partial(body: bytes, tokens: bytes) -> PartialRollout:
    """Return an attempt under way; its ids and log-probs stay machine numbers, since thousands are read at once."""
    partial = _partial.decode(zlib.decompress(body))
    prompt_ids, completion_ids, logprobs = _unpack_tokens(tokens)
    return msgspec.structs.replace(partial, prompt_ids=prompt_ids, completion_ids=completion_ids, logprobs=logprobs)


def pack_scores(scores: TokenScores) -> bytes:
    """Return the scores of an attempt without their texts."""
    return msgspec.msgpack.encode(_Numbers(scores.deltas, scores.choices))


def unpack_scores(packed: bytes) -> tuple[list[float], dict[int, list[tuple[str, float]]]]:
    """Return (deltas, choices), see `TokenScores`."""
    found = _numbers.decode(packed)
    return (found, {}) if isinstance(found, list) else (found.deltas, found.choices)


def _pack_tokens(prompt_ids: Sequence[int], completion_ids: Sequence[int], logprobs: Sequence[float]) -> bytes:
    exact, short = array("d", logprobs), array("f", logprobs)
    kept = short if array("d", short) == exact else exact
    head = _HEADER.pack(len(prompt_ids), len(completion_ids), kept.typecode.encode())
    ids = array("i", prompt_ids).tobytes() + array("i", completion_ids).tobytes()
    return zlib.compress(head + ids + kept.tobytes(), 1)


def _unpack_tokens(tokens: bytes) -> tuple[array[int], array[int], array[float]]:
    """Return prompt ids, completion ids and log-probs."""
    raw = zlib.decompress(tokens)
    num_prompt, num_completion, kind = _HEADER.unpack_from(raw)
    ids = array("i")
    logprobs: array[float] = array("d" if kind == b"d" else "f")
    end = _HEADER.size + ids.itemsize * (num_prompt + num_completion)
    ids.frombytes(raw[_HEADER.size : end])
    logprobs.frombytes(raw[end:])
    return ids[:num_prompt], ids[num_prompt:], array("d", logprobs)
