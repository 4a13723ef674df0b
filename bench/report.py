"""How long `fd-report` takes for three runs of 400 steps whose ledgers hold 50,000 attempts each.

The bench makes the runs: three of them with two suites, words, lemmas and KL in metrics.jsonl, an evaluation each, and
one ledger of attempts of about ten thousand characters with feedback, of which the other two runs get a copy. Then it
calls the command in a process of its own, as a person would, and the same function inside a process that says how long
each phase took. Keys:

    report_s       seconds of the command from start to end, the import of everything included
    phases         share of each phase: read, import matplotlib, compute, leaks, draw, write
    cpu_s          processor seconds of those phases
    attempts       in each ledger
    figures        drawn
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio

from bench.common import arguments, emit
from fd_async.data.ledger import Ledger, open_ledger
from fd_async.types import Feedback, Rollout, Statement, Turn, Verdict, VersionSpan
from fd_async.viewer.figures.report import write_figures
from tests.fakes.paper_runs import make_rows, write_result, write_run

_AT_ONCE = 512
_PROMPTS = 128
_WORDS = ("have", "sq_nonneg", "nlinarith", "mul_pos", "exact", "le_of_lt", "a", "b", "h₀", "linarith", "rw", "simp")
_TIMEOUT_S = 300.0


def main() -> None:
    """Make the runs, report on them twice, and print one JSON object."""
    options = arguments(__doc__)
    num_attempts = 5_000 if options.quick else 50_000
    with tempfile.TemporaryDirectory(prefix="fd-bench-report-") as root:
        folders = make_runs(Path(root), num_attempts)
        began = time.perf_counter()
        command = [sys.executable, "-m", "fd_async.cli", "report", *map(str, folders), "--to", str(Path(root) / "out")]
        subprocess.run(command, check=True, timeout=_TIMEOUT_S, stdout=subprocess.DEVNULL)
        report_s = time.perf_counter() - began
        cpu = time.process_time()
        written = write_figures([("", [folder]) for folder in folders], Path(root) / "again")
        cpu_s = time.process_time() - cpu
    total = sum(written.seconds.values())
    result: dict[str, Any] = {
        "report_s": round(report_s, 2),
        "phases": {name: round(seconds / total, 3) for name, seconds in written.seconds.items()},
        "cpu_s": round(cpu_s, 2),
        "runs": len(folders),
        "steps": 400,
        "attempts": num_attempts,
        "figures": written.num_figures,
    }
    emit(result)


def make_runs(root: Path, num_attempts: int) -> list[Path]:
    """Write three run folders and return them."""
    folders = []
    for seed in range(3):
        folder = write_run(root / f"run_{seed}", make_rows(400, seed=seed), {"feedback": {"type": "ground_truth"}})
        write_result(folder, "step_200", 200, 0.4 + 0.01 * seed, 0.05 + 0.01 * seed)
        folders.append(folder)
    anyio.run(_fill, folders[0] / "ledger.db", num_attempts)
    for folder in folders[1:]:
        shutil.copy(folders[0] / "ledger.db", folder / "ledger.db")
    return folders


async def _fill(path: Path, num_attempts: int) -> None:
    """Record attempts as a run does: attempt, feedback, batch."""
    chance = random.Random(0)
    prose = " ".join(chance.choice(_WORDS) for _ in range(40_000))
    async with open_ledger(path) as ledger:
        for start in range(0, num_attempts, _AT_ONCE):
            indices = range(start, min(start + _AT_ONCE, num_attempts))
            made = [_attempt(index, num_attempts, chance, prose) for index in indices]
            async with anyio.create_task_group() as group:
                for rollout, feedback in made:
                    group.start_soon(_put, ledger, rollout, feedback)
            for batch in range(0, len(made), _PROMPTS):
                ids = [rollout.id for rollout, _ in made[batch : batch + _PROMPTS]]
                await ledger.put_batch((start + batch) // _PROMPTS + 1, ids, {})


async def _put(ledger: Ledger, rollout: Rollout, feedback: Feedback) -> None:
    await ledger.put_rollout(rollout, "queued", admitted_version=0, step=None)
    await ledger.put_feedback(feedback)


def _attempt(index: int, num_attempts: int, chance: random.Random, prose: str) -> tuple[Rollout, Feedback]:
    """Return an attempt at one of a fifth as many statements, and its feedback."""
    name = f"lean_workbook_{index % max(1, num_attempts // 5)}"
    statement = f"theorem {name} (a b : ℝ) (h₀ : 0 < a ∧ a < b) : a ^ 2 < b ^ 2 := by"
    known = "by\n  nlinarith [sq_nonneg (a - b), mul_pos h₀.1 (lt_trans h₀.1 h₀.2), sq_nonneg (a + b)]"
    place = chance.randrange(len(prose) - 10_000)
    proved = chance.random() < 0.4
    file = f"{statement}\n  nlinarith [{prose[place : place + 200]}]" if not proved else f"{statement[:-2]}{known}"
    version = index // _PROMPTS
    rollout = Rollout(
        id=f"train-{index:07d}-00", ordinal=index, sample=0, purpose="train",
        statement=Statement(name=name, formal_statement=statement, proof=known),
        prompt_ids=[1, 2, 3], completion_ids=list(range(64)), sampled_mask=[True] * 64, logprobs=[-0.5] * 64,
        spans=[VersionSpan(version, 0, 64)],
        turns=[Turn(role="assistant", start=0, end=64, text=prose[place : place + 10_000])],
        verdict=Verdict(kind="proved" if proved else "failed"), end_reason="stopped", final_file=file,
    )  # fmt: skip
    text = f"Example of a correct solution:\n{statement[:-2]}{known}"
    return rollout, Feedback(rollout_id=rollout.id, text=text, provider="ground_truth", prompt_hash=str(index))


if __name__ == "__main__":
    main()
