"""Held-out evaluation: the same rollouts as in training, scored with the unbiased pass@k estimator.

    suite      every attempt of a suite: which, in which order, and what is tried again
    result     what the attempts say: pass@k with intervals, counts per statement, result.json
    identity   what an evaluation depends on, and whether two calls mean the same one

Used by training, which asks now and then, and by `fd-eval`, which keeps an evaluation in a folder of its own.

Invariants: an attempt lost to infrastructure is never an unsolved statement; sample i of a statement is the same ticket
whatever the number of samples, so that more of them extend an evaluation; a ticket's seed depends on the run's seed and
on the ticket alone.
"""

from fd_async.evaluation.identity import TOOLCHAIN, Identity, differences, identity
from fd_async.evaluation.result import Outcome, SuiteResult, Tally, document
from fd_async.evaluation.suite import Known, evaluate_suite, tally_of

__all__ = [
    "TOOLCHAIN",
    "Identity",
    "Known",
    "Outcome",
    "SuiteResult",
    "Tally",
    "differences",
    "document",
    "evaluate_suite",
    "identity",
    "tally_of",
]
