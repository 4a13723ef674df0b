"""What each attempt of the benchmark samples, and which end it takes: functions of its ticket alone.

So an attempt that was cut and continued can be compared, token for token, with one that never was.
"""

from __future__ import annotations

import random
import struct
from functools import lru_cache

from msgspec import Struct

PROMPT_IDS = [11, 12, 13]
TOOL_IDS = [21, 22, 23, 24]
STOP_ID = 9
_FIRST_ID = 100
_CALLS = 90
"""First id of a turn that writes and checks a file; other turns end the attempt."""


class Plan(Struct, frozen=True):
    """The whole completion of an attempt that nothing ends early."""

    ids: list[int]
    logprobs: list[float]
    sampled: list[bool]
    turn_ends: list[int]
    """End of each turn of the model."""


@lru_cache(maxsize=4096)
def plan(ticket_id: str) -> Plan:
    """Return what a ticket samples: one to four turns of 5 to 120 tokens, all but the last with tool calls."""
    rng = random.Random(ticket_id)
    ids: list[int] = []
    sampled: list[bool] = []
    turn_ends: list[int] = []
    turns = rng.randint(1, 4)
    for turn in range(turns):
        if turn:
            ids += TOOL_IDS
            sampled += [False] * len(TOOL_IDS)
        first = _CALLS if turn < turns - 1 else _CALLS + 1
        body = [rng.randrange(_FIRST_ID, 150_000) for _ in range(rng.randint(3, 118))]
        ids += [first, *body, STOP_ID]
        sampled += [True] * (len(body) + 2)
        turn_ends.append(len(ids))
    logprobs = [_float32(-rng.random() * 3) if own else 0.0 for own in sampled]
    return Plan(ids, logprobs, sampled, turn_ends)


def is_call(ids: list[int]) -> bool:
    return ids[0] == _CALLS


def is_proved(code: str) -> bool:
    """Decide whether a file proves its theorem."""
    return random.Random(f"verdict {code}").random() < 0.3


def fails(ticket_id: str) -> bool:
    """Decide whether the verifier breaks under an attempt, so that it is dropped."""
    return random.Random(f"failure {ticket_id}").random() < 0.05


def is_refused(rollout_id: str) -> bool:
    """Decide whether the provider refuses an attempt, so that it is dropped."""
    return random.Random(f"refusal {rollout_id}").random() < 0.05


def _float32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]
