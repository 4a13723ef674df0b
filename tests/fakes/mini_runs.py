"""Rows as the runs of the miniature leave them, with figures that a test chooses."""

from __future__ import annotations

from typing import Any

from bench.mini.claims import Runs, Scalings, claims
from bench.mini.conditions import PASS_AT, Sizes, conditions

SEEDS = (1, 2, 3)
FINAL = "eval/test/pass@1"


def run(rates: list[float], entropy: list[float] | float = 0.08, *, attempts: int = 32, final: float | None = None,
        lengths: list[float] | None = None, kl: list[float] | None = None) -> list[dict[str, Any]]:  # fmt: skip
    """Make rows; a rate is kept for as many steps as fill one window."""
    per_window = -(-320 // attempts)
    rows: list[dict[str, Any]] = []
    tokens = 0.0
    for index in range(len(rates) * per_window):
        window = index // per_window
        tokens += attempts * (lengths[window] if lengths else 80.0)
        rows.append({
            "step": index + 1, "train/attempts": attempts, "train/pass_rate": rates[window], "tokens/trained": tokens,
            "policy/entropy": entropy if isinstance(entropy, float) else entropy[window],
            "policy/teacher_kl": kl[window] if kl else 0.05, "train/response_tokens": 170.0,
        })  # fmt: skip
    if final is not None:
        rows[-1][FINAL] = final
    return rows


def seeds(rows: list[dict[str, Any]], *, nudge: float = 0.004) -> dict[int, list[dict[str, Any]]]:
    """Make three seeds that differ a little."""
    return {
        seed: [{**row, "train/pass_rate": row["train/pass_rate"] + nudge * place,
                **({FINAL: row[FINAL] + nudge * place} if FINAL in row else {})} for row in rows]
        for place, seed in enumerate(SEEDS)
    }  # fmt: skip


def verdict(
    words: str, runs: dict[str, Any], scalings: dict[int, Any] | None = None, steps: int = 60
) -> dict[str, Any]:
    """Judge all claims and return the one whose text holds the words."""
    found = [claim for claim in claims(runs, scalings or {}, None, steps) if words in claim["claim"]]
    assert len(found) == 1
    return found[0]


def whole_benchmark(sizes: Sizes, numbers: tuple[int, ...] = SEEDS) -> tuple[Runs, Scalings]:
    """Make every run of the plan, and pass@k of a pair per seed; accuracies rise, and differ by seed."""
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for condition in conditions(sizes):
        steps = condition.sets["run.max_steps"]
        attempts = condition.attempts // steps
        num_windows = -(-steps // -(-320 // attempts))
        rates = [0.1 + 0.5 * place / num_windows for place in range(num_windows)]
        kl = [0.1 / (place + 1) ** 3 for place in range(num_windows)]
        final = rates[-1] if condition.sets["eval.at_end"] else None
        rows = run(rates, [0.08 - 0.04 * rate for rate in rates], attempts=attempts, kl=kl, final=final)[:steps]
        if final is not None:
            rows[-1][FINAL] = final
        runs[condition.name] = {seed: found for seed, found in seeds(rows).items() if seed in numbers}
    pairs = {
        seed: {
            "fd_step": 60, "grpo_step": 48,
            "fd": {k: 0.4 + 0.03 * k**0.5 + 0.004 * seed for k in PASS_AT},
            "grpo": {k: 0.42 + 0.01 * k**0.5 for k in PASS_AT},
        }
        for seed in numbers
    }  # fmt: skip
    return runs, pairs
