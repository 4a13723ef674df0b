"""A run folder as a run leaves it: config, metrics, status and a real ledger with made-up attempts."""

from __future__ import annotations

import math
import random
from pathlib import Path

import anyio
import msgspec

from fd_async.data.ledger import open_ledger
from fd_async.types import EndReason, Feedback, Rollout, Statement, TokenScores, Turn, Verdict, VerdictKind, VersionSpan

CONFIG = """[run]
name = "demo"
seed = 0
mode = "async"

[model]
path = "Qwen/Qwen3.5-9B"

[data]
train = "data/train.jsonl"
eval = ["data/minif2f_test.jsonl"]

[algorithm]
type = "fd"

[feedback]
type = "anthropic"
model = "claude-opus-4-6"
api_key_env = "ANTHROPIC_API_KEY"

[learner]
prompts_per_step = 128
lr = 1e-05

[telemetry]
report_attempts = 300
"""
STATEMENT = "theorem {name} (a b : ℝ) (h₀ : 0 < a ∧ a < b) :\n    a ^ 2 < b ^ 2 := by"
CALL = '<tool_call>\n{"name": "lean_check_file", "arguments": {"path": "proof.lean"}}\n</tool_call>'
PIECES = [
    "<think>\n", "We ", "need ", "0 ", "≤ ", "a", ", ", "so ", "sq", "_lt", "_sq", "' ", "might ", "apply", ".\n",
    "</think>\n\n", "by", "\n  ", "nl", "inarith", " [", "sq", "_nonneg", " (", "b", " - ", "a", ")", ", ", "h₀", ".1",
    "]", "\n",
]  # fmt: skip
ERROR = "error: proof.lean:3:2: linarith failed to find a contradiction\ncase h1.h\na b : ℝ\n⊢ a < b → False"
ADVICE = (
    "1. Do cite `pow_lt_pow_left` with the hypotheses `h₀.2` and `h₀.1.le` instead of searching for a certificate with"
    " `nlinarith`.\n2. Don't repeat the same call after the same error; read the goal that Lean prints first."
)


def make_attempt(
    index: int, proof: str = "", scored: bool = True, feedback: str = ADVICE, *, evaluated: bool = False
) -> tuple[Rollout, Feedback | None, TokenScores | None]:
    """Return a rollout, its feedback and its token scores, different for each index."""
    random_ = random.Random(index)
    name = f"lean_workbook_{10_000 + index}"
    pieces = [*(PIECES * random_.randint(1, 4)), proof, CALL]
    tool = ["\n<tool_response>\n", ERROR, "\n</tool_response>\n"]
    end = ["I ", "checked ", "it", "."]
    texts = pieces + tool + end
    mask = [True] * len(pieces) + [False] * len(tool) + [True] * len(end)
    kind: VerdictKind = random_.choice(["proved", "failed", "failed", "timeout", "statement_changed"])
    reason: EndReason = "solved" if kind == "proved" else random_.choice(["token_budget", "stopped"])
    cut, last = len(pieces), len(pieces) + len(tool)
    rollout = Rollout(
        id=f"{'eval-minif2f_test' if evaluated else 'train'}-{index:07d}-00",
        ordinal=index,
        sample=0,
        purpose="eval" if evaluated else "train",
        suite="minif2f_test" if evaluated else "",
        statement=Statement(name=name, formal_statement=STATEMENT.format(name=name)),
        prompt_ids=[1, 2, 3],
        completion_ids=list(range(len(texts))),
        sampled_mask=mask,
        logprobs=[-0.5 if sampled else 0.0 for sampled in mask],
        spans=[VersionSpan(index // 8, 0, cut), VersionSpan(index // 8 + 1, last, len(texts))],
        turns=[
            Turn(role="assistant", start=0, end=cut, text="".join(pieces)),
            Turn(role="tool", start=cut, end=last, text=ERROR, tool="lean_check_file", ok=kind == "proved"),
            Turn(role="assistant", start=last, end=len(texts), text="".join(end)),
        ],
        verdict=Verdict(kind=kind, reason="" if kind == "proved" else ERROR.splitlines()[0], backend="repl"),
        end_reason=reason,
        seconds=random_.uniform(2, 90),
    )
    given = None if evaluated else Feedback(
        rollout_id=rollout.id, text=feedback, provider="anthropic", model="claude-opus-4-6", usd=0.0213,
        prompt_hash=str(index),
    )  # fmt: skip
    deltas = [random_.gauss(0, 0.2) if random_.random() < 0.75 else random_.gauss(0.3, 2) for _ in texts]
    deltas = [d if m else 0.0 for d, m in zip(deltas, mask, strict=True)]
    most = sorted((place for place in range(len(texts)) if mask[place]), key=lambda place: -abs(deltas[place]))[:20]
    choices = {place: [("Real", 0.981), (texts[place], 0.018), ("ℝ", 0.001)] for place in most}
    return rollout, given, TokenScores(texts, deltas, choices) if scored else None


def make_rows(num_steps: int) -> list[dict[str, float | int | None]]:
    """Return plausible metrics; the token counts close."""
    random_ = random.Random(0)
    rows: list[dict[str, float | int | None]] = []
    for step in range(num_steps + 1):
        t = step / max(num_steps, 1)
        row: dict[str, float | int | None] = {"step": step, "weight_version": step}
        if step:
            row |= {
                "loss": 1.9 - 0.9 * t + random_.gauss(0, 0.06),
                "teacher/topk_mass": 0.985 + 0.01 * t,
                "teacher/entropy": 0.5 - 0.1 * t,
                "teacher/feedback_gain": 0.22 * math.exp(-2 * t) + random_.gauss(0, 0.01),
                "policy/entropy": 0.62 - 0.12 * t + random_.gauss(0, 0.01),
                "policy/mismatch_kl": 2e-4 + abs(random_.gauss(0, 1e-4)),
                "grad_norm": 0.8 + abs(random_.gauss(0, 0.2)),
                "lr": 1e-5,
                "train/pass_rate": min(1, max(0, 0.12 + 0.6 * t + random_.gauss(0, 0.05))),
                "train/response_tokens": 1800 + 300 * t + random_.gauss(0, 60),
                "staleness/mean": 1 + abs(random_.gauss(0, 0.3)),
                "staleness/max": random_.choice([1, 2, 2, 2]),
                "queue/depth": random_.randint(0, 60),
                "tokens/generated": 231_000 * step,
                "tokens/trained": 226_000 * step,
                "tokens/dropped": 4_000 * step,
                "tokens/queued": 1_000 * step,
                "time/step_s": 280 + random_.gauss(0, 20),
                "time/wait_for_batch_s": 120 + random_.gauss(0, 15),
                "time/learn_s": 110.0,
                "time/push_stall_s": 1.2,
                "loop/lag_p99_ms": 3 + abs(random_.gauss(0, 2)),
                "lean/checks": 520 * step,
                "lean/infra_errors": 1 * step,
                "feedback/calls": 128 * step,
                "feedback/usd": 6.4 * step,
            }
        if step % max(num_steps // 8, 1) == 0:
            row |= {"eval/minif2f_test/pass@1": 0.11 + 0.4 * t, "eval/minif2f_test/pass@8": 0.3 + 0.35 * t}
            row["eval/minif2f_test/statements"] = 244
        rows.append(row)
    return rows


def write_run(
    folder: Path, num_steps: int = 16, num_attempts: int = 24, proof: str = "", feedback: str = ADVICE
) -> Path:
    """Write the whole folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(CONFIG, encoding="utf-8")
    rows = make_rows(num_steps)
    (folder / "metrics.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    status = {
        "phase": "done",
        "updated_at": 1.7e9,
        "elapsed_s": 280.0 * num_steps,
        "tokens": {"dropped:feedback_rejected": 3_000 * num_steps, "dropped:infrastructure": 1_000 * num_steps},
    }
    (folder / "status.json").write_bytes(msgspec.json.encode(status))
    anyio.run(_write_ledger, folder / "ledger.db", num_attempts, proof, feedback)
    return folder


async def _write_ledger(path: Path, num_attempts: int, proof: str, feedback: str) -> None:
    async with open_ledger(path) as ledger:
        for index in range(num_attempts):
            evaluated = index % 6 == 5
            rollout, given, scores = make_attempt(index, proof, index % 3 == 0, feedback, evaluated=evaluated)
            await ledger.put_rollout(
                rollout,
                "evaluated" if evaluated else "queued",
                admitted_version=0,
                step=index // 8 if evaluated else None,
            )
            if given is not None:
                await ledger.put_feedback(given)
            if index % 11 == 4 and not evaluated:
                await ledger.drop(rollout.id, "feedback_rejected")
            elif not evaluated:
                await ledger.put_batch(index + 1, [rollout.id], {rollout.id: scores} if scores else {})
