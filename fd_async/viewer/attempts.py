"""Attempts as the report's script reads them: small JSON objects, text untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fd_async.data.ledger import AttemptRecord


def attempt(record: AttemptRecord) -> dict[str, Any]:
    """Return one attempt; `tokens` and `choices`, the teacher's own, stand only where the learner scored it."""
    rollout, feedback = record.rollout, record.feedback
    shown: dict[str, Any] = {
        "id": rollout.id,
        "name": rollout.statement.name,
        "statement": rollout.statement.formal_statement,
        "from": rollout.suite or rollout.purpose,
        "step": record.step,
        "outcome": record.outcome,
        "verdict": rollout.verdict.kind,
        "reason": rollout.verdict.reason,
        "output": rollout.verdict.output,
        "backend": rollout.verdict.backend,
        "end": rollout.failure or rollout.end_reason,
        "num_tokens": len(rollout.sampled_mask),
        "num_sampled": rollout.num_sampled_tokens,
        "seconds": round(rollout.seconds, 1),
        "versions": sorted({span.version for span in rollout.spans}),
        "turns": [
            {
                "role": turn.role,
                "text": turn.text,
                "tool": turn.tool,
                "ok": turn.ok,
                "start": turn.start,
                "end": turn.end,
            }
            for turn in rollout.turns
        ],
        "feedback": None,
        "tokens": None,
        "choices": {},
        "gain": None,
    }
    if feedback is not None:
        shown["feedback"] = {
            "text": feedback.text,
            "by": " ".join(part for part in (feedback.provider, feedback.model) if part),
            "usd": feedback.usd,
            "asked": feedback.asked,
        }
    if record.token_texts is not None and record.token_deltas is not None:
        deltas = _sampled_deltas(record.token_deltas, rollout.sampled_mask)
        sampled = [delta for delta in deltas if delta is not None]
        shown["tokens"] = [record.token_texts, deltas]
        shown["choices"] = {
            i: [[text, round(p, 4)] for text, p in found] for i, found in record.teacher_choices.items()
        }
        shown["gain"] = round(sum(sampled) / len(sampled), 3) if sampled else None
    return shown


def _sampled_deltas(deltas: Sequence[float], mask: Sequence[bool]) -> list[float | None]:
    """Return deltas in nats with two decimals, None where the token was not sampled by the model."""
    return [round(delta, 2) if sampled else None for delta, sampled in zip(deltas, mask, strict=True)]
