"""One metrics row per gradient step; the keys are documented in docs/metrics.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio

from fd_async.pipeline.samples import BatchFacts
from fd_async.pipeline.state import Finished, Parts, RunState
from fd_async.telemetry.lag import LoopLag
from fd_async.types import PushReport, Rollout

_LEAN = ("checks", "infra_errors", "audits", "revoked", "audit_unfinished", "canaries")


class StepClock:
    """Seconds of the phases of a step."""

    def __init__(self) -> None:
        self._started = self._last = anyio.current_time()
        self.seconds: dict[str, float] = {}

    def mark(self, phase: str) -> None:
        """End a phase."""
        now = anyio.current_time()
        self.seconds[phase] = now - self._last
        self._last = now

    @property
    def total_s(self) -> float:
        return self._last - self._started


def attempts_row(rollouts: Sequence[Rollout]) -> dict[str, float | int | None]:
    """Return what the attempts of a batch say; the alarms judge by it before the step is pushed."""
    return {
        "train/pass_rate": _mean([rollout.reward for rollout in rollouts]),
        "train/response_tokens": _mean([len(rollout.completion_ids) for rollout in rollouts]),
        "train/turns": _mean([sum(turn.role == "assistant" for turn in rollout.turns) for rollout in rollouts]),
        "train/truncated": _mean([rollout.end_reason == "token_budget" for rollout in rollouts]),
        "train/attempts": len(rollouts),
    }


def step_row(
    parts: Parts,
    state: RunState,
    items: Sequence[Finished],
    known: Mapping[str, float | int | None],
    push: PushReport | None,
    facts: BatchFacts,
    clock: StepClock,
    lag: LoopLag,
) -> dict[str, float | int | None]:
    """Assemble the row of one step. Totals (`tokens/*`, `feedback/*`, `lean/*`) count from the start of the run.

    Args:
        parts: of the run.
        state: of the run.
        items: the batch.
        known: what the learner, the attempts and the alarms said of the step.
        push: None when the run is stopping.
        facts: of the batch.
        clock: of the step.
        lag: of the event loop; begins anew.
    """
    rollouts = [item.rollout for item in items]
    verifier, provider = parts.verifier.statistics(), parts.provider.statistics()
    trained_at = state.step - 1
    feedback_ages = [max(0, trained_at - rollout.newest_version) for rollout in rollouts]
    row: dict[str, float | int | None] = dict(known)
    row |= {
        "weight_version": parts.engine.weight_version,
        "staleness/mean": _mean(facts.ages),
        "staleness/max": max(facts.ages, default=0),
        "staleness/feedback_mean": _mean(feedback_ages),
        "staleness/feedback_max": max(feedback_ages, default=0),
        "queue/depth": state.buffer.num_finished,
        "tokens/generated": state.tokens_generated,
        "tokens/trained": state.tokens["trained"],
        "tokens/queued": state.tokens["queued"],
        "tokens/dropped": state.tokens_dropped,
        **{f"time/{phase}_s": clock.seconds[phase] for phase in ("wait_for_batch", "learn", "stage")},
        "time/step_s": clock.total_s,
        "time/push_stall_s": push.stall_s if push else None,
        "time/rollout_s": _mean([rollout.seconds for rollout in rollouts]),
        "push/probe_max_abs": push.probe_max_abs if push else None,
        "loop/lag_p99_ms": lag.p99_ms(),
        **{f"lean/{name}": verifier[name] for name in _LEAN},
        "feedback/calls": provider["calls"],
        "feedback/usd": provider["usd"],
    }
    row |= facts.words
    row |= state.admission.row() if state.admission else {}
    row |= state.discovery.step([rollout.verdict for rollout in rollouts])
    if parts.config.algorithm.max_age >= 0:
        row["staleness/too_old"] = state.num_dropped["too_old"]
    if parts.config.algorithm.type == "grpo":
        row["grpo/zero_variance_groups"] = facts.zero_variance_groups
    lag.reset()
    return row


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
