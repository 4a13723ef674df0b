"""Figure 1 of any attempt: statement, coloured tokens, feedback, and the two probabilities side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fd_async.data.ledger import AttemptRecord, read_attempt
from fd_async.errors import ConfigError, PreflightError
from fd_async.telemetry.sinks import replace_file
from fd_async.viewer.attempts import attempt
from fd_async.viewer.figures.page import render

FULL_COLOUR_NATS = 3.0
"""Difference at which a colour is full."""
MAX_COMPARED = 20
_TEACHER, _STUDENT = (24, 140, 70), (214, 48, 40)


def write_attempt(run_dirs: Sequence[Path], rollout_id: str, out: Path) -> Path:
    """Write the page of an attempt, from the first of the runs that has it, and return its path.

    Raises:
        ConfigError: none of the runs has it.
        PreflightError: `out` refuses files.
        LedgerError: a ledger is there and cannot be read.
    """
    for run_dir in run_dirs:
        ledger = run_dir / "ledger.db"
        record = read_attempt(ledger, rollout_id) if ledger.exists() else None
        if record is not None:
            path = out / f"attempt_{_file_name(rollout_id)}.html"
            try:
                out.mkdir(parents=True, exist_ok=True)
                replace_file(path, attempt_html(record, run_dir.resolve().name))
            except OSError as error:
                raise PreflightError(
                    f"--to {out}: cannot write there: {error.strerror or error}; name another folder"
                ) from error
            return path
    where = ", ".join(str(run_dir) for run_dir in run_dirs)
    raise ConfigError(
        f"--attempt {rollout_id}: no such attempt in the ledger of {where}; ids look like train-0000012-00 and are "
        "shown by fd-view"
    )


def attempt_html(record: AttemptRecord, run: str) -> bytes:
    """Return the page."""
    shown = attempt(record)
    pairs = list(zip(*shown["tokens"], strict=True)) if shown["tokens"] else []
    turns = []
    for turn in shown["turns"]:
        mine = pairs[turn["start"] : turn["end"]] if turn["role"] != "tool" else []
        tokens = [(text, colour(delta), signed(delta)) for text, delta in mine]
        turns.append({**turn, "tokens": tokens})
    return render("attempt.html.j2", run=run, a=shown, turns=turns, compared=compared(record), full=FULL_COLOUR_NATS)


def colour(delta: float | None) -> str:
    """Return the background of a token: green where the teacher prefers it, red where the student does."""
    if delta is None or not math.isfinite(delta) or abs(delta) < 0.05:
        return ""
    strength = min(abs(delta) / FULL_COLOUR_NATS, 1.0) * 0.75
    red, green, blue = _TEACHER if delta > 0 else _STUDENT
    return f"rgba({red}, {green}, {blue}, {strength:.2f})"


def signed(delta: float | None) -> str:
    """Write a difference in nats."""
    return "not sampled by the model" if delta is None else f"{delta:+.2f} nats"


def compared(record: AttemptRecord) -> list[dict[str, Any]]:
    """Return the tokens on which teacher and student differ most, with both probabilities and what the teacher would
    write, in reading order.

    The student's is the one that sampling recorded; the teacher's is that times exp(delta), at most 1. Empty where
    the learner did not score the attempt, or the ledger gave up its log-probs.
    """
    rollout, texts, deltas = record.rollout, record.token_texts, record.token_deltas
    if texts is None or deltas is None or len(rollout.logprobs) != len(deltas):
        return []
    sampled = [i for i, mine in enumerate(rollout.sampled_mask) if mine and math.isfinite(deltas[i])]
    most = sorted(sampled, key=lambda i: -abs(deltas[i]))[:MAX_COMPARED]
    return [
        {
            "place": i,
            "before": "".join(texts[max(0, i - 6) : i])[-40:],
            "token": texts[i],
            "student": math.exp(min(0.0, rollout.logprobs[i])),
            "teacher": math.exp(min(0.0, rollout.logprobs[i] + deltas[i])),
            "instead": [(text, share) for text, share in record.teacher_choices.get(i, []) if share >= 5e-4],
            "delta": deltas[i],
            "colour": colour(deltas[i]),
        }
        for i in sorted(most)
        if abs(deltas[i]) >= 0.05
    ]


def _file_name(rollout_id: str) -> str:
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in rollout_id)[:120]
