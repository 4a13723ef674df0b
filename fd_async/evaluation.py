"""Held-out evaluation: the same rollouts as in training, scored with the unbiased pass@k estimator."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import anyio
from msgspec import Struct

from fd_async.analysis.passk import mean_pass_at_k
from fd_async.errors import VerifierError
from fd_async.rollouts import RolloutRunner
from fd_async.types import Rollout, Statement, Ticket

Record = Callable[[Rollout], Awaitable[None]]
Stage = Callable[[str, str], None]


class SuiteResult(Struct, frozen=True, kw_only=True):
    """pass@k of one suite; infrastructure failures are counted apart, never as unsolved."""

    suite: str
    pass_at: dict[int, float | None]
    """None where no statement has enough attempts with a verdict."""
    statements: int
    attempts: int
    failed: int
    mean_response_tokens: float

    def metrics(self) -> dict[str, float | None]:
        """Return `eval/SUITE/...` keys."""
        prefix = f"eval/{self.suite}"
        return {f"{prefix}/pass@{k}": value for k, value in self.pass_at.items()} | {
            f"{prefix}/statements": self.statements,
            f"{prefix}/failed": self.failed,
            f"{prefix}/response_tokens": self.mean_response_tokens,
        }


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
) -> SuiteResult:
    """Attempt every statement `samples` times; an attempt that failed by infrastructure is tried once more.

    An accepted proof counts, and is recorded, as its audit leaves it.

    Raises:
        VerifierError: every attempt failed, so there is no pass rate.
    """
    solved: dict[int, list[bool]] = {index: [] for index in range(len(statements))}
    tokens: list[int] = []
    failures: list[Rollout] = []
    limiter = anyio.CapacityLimiter(concurrency)

    async def attempt(index: int, sample: int) -> None:
        ticket = Ticket(ordinal=index, sample=sample, purpose="eval", suite=suite, statement=statements[index])
        async with limiter:
            try:
                rollout = await runner.run(ticket, temperature=temperature, on_stage=partial(on_stage, ticket.id))
                if rollout.end_reason == "failed" and rollout.failure != "prompt_too_long":
                    rollout = await runner.run(ticket, temperature=temperature, on_stage=partial(on_stage, ticket.id))
            finally:
                on_stage(ticket.id, "")
        rollout = await runner.audit(rollout)
        await record(rollout)
        if rollout.end_reason == "failed":
            failures.append(rollout)
        else:
            solved[index].append(rollout.verdict.is_proved)
            tokens.append(len(rollout.completion_ids))

    async with anyio.create_task_group() as tasks:
        for index in range(len(statements)):
            for sample in range(samples):
                tasks.start_soon(attempt, index, sample)
    if failures and not tokens:
        last = failures[-1]
        reason = f"last cause {last.failure}: {last.verdict.reason}"
        raise VerifierError(f"all {len(failures)} evaluation attempts of {suite} failed, none was judged; {reason}")
    counts = [(len(results), sum(results)) for results in solved.values() if results]
    return SuiteResult(
        suite=suite,
        pass_at={n: mean_pass_at_k(counts, n) for n in k},
        statements=len(counts),
        attempts=len(tokens),
        failed=len(failures),
        mean_response_tokens=sum(tokens) / len(tokens) if tokens else 0.0,
    )
