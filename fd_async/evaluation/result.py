"""What the attempts of a suite say: pass@k with intervals, counts per statement, the document for plots."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from fd_async.analysis.passk import Estimate, estimate_pass_at_k, pass_at_k
from fd_async.data.ledger.evaluated import EvaluatedAttempt
from fd_async.types import Rollout, Statement

_NO_VERDICT = ("infrastructure", "bad_statement")
"""Kinds of verdict that say nothing about a proof."""
_OF_THE_STATEMENT = ("prompt_too_long", "bad_statement")
"""Failures that come again however often one tries."""


class Outcome(Struct, frozen=True):
    """What counts of one attempt."""

    is_solved: bool
    response_tokens: int
    failure: str = ""
    """Why there is no verdict; empty where there is one."""

    @property
    def is_worth_another_try(self) -> bool:
        """Whether the infrastructure failed it; what is wrong with the statement stays so."""
        return self.failure not in ("", *_OF_THE_STATEMENT)

    @classmethod
    def of(cls, rollout: Rollout) -> Outcome:
        """Read it off the record of an attempt."""
        failure = rollout.failure or "infrastructure" if rollout.end_reason == "failed" else ""
        return cls(rollout.verdict.is_proved, len(rollout.completion_ids), failure)

    @classmethod
    def recorded(cls, attempt: EvaluatedAttempt) -> Outcome:
        """Read it off a row of the ledger."""
        failure = attempt.ended if attempt.verdict in _NO_VERDICT else ""
        return cls(attempt.verdict == "proved", attempt.response_tokens, failure)


class SuiteResult(Struct, frozen=True, kw_only=True):
    """One suite; infrastructure failures are counted apart, never as unsolved."""

    suite: str
    samples: int
    """Attempts per statement."""
    counts: dict[str, tuple[int, int]]
    """Statement -> attempts with a verdict, and how many of them proved it."""
    failures: dict[str, int]
    """Cause -> attempts without a verdict."""
    temperature: float
    response_tokens: float
    """Mean over the attempts with a verdict, tool output included."""
    pass_at: dict[int, Estimate | None]
    """None where no statement has k attempts with a verdict."""

    @property
    def num_failed(self) -> int:
        return sum(self.failures.values())

    @property
    def num_judged(self) -> int:
        return sum(judged for judged, _ in self.counts.values())

    def num_usable(self, k: int) -> int:
        """Return how many statements have k attempts with a verdict; the others are left out of pass@k."""
        return sum(judged >= k for judged, _ in self.counts.values())

    def if_unsolved(self, k: int) -> float:
        """Return pass@k, k <= samples, with every attempt without a verdict as unsolved: the least that it can be."""
        values = [pass_at_k(self.samples, solved, k) for _, solved in self.counts.values()]
        return math.fsum(values) / len(values)

    def metrics(self) -> dict[str, float | None]:
        """Return `eval/SUITE/...` keys."""
        prefix = f"eval/{self.suite}"
        return {f"{prefix}/pass@{k}": found.value if found else None for k, found in self.pass_at.items()} | {
            f"{prefix}/statements": self.num_usable(1),
            f"{prefix}/failed": self.num_failed,
            f"{prefix}/response_tokens": self.response_tokens,
        }


class Tally:
    """Adds up the attempts of a suite."""

    def __init__(self, suite: str, statements: Sequence[Statement], *, samples: int, temperature: float) -> None:
        self._suite, self._samples, self._temperature = suite, samples, temperature
        self._names = [statement.name for statement in statements]
        self._judged = [0] * len(statements)
        self._solved = [0] * len(statements)
        self._failures: Counter[str] = Counter()
        self._tokens = 0

    def add(self, ordinal: int, outcome: Outcome) -> None:
        """Count one attempt."""
        if outcome.failure:
            self._failures[outcome.failure] += 1
            return
        self._judged[ordinal] += 1
        self._solved[ordinal] += outcome.is_solved
        self._tokens += outcome.response_tokens

    def result(self, k: Sequence[int]) -> SuiteResult:
        """Return what is known so far."""
        counts = list(zip(self._judged, self._solved, strict=True))
        judged = sum(self._judged)
        return SuiteResult(
            suite=self._suite,
            samples=self._samples,
            counts=dict(zip(self._names, counts, strict=True)),
            failures=dict(self._failures),
            temperature=self._temperature,
            response_tokens=self._tokens / judged if judged else 0.0,
            pass_at={each: estimate_pass_at_k(counts, each) for each in k},
        )


def document(
    results: Sequence[SuiteResult], *, model: str, step: int | None, hashes: Mapping[str, str], tools: bool
) -> dict[str, Any]:
    """Return result.json; a k for which no statement has enough verdicts is left out."""
    return {
        "model": model,
        "step": step,
        "suites": [
            {
                "suite": result.suite,
                "hash": hashes[result.suite],
                "statements": len(result.counts),
                "samples": result.samples,
                "failed": result.num_failed,
                "temperature": result.temperature,
                "tools": tools,
                "response_tokens": result.response_tokens,
                "pass_at": {str(k): list(found) for k, found in result.pass_at.items() if found is not None},
                "counts": {name: list(counts) for name, counts in result.counts.items()},
            }
            for result in results
        ],
    }
