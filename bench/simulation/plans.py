"""What each attempt will do, fixed by its ticket alone: every schedule is measured on the same attempts."""

from __future__ import annotations

import math
import random
from typing import Protocol

from msgspec import Struct

from bench.lean_trace import LIMIT_S, load_checks


class Attempts(Struct, frozen=True, kw_only=True):
    """The distribution of attempts; sources in figures.toml."""

    prompt_tokens: int
    response_median_tokens: float
    response_sigma: float
    max_response_tokens: int
    min_checks: int
    max_checks: int
    tool_output_tokens: int
    pass_share: float


class Turn(Struct, frozen=True, array_like=True):
    """One assistant turn and the check that it asks for; without one the attempt ends here."""

    sampled_tokens: int
    tool_tokens: int = 0
    check_s: float | None = None
    proves: bool = False


class Plans(Protocol):
    """Knows what the attempt of a ticket will do."""

    max_response_tokens: int

    def prompt_tokens(self, ticket_id: str) -> int: ...

    def turns(self, ticket_id: str) -> list[Turn]: ...


class DrawnPlans:
    """Draws the turns of an attempt from a configured distribution."""

    def __init__(self, attempts: Attempts, seed: int) -> None:
        self.attempts = attempts
        self.max_response_tokens = attempts.max_response_tokens
        self._seed = seed
        checks, self.source = load_checks(None)
        self._check_s = [LIMIT_S if check.seconds is None else check.seconds for check in checks]
        self._drawn: dict[str, list[Turn]] = {}

    def prompt_tokens(self, ticket_id: str) -> int:
        return self.attempts.prompt_tokens

    def turns(self, ticket_id: str) -> list[Turn]:
        """Return the turns of one attempt."""
        if ticket_id not in self._drawn:
            self._drawn[ticket_id] = self._draw(ticket_id)
        return self._drawn[ticket_id]

    def _draw(self, ticket_id: str) -> list[Turn]:
        """Draw log-normal tokens, shared out between checks; the last one may prove."""
        chance, a = random.Random(f"{self._seed}/{ticket_id}"), self.attempts
        checks = chance.randint(a.min_checks, a.max_checks)
        total = math.exp(chance.gauss(math.log(a.response_median_tokens), a.response_sigma))
        shares = [chance.uniform(0.3, 1.0) for _ in range(checks + 1)]
        sampled = max(total - checks * a.tool_output_tokens, 16.0 * len(shares))
        proves = chance.random() < a.pass_share
        turns = [
            Turn(
                sampled_tokens=max(1, round(sampled * share / sum(shares))),
                tool_tokens=a.tool_output_tokens,
                check_s=chance.choice(self._check_s),
                proves=proves and index == checks - 1,
            )
            for index, share in enumerate(shares[:-1])
        ]
        return turns if proves else [*turns, Turn(max(1, round(sampled * shares[-1] / sum(shares))))]
