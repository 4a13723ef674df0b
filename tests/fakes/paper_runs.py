"""Runs as the paper's experiments leave them: configuration, rows and evaluations that follow its figures roughly."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

WORDS = ("wait", "hmm", "perhaps", "maybe", "actually", "alternatively", "seems", "might", "likely", "check")


def make_rows(
    num_steps: int,
    *,
    seed: int = 0,
    start: float = 0.2,
    peak: float = 0.6,
    speed: float = 3.0,
    entropy: float = 0.5,
    eval_every: int = 20,
) -> list[dict[str, float | int | None]]:
    """Return rows whose accuracy goes from `start` towards `peak` and whose entropy goes towards `entropy`."""
    chance = random.Random(seed)
    rows: list[dict[str, float | int | None]] = []
    for step in range(num_steps + 1):
        done = 1 - math.exp(-speed * step / max(num_steps, 1))
        right = start + (peak - start) * done
        row: dict[str, float | int | None] = {"step": step, "weight_version": step}
        if step:
            words = {f"words/{word}": abs(chance.gauss(2 - done, 0.3)) for word in WORDS}
            row |= {
                "train/pass_rate": min(1.0, max(0.0, chance.gauss(right, 0.04))),
                "train/attempts": 128,
                "train/response_tokens": chance.gauss(3000 - 900 * done, 90),
                "policy/entropy": max(0.01, chance.gauss(0.8 + (entropy - 0.8) * done, 0.02)),
                "policy/teacher_kl": max(1e-5, 0.08 * math.exp(-3 * done) + chance.gauss(0, 0.003)),
                "proofs/lemmas_total": round(40 * step**0.6 * entropy),
                "proofs/tactics_total": round(20 * math.log1p(step)),
                "causality/kl_true": 0.2 - 0.1 * done if step % 10 == 0 else None,
                "causality/kl_shuffled": 0.08 - 0.04 * done if step % 10 == 0 else None,
                "causality/kl_empty": 0.001 if step % 10 == 0 else None,
                **words,
                "words/total": sum(words.values()),
            }
        if step % eval_every == 0:
            row |= {
                "eval/leanworkbook_test/pass@1": round(256 * chance.gauss(right, 0.02)) / 256,
                "eval/leanworkbook_test/statements": 256,
                "eval/minif2f_test/pass@1": round(244 * chance.gauss(0.8 * right, 0.02)) / 244,
                "eval/minif2f_test/statements": 244,
            }
        rows.append(row)
    return rows


def write_run(
    folder: Path, rows: Sequence[Mapping[str, float | int | None]], settings: Mapping[str, Mapping[str, Any]] = {}
) -> Path:
    """Write config.toml and metrics.jsonl and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "run": {"name": folder.name},
        "model": {"path": "Qwen/Qwen3.5-9B", "init_from": ""},
        "algorithm": {"type": "fd", "ema_retention": 0.9},
        "feedback": {"type": "anthropic", "prompt": 4},
        "learner": {"lr": 1e-5},
        "rollout": {"samples_per_prompt": 8},
    }
    for name, table in settings.items():
        tables[name] = {**tables.get(name, {}), **table}
    (folder / "config.toml").write_text(tomli_w.dumps(tables), encoding="utf-8")
    (folder / "metrics.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return folder


def write_result(
    run: Path,
    name: str,
    step: int,
    at_1: float,
    gain: float = 0.08,
    *,
    half: float = 0.04,
    suite: str = "minif2f_test",
    temperature: float = 1.0,
) -> Path:
    """Write what fd-eval leaves: pass@k that rises by `gain` with each doubling of k."""
    values = {str(2**i): [at_1 + gain * i, at_1 + gain * i - half, at_1 + gain * i + half] for i in range(5)}
    one = {
        "suite": suite, "hash": f"hash-of-{suite}", "statements": 244, "samples": 16, "failed": 0,
        "temperature": temperature, "tools": True, "response_tokens": 3000.0 + step, "pass_at": values,
        "counts": {"a": [16, 3]},
    }  # fmt: skip
    path = run / "evals" / name / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode({"model": str(run), "step": step, "suites": [one]}))
    return path
