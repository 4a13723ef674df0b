"""Every attempt of a suite, with as many under way as are allowed.

ticket (sample 0 of all statements, then sample 1, ...) ─▶ rollout ─failed?─▶ once more ─▶ audit ─▶ record ─▶ tally
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NoReturn

import anyio

from fd_async.errors import VerifierError
from fd_async.evaluation.result import Outcome, SuiteResult, Tally
from fd_async.rollouts import RolloutRunner
from fd_async.types import Rollout, Statement, Ticket

Record = Callable[[Rollout], Awaitable[None]]
Stage = Callable[[str, str], None]
Known = Mapping[tuple[int, int], Outcome]
"""(ordinal, sample) -> what an attempt said."""
_RECENT = 256
"""Attempts over which the share of failures is taken, as in training."""


async def evaluate_suite(
    suite: str,
    statements: Sequence[Statement],
    *,
    runner: RolloutRunner,
    k: Sequence[int],
    samples: int,
    temperature: float,
    concurrency: int,
    record: Record,
    on_stage: Stage = lambda _item, _stage: None,
    seed: int | None = None,
    known: Known | None = None,
    max_failed_fraction: float = 1.0,
) -> SuiteResult:
    """Attempt every statement `samples` times; an attempt that failed by infrastructure is tried once more.

    An accepted proof counts, and is recorded, as its audit leaves it. Tickets are made as they are needed: a suite of
    any size takes the memory of those under way.

    Args:
        statements: in the order that their ordinals count.
        samples: attempts per statement.
        concurrency: attempts that sample at once; as many again may wait for their audit and their record.
        record: keeps an attempt; it counts when this has returned.
        on_stage: hears where each attempt is.
        seed: gives every attempt a seed of its own; None draws from the engine's.
        known: what an earlier call recorded, which is taken over.
        max_failed_fraction: share of the last 256 attempts that may fail before the rest is given up.

    Raises:
        VerifierError: more than that failed; or every attempt did, so there is no pass rate.
    """
    known = known or {}
    tally = tally_of(suite, statements, known, samples=samples, temperature=temperature)
    sampling, room = anyio.CapacityLimiter(concurrency), anyio.Semaphore(2 * concurrency)
    failures = _Failures(suite, max_failed_fraction)

    async def attempt(ticket: Ticket) -> None:
        own = None if seed is None else ticket_seed(seed, ticket.id)
        run = partial(runner.run, ticket, temperature=temperature, on_stage=partial(on_stage, ticket.id), seed=own)
        try:
            async with sampling:
                rollout = await run()
                if Outcome.of(rollout).is_worth_another_try:
                    rollout = await run()
            rollout = await runner.audit(rollout)
            await record(rollout)
        finally:
            on_stage(ticket.id, "")
            room.release()
        outcome = Outcome.of(rollout)
        tally.add(ticket.ordinal, outcome)
        failures.heed(rollout, outcome)

    async with anyio.create_task_group() as tasks:
        for ticket in _tickets(suite, statements, samples, known):
            await room.acquire()
            tasks.start_soon(attempt, ticket)
    return failures.weigh(tally.result(k))


def _tickets(suite: str, statements: Sequence[Statement], samples: int, known: Known) -> Iterator[Ticket]:
    """Yield what is not known yet, round by round."""
    for sample in range(samples):
        for ordinal, statement in enumerate(statements):
            if (ordinal, sample) not in known:
                yield Ticket(ordinal=ordinal, sample=sample, purpose="eval", suite=suite, statement=statement)


def tally_of(suite: str, statements: Sequence[Statement], known: Known, *, samples: int, temperature: float) -> Tally:
    """Add up recorded attempts; those of samples beyond the number asked for do not count."""
    tally = Tally(suite, statements, samples=samples, temperature=temperature)
    for (ordinal, sample), outcome in known.items():
        if sample < samples:
            tally.add(ordinal, outcome)
    return tally


def ticket_seed(seed: int, ticket_id: str) -> int:
    """Return the seed of a ticket's sampling, 63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{ticket_id}".encode()).digest()[:8]) >> 1


class _Failures:
    """The last attempts: ends the evaluation where too many of them failed by infrastructure."""

    def __init__(self, suite: str, max_fraction: float) -> None:
        self._suite, self._max_fraction = suite, max_fraction
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._last = "recorded by an earlier call"

    def heed(self, rollout: Rollout, outcome: Outcome) -> None:
        if outcome.failure:
            self._last = f"{outcome.failure}: {rollout.verdict.reason}"
        self._recent.append(outcome.is_worth_another_try)
        if len(self._recent) == _RECENT and sum(self._recent) > self._max_fraction * _RECENT:
            self.give_up(
                f"{sum(self._recent)} of the last {_RECENT} evaluation attempts of {self._suite} failed, more than "
                f"rollout.max_failed_fraction = {self._max_fraction:g}"
            )

    def weigh(self, result: SuiteResult) -> SuiteResult:
        if result.num_failed and not result.num_judged:
            self.give_up(f"all {result.num_failed} evaluation attempts of {self._suite} failed, none was judged")
        return result

    def give_up(self, why: str) -> NoReturn:
        raise VerifierError(f"{why}; last cause {self._last}")
