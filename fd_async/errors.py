"""The exception tree. Imports nothing.

    FdError
    ├── ConfigError (ValueError)            exit 2   the configuration; holds every problem found
    ├── PreflightError (RuntimeError)       exit 3   the machine, files or start-up checks
    │   └── SelfAuditFailed                          the learner's own arithmetic checks
    ├── FeedbackError (RuntimeError)        exit 4   one feedback call, see `cause`
    │   ├── FeedbackRejected                         answered, but not usable: refused, empty, malformed, truncated
    │   ├── FeedbackUnavailable                      no answer inside the deadline
    │   ├── FeedbackOutage                           nobody has been answered for longer than the config allows
    │   ├── FeedbackBudgetExceeded                   `feedback.max_usd` or the provider's own monthly cap is spent
    │   └── FeedbackAccountError                     key, model or account refused: no call can succeed
    ├── EngineError (RuntimeError)          exit 5   vLLM
    │   ├── EngineDied
    │   ├── PushRefused                              nothing changed, the old weights still serve
    │   └── PushFailed                               the engine's weights are suspect
    ├── LearnerError (RuntimeError)         exit 5
    │   ├── LearnerRankDied
    │   └── NonFiniteLoss
    ├── VerifierError (RuntimeError)        exit 5   infrastructure only, never a judgement of a proof
    ├── AlignmentError (ValueError)         exit 5   token ids, masks or log-probs of different lengths
    ├── CheckpointError (RuntimeError)      exit 3
    ├── LedgerError (RuntimeError)          exit 5
    └── StallDetected (TimeoutError)        exit 6

Messages say what happened, the config key or file, and what to do. All of them survive pickling. A run that an alarm
ends (`alarms.action`) raises nothing: it writes a checkpoint and exits with 7.
"""

from __future__ import annotations


class FdError(Exception):
    """Base of everything that fd_async raises on purpose."""

    exit_code = 1


class ConfigError(FdError, ValueError):
    """The configuration is wrong; `args[0]` has one line per problem."""

    exit_code = 2


class PreflightError(FdError, RuntimeError):
    """The machine cannot run this configuration."""

    exit_code = 3


class SelfAuditFailed(PreflightError):
    """A start-up check of the learner's arithmetic failed; nothing was trained."""


class FeedbackError(FdError, RuntimeError):
    """One feedback call ended without usable text; `cause` is the drop cause that the ledger records."""

    exit_code = 4
    cause = "feedback_error"
    usd = 0.0
    """US dollars that the refused answers of this call cost all the same."""
    fallback_usd = 0.0
    """Part of `usd`: what the provider of `[fallback]` was paid."""


class FeedbackRejected(FeedbackError):
    """The provider answered with something unusable, twice."""

    cause = "feedback_rejected"


class FeedbackUnavailable(FeedbackError):
    """No answer inside `feedback.deadline_s`."""

    cause = "feedback_unavailable"


class FeedbackOutage(FeedbackError):
    """The provider has answered nobody for `feedback.max_outage_s`; ends the run."""

    cause = "feedback_outage"


class FeedbackBudgetExceeded(FeedbackError):
    """The money is spent; ends the run."""

    cause = "feedback_budget"


class FeedbackAccountError(FeedbackError):
    """The key, the model name or the account is refused; ends the run."""

    cause = "feedback_account"


class EngineError(FdError, RuntimeError):
    """The inference engine failed."""

    exit_code = 5


class EngineDied(EngineError):
    """The engine process is gone."""


class PushRefused(EngineError):
    """The weights were refused before anything changed; the old ones still serve."""


class PushFailed(EngineError):
    """The push failed after it began, or its probe disagrees; the engine must be restarted."""


class LearnerError(FdError, RuntimeError):
    """The learner failed."""

    exit_code = 5


class LearnerRankDied(LearnerError):
    """A rank process ended; the message carries its last lines."""


class NonFiniteLoss(LearnerError):
    """The loss or the gradient norm is not a number."""


class VerifierError(FdError, RuntimeError):
    """The verifier cannot answer; says nothing about the proof."""

    exit_code = 5


class AlignmentError(FdError, ValueError):
    """Token ids, masks or log-probs differ in length; nothing is ever padded to fit."""

    exit_code = 5


class CheckpointError(FdError, RuntimeError):
    """A checkpoint is missing, incomplete or does not match the configuration."""

    exit_code = 3


class LedgerError(FdError, RuntimeError):
    """The ledger cannot be read or written."""

    exit_code = 5


class StallDetected(FdError, TimeoutError):
    """No progress for `run.stall_abort_s`."""

    exit_code = 6


def first_cause(error: BaseException) -> BaseException:
    """Return the exception that a group of loops failed with first; a group of one is that one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
