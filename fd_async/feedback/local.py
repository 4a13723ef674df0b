"""Feedback made without a model: a known proof, the compiler's output, or a constant. Free and immediate.

Wordings are the paper's, section 5.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from fd_async.config.schema import FeedbackTable
from fd_async.errors import FeedbackError
from fd_async.feedback.failures import rejected
from fd_async.feedback.hashing import prompt_hash
from fd_async.feedback.meter import Meter, Statistics
from fd_async.feedback.prompts import compiler_output
from fd_async.types import Feedback, Rollout

_OPEN_END: Final = re.compile(r":=\s*(?:by\b\s*)?(?:sorry\b\s*)?\Z")


class Local:
    """One of the providers that compute their text; same protocol as `Tutor`."""

    def __init__(self, config: FeedbackTable) -> None:
        self._type = config.type
        self._text_of: Callable[[Rollout], str] = {
            "ground_truth": ground_truth,
            "lean_output": lean_output,
            "constant": lambda _: config.text,
        }[config.type]
        self._meter = Meter()

    def key(self, rollout: Rollout) -> str:
        """Return the hash of the text itself.

        Raises:
            FeedbackRejected: as `feedback` does.
        """
        return self._hash(self._text_of(rollout))

    def statistics(self) -> Statistics:
        """Return the counters as they stand."""
        return self._meter.snapshot()

    async def feedback(self, rollout: Rollout) -> Feedback:
        """Compute the feedback.

        Raises:
            FeedbackRejected: the rollout lacks what the text is made of; `cause` says what.
        """
        self._meter.calls += 1
        try:
            text = self._text_of(rollout)
        except FeedbackError as error:
            self._meter.drops[error.cause] += 1
            raise
        finally:
            self._meter.ended += 1
        self._meter.answer(0.0)
        return Feedback(rollout_id=rollout.id, text=text, provider=self._type, prompt_hash=self._hash(text), asked=0)

    def _hash(self, text: str) -> str:
        return prompt_hash(self._type, "", "", text)


def ground_truth(rollout: Rollout) -> str:
    """Show the known proof.

    Raises:
        FeedbackRejected: the statement has none (`no_known_proof`).
    """
    statement = rollout.statement
    if not (statement.proof or "").strip():
        raise rejected(
            f"{statement.name} has no known proof: feedback.type = 'ground_truth' needs `proof` in data.train.",
            "no_known_proof",
        )
    return _example(prove(statement.formal_statement, statement.proof or ""))


def lean_output(rollout: Rollout) -> str:
    """Show the compiler's output of a failed attempt, or the attempt's own solution.

    Raises:
        FeedbackRejected: proved, but the rollout does not hold the file (`no_solution`).
    """
    if not rollout.verdict.is_proved:
        output = compiler_output(rollout.verdict)
        return f"The following is feedback from your unsuccessful earlier attempt: {output}"
    if not rollout.final_file.strip():
        raise rejected(f"{rollout.id} is proved but its Lean file was not kept.", "no_solution")
    return _example(rollout.final_file.strip())


def prove(formal_statement: str, proof: str) -> str:
    """Put a proof in the place of the statement's open end (`:=`, `:= by`, `:= by sorry`)."""
    head = _OPEN_END.sub("", formal_statement.rstrip()).rstrip()
    return f"{head} := {proof.strip().removeprefix(':=').strip()}"


def _example(solution: str) -> str:
    return f"Example of a correct solution:\n{solution}"
