"""Kill runs at random instants and resume them: nothing is skipped, trained twice or bought twice.

    python -m bench.crash_resume [--quick] [--runs 100] [--real N]

Each run has the real controller, buffer, ledger and attempts; engine, verifier and learner are stand-ins whose work is
a function of the ticket, and feedback is sold by a process that outlives the run and writes every sale down. A run is
killed with SIGKILL after a time drawn evenly from the length of an undisturbed one, start and checkpoints included, and
resumed; two in ten are killed twice, one in ten three times. Afterwards its ledger, its learner's state and the
seller's book are compared with those of the undisturbed run.

`--real N` does the same to N runs of configs/tiny_fd.toml with the real vLLM and learner (two to three minutes each).

Keys: `runs`, `skipped` (ordinals), `repeated` (rollouts trained twice), `rebought` (answers that the ledger had), each
summed over all runs; `broken` (what else did not hold, in words), `kills`, `killed_twice` (runs), `cut_off_calls`
(answers on their way at a kill: paid, and unknowable), `continued_tokens` (taken over by a next process),
`resampled_share` (tokens sampled again, of all that were recorded).
"""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from bench.common import emit, parser
from bench.crashes.history import History, continued_tokens, read_history, rebought, recorded_answers
from bench.crashes.life import KINDS, live, make_config
from bench.crashes.seller import sales, selling

_STEPS = 8
_DEATHS = (1, 1, 1, 1, 1, 1, 1, 2, 2, 3)


class Result(Struct, frozen=True, kw_only=True):
    """One run that was killed and resumed until it was done."""

    skipped: int
    repeated: int
    rebought: int
    cut_off_calls: int
    kills: int
    continued_tokens: int
    resampled: int
    """Tokens that the engine sampled and no record has: sampled between the last record and the kill."""
    recorded: int
    broken: list[str]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=None, help="runs with stand-ins (100; 8 with --quick)")
    options.add_argument("--real", type=int, default=0, help="runs with the real vLLM and learner")
    options.add_argument("--seed", type=int, default=0, help="of kinds and instants")
    asked = options.parse_args()
    runs = asked.runs if asked.runs is not None else 8 if asked.quick else 100
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fd-crashes-") as name:
        results = kill_runs(Path(name), runs, asked.seed)
    figures = summary(results) | {"seconds": round(time.monotonic() - started, 1)}
    if asked.real:
        from bench.crashes.real import kill_real_runs

        figures["real"] = kill_real_runs(asked.real, asked.seed)
    emit(figures)


def kill_runs(folder: Path, runs: int, seed: int) -> list[Result]:
    """Make the undisturbed runs, then as many killed ones."""
    with selling(folder) as socket:
        references: dict[str, tuple[History, float]] = {}
        for kind in KINDS:
            config, run_dir = make_config(kind, _STEPS), folder / f"reference-{len(references)}"
            outcome = live(config, run_dir, socket, 0, kill_after_s=None)
            if outcome.code:
                raise RuntimeError(f"{kind}: an undisturbed run failed\n{(run_dir / 'console.txt').read_text()}")
            history, broken = read_history(run_dir, steps=_STEPS)
            if broken.skipped or broken.repeated or broken.other:
                raise RuntimeError(f"{kind}: an undisturbed run is not sound: {broken}")
            references[kind] = history, outcome.seconds
        # Forked while there is one thread; each worker forks the lives of its runs.
        with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as workers:
            kill = partial(kill_run, folder, socket, references, seed)
            return list(workers.map(kill, range(runs)))


def kill_run(
    folder: Path, socket: Path, references: dict[str, tuple[History, float]], seed: int, number: int
) -> Result:
    """Make one run, kill it as often as its number says, and look at what is left."""
    rng = random.Random(f"{seed} {number}")
    kind = rng.choice(list(KINDS))
    config, (reference, length_s) = make_config(kind, _STEPS), references[kind]
    run_dir = folder / f"run-{number}"
    recorded, deaths = list[frozenset[str]](), rng.choice(_DEATHS)
    kills = continued = 0
    while True:
        kill_after_s = rng.uniform(0, length_s) if kills < deaths else None
        outcome = live(config, run_dir, socket, len(recorded), kill_after_s=kill_after_s)
        recorded.append(recorded_answers(run_dir))
        if outcome.code == -9:
            kills += 1
            continued += continued_tokens(run_dir) if (run_dir / "ledger.db").exists() else 0
            continue
        if outcome.code:
            return _failed(kills, f"run {number} ({kind}) ended with {outcome.code}: {_tail(run_dir)}")
        if not kills:  # it was done before its moment came: the same again, sooner
            length_s *= 0.8
            run_dir, recorded = folder / f"{run_dir.name}-again", []
            continue
        break
    history, broken = read_history(run_dir, steps=_STEPS)
    problems = list(broken.other)
    if (history.trained, history.frontier) != (reference.trained, reference.frontier):
        problems.append("it trained other attempts than the undisturbed run")
    if history.tokens != reference.tokens:
        problems.append(f"its tokens are {history.tokens}, of the undisturbed run {reference.tokens}")
    again, cut_off = rebought(sales(folder, run_dir.name), recorded)
    return Result(
        skipped=len(broken.skipped),
        repeated=len(broken.repeated),
        rebought=again,
        cut_off_calls=cut_off,
        kills=kills,
        continued_tokens=continued,
        resampled=history.sampled - sum(history.tokens.values()),
        recorded=sum(history.tokens.values()),
        broken=[f"run {number} ({kind}): {problem}" for problem in problems],
    )


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Add the runs up."""
    return {
        "runs": len(results),
        "skipped": sum(result.skipped for result in results),
        "repeated": sum(result.repeated for result in results),
        "rebought": sum(result.rebought for result in results),
        "broken": [problem for result in results for problem in result.broken],
        "kills": sum(result.kills for result in results),
        "killed_twice": sum(result.kills > 1 for result in results),
        "cut_off_calls": sum(result.cut_off_calls for result in results),
        "continued_tokens": sum(result.continued_tokens for result in results),
        "resampled_share": round(
            sum(result.resampled for result in results) / max(1, sum(result.recorded for result in results)), 4
        ),
    }


def _failed(kills: int, problem: str) -> Result:
    return Result(
        skipped=0, repeated=0, rebought=0, cut_off_calls=0, kills=kills, continued_tokens=0, resampled=0, recorded=0,
        broken=[problem],
    )  # fmt: skip


def _tail(run_dir: Path) -> str:
    console = run_dir / "console.txt"
    return console.read_text().strip(" -+|\n")[-200:] if console.exists() else "it said nothing"


if __name__ == "__main__":
    main()
