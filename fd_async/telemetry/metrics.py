"""The columns of metrics.jsonl: names, units, and what a row must hold.

Invariants:
    * `METRICS` and `FAMILIES` are the one list of names; docs/metrics.md documents each of them.
    * No data is `null`, never 0.
    * A total counts from the start of the run; it begins again at 0 only when a resume cannot know it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from fd_async.telemetry.accounts import ENGINE, LEARNER

EPISTEMIC_WORDS: tuple[str, ...] = (
    *("wait", "hmm", "perhaps", "maybe", "actually"),
    *("alternatively", "seems", "might", "likely", "check"),
)
"""The words that the paper counts (figure 13)."""

Row = dict[str, float | int | None]


class Metric(Struct, frozen=True, array_like=True):
    """One column. `always`: it stands in every row, null without data. `total`: it counts from the run's start."""

    key: str
    unit: str
    always: bool = True
    total: bool = False


METRICS: tuple[Metric, ...] = (
    Metric("step", "steps"),
    Metric("weight_version", "versions"),
    Metric("loss", "nats/token"),
    Metric("teacher/topk_mass", "share"),
    Metric("teacher/entropy", "nats/token"),
    Metric("teacher/feedback_gain", "nats/token"),
    Metric("policy/entropy", "nats/token"),
    Metric("policy/mismatch_kl", "nats/token"),
    Metric("grad_norm", "norm"),
    Metric("lr", "per step"),
    Metric("train/pass_rate", "share"),
    Metric("train/response_tokens", "tokens"),
    Metric("staleness/mean", "versions"),
    Metric("staleness/max", "versions"),
    Metric("queue/depth", "samples"),
    Metric("tokens/generated", "tokens", total=True),
    Metric("tokens/trained", "tokens", total=True),
    Metric("tokens/dropped", "tokens", total=True),
    Metric("time/step_s", "s"),
    Metric("time/wait_for_batch_s", "s"),
    Metric("time/push_stall_s", "s"),
    Metric("loop/lag_p99_ms", "ms"),
    Metric("lean/checks", "checks", total=True),
    Metric("lean/infra_errors", "checks", total=True),
    Metric("feedback/calls", "calls", total=True),
    Metric("feedback/usd", "USD", total=True),
    Metric("policy/topk_mass", "share", always=False),
    Metric("policy/teacher_kl", "nats/token", always=False),
    Metric("policy/mismatch_kl_fresh", "nats/token", always=False),
    Metric("policy/topk_overlap", "share", always=False),
    Metric("teacher/age_steps", "steps", always=False),
    Metric("teacher/updates", "updates", always=False, total=True),
    Metric("teacher/updates_held", "updates", always=False, total=True),
    Metric("importance/mean", "ratio", always=False),
    Metric("importance/effective_share", "share", always=False),
    Metric("importance/cap_fraction", "share", always=False),
    Metric("alarms/raised", "alarms", always=False),
    Metric("alarms/rollback_to", "steps", always=False),
    Metric("staleness/too_old", "attempts", always=False, total=True),
    Metric("anchor/loss", "nats/token", always=False),
    Metric("grpo/kl", "nats/token", always=False),
    Metric("grpo/clip_fraction", "share", always=False),
    Metric("grpo/cap_fraction", "share", always=False),
    Metric("grpo/zero_variance_groups", "groups", always=False),
    Metric("push/probe_max_abs", "nats", always=False),
    Metric("train/attempts", "attempts", always=False),
    Metric("train/turns", "turns", always=False),
    Metric("train/truncated", "share", always=False),
    *(Metric(f"words/{word}", "per attempt", always=False) for word in (*EPISTEMIC_WORDS, "total")),
    *(Metric(f"causality/kl_{feedback}", "nats/token", always=False) for feedback in ("true", "shuffled", "empty")),
    *(Metric(f"causality/gain_{feedback}", "nats/token", always=False) for feedback in ("true", "shuffled")),
    Metric("tokens/queued", "tokens", always=False),
    Metric("lean/audits", "audits", always=False, total=True),
    Metric("lean/revoked", "proofs", always=False, total=True),
    Metric("lean/audit_unfinished", "audits", always=False, total=True),
    Metric("lean/canaries", "checks", always=False, total=True),
    Metric("proofs/lemmas_step", "names", always=False),
    Metric("proofs/lemmas_total", "names", always=False, total=True),
    Metric("proofs/lemmas_per_proof", "names", always=False),
    Metric("proofs/tactics_step", "names", always=False),
    Metric("proofs/tactics_total", "names", always=False, total=True),
    Metric("time/learn_s", "s", always=False),
    Metric("time/stage_s", "s", always=False),
    Metric("time/rollout_s", "s", always=False),
    Metric("time/eval_s", "s", always=False),
    Metric("time/elapsed_s", "s", always=False),
    Metric("time/teacher_s", "s", always=False),
    Metric("time/student_s", "s", always=False),
    Metric("time/anchor_s", "s", always=False),
    Metric("time/reference_s", "s", always=False),
    Metric("time/optimizer_s", "s", always=False),
    Metric("admission/limit", "attempts", always=False),
    Metric("admission/staleness_s", "s", always=False),
    Metric("admission/concurrency_s", "s", always=False),
    Metric("admission/kv_s", "s", always=False),
    Metric("admission/checks_s", "s", always=False),
    Metric("admission/feedback_s", "s", always=False),
    Metric("admission/budget_s", "s", always=False),
    Metric("idle/learner", "share", always=False),
    Metric("idle/engine", "share", always=False),
    Metric("idle/engine_slots", "share", always=False),
    Metric("idle/verifier", "share", always=False),
    Metric("idle/feedback", "share", always=False),
    *(Metric(f"learner/{state}_s", "s", always=False) for state in LEARNER),
    *(Metric(f"engine/{state}_s", "s", always=False) for state in ENGINE),
    Metric("staleness/feedback_mean", "versions", always=False),
    Metric("staleness/feedback_max", "versions", always=False),
    Metric("feedback/fallback_usd", "USD", always=False, total=True),
    Metric("feedback/outage_s", "s", always=False, total=True),
    Metric("engine/restarts", "restarts", always=False, total=True),
    Metric("learner/restarts", "restarts", always=False, total=True),
    Metric("loop/lag_max_ms", "ms", always=False),
    Metric("tokens/under_way", "tokens", always=False),
    Metric("usd/trained", "USD", always=False),
    Metric("usd/queued", "USD", always=False),
    Metric("usd/dropped", "USD", always=False),
    Metric("usd/wasted", "USD", always=False),
    Metric("usd/unrecorded", "USD", always=False),
    Metric("disk/ledger_mib", "MiB", always=False),
)

FAMILIES: tuple[Metric, ...] = (
    Metric("eval/SUITE/pass@K", "share", always=False),
    Metric("eval/SUITE/statements", "statements", always=False),
    Metric("eval/SUITE/failed", "attempts", always=False),
    Metric("eval/SUITE/response_tokens", "tokens", always=False),
)
"""Columns of which there is one per suite and k; capitals stand for the name and the number."""

_KNOWN = {metric.key for metric in METRICS}
_FAMILY = re.compile("|".join(m.key.replace("SUITE", "[^/]+").replace("@K", r"@\d+") for m in FAMILIES))


def complete_row(row: Mapping[str, float | int | None]) -> Row:
    """Return the row with every `always` column, and with null for values that JSON cannot hold (NaN, infinity)."""
    complete: Row = {metric.key: None for metric in METRICS if metric.always}
    complete.update(row)
    return {key: None if value is None or not math.isfinite(value) else value for key, value in complete.items()}


def is_documented(key: str) -> bool:
    """Say whether a column is in METRICS or of a family."""
    return key in _KNOWN or _FAMILY.fullmatch(key) is not None


def percentile(values: Sequence[float], q: float) -> float | None:
    """Return the q-th percentile (0 to 100) by linear interpolation, None without values."""
    if not values:
        return None
    ordered = sorted(values)
    rank = (len(ordered) - 1) * q / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)
