"""Kill runs at random instants and resume them: nothing is skipped, trained twice or bought twice.

    python -m bench.crash_resume [--quick] [--runs 100] [--real N]

Each run has the real controller, buffer, ledger and attempts; engine, verifier and learner are stand-ins whose work is
a function of the ticket, and feedback is sold by a process that outlives the run and writes every sale down. A run is
killed with SIGKILL after a time drawn evenly from the length of an undisturbed one, start and checkpoints included, and
resumed; two in ten are killed twice, one in ten three times. Before half of the kills of runs that buy feedback the
seller falls silent, for so long that every answer it gave must be in the ledger. Afterwards a run's ledger, its
learner's state and the seller's book are compared with those of the undisturbed run.

`--real N` does the same to N runs of configs/tiny_fd.toml with the real vLLM and learner (two to three minutes each);
a third of them are killed at an instant when the ledger has tokens of attempts under way.

Exits with 1 unless all of these are 0, summed over all runs: `skipped` (ordinals), `repeated` (rollouts trained twice),
`rebought` (answers that the ledger had), `lost_answers` (delivered in time to be in the ledger, and not there; of
`due_answers`), `discarded_attempts` (begun and not gone on with), `broken` (what else did not hold, in words).

Other keys: `runs`, `kills`, `killed_twice` (runs), `cut_off_calls` (answers on their way at a kill: paid, and
unknowable; see `bench.crashes.calls.RECORDED_S`), `oldest_cut_off_s` (the longest that one of them had been delivered),
`continued_tokens` (sampled before a kill, and compared with the `continued_attempts` that ended with them),
`resampled_share` (tokens sampled again, of all that were recorded); of `real` alone: `unkilled` (runs that were done
before their instant came; they prove nothing), `killed` (the instants), `length_s`.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from bench.common import emit, parser
from bench.crashes.calls import Calls, call_figures, count_calls
from bench.crashes.history import (
    Continued,
    History,
    begun_attempts,
    check_continued,
    continued_figures,
    read_history,
    recorded_answers,
)
from bench.crashes.life import KINDS, live, make_config
from bench.crashes.seller import purchases, selling
from fd_async.types import PartialRollout

_STEPS = 8
_DEATHS = (1, 1, 1, 1, 1, 1, 1, 2, 2, 3)
_MUST_BE_NONE = ("skipped", "repeated", "rebought", "lost_answers", "discarded_attempts", "broken")


class Result(Struct, frozen=True, kw_only=True):
    """One run that was killed and resumed until it was done."""

    kills: int
    broken: list[str]
    skipped: int = 0
    repeated: int = 0
    calls: Calls | None = None
    continued: Continued | None = None
    resampled: int = 0
    """Tokens that the engine sampled and no record has: sampled between the last record and the kill."""
    recorded: int = 0


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
    if failed := failures(figures) + [f"real {key}" for key in failures(figures.get("real", {}))]:
        sys.exit(f"not 0: {', '.join(failed)}")


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
    deaths = rng.choice(_DEATHS)
    recorded, killed_at, begun = list[frozenset[str]](), list[float | None](), list[list[PartialRollout]]()
    while True:
        kill_after_s = rng.uniform(0, length_s) if len(begun) < deaths else None
        in_silence = config.algorithm.type == "fd" and rng.random() < 0.5
        outcome = live(config, run_dir, socket, len(recorded), kill_after_s=kill_after_s, in_silence=in_silence)
        recorded.append(recorded_answers(run_dir))
        killed_at.append(outcome.killed_at)
        if outcome.killed_at is not None:
            begun.append(begun_attempts(run_dir))
            continue
        if outcome.code:
            problem = f"run {number} ({kind}) ended with {outcome.code}: {_tail(run_dir)}"
            return Result(kills=len(begun), broken=[problem])
        if not begun:  # it was done before its moment came: the same again, sooner
            length_s *= 0.8
            run_dir, recorded, killed_at = folder / f"{run_dir.name}-again", [], []
            continue
        break
    history, broken = read_history(run_dir, steps=_STEPS)
    continued = check_continued(run_dir, begun)
    problems = broken.other + continued.other
    if (history.trained, history.frontier) != (reference.trained, reference.frontier):
        problems.append("it trained other attempts than the undisturbed run")
    if history.tokens != reference.tokens:
        problems.append(f"its tokens are {history.tokens}, of the undisturbed run {reference.tokens}")
    return Result(
        kills=len(begun),
        broken=[f"run {number} ({kind}): {problem}" for problem in problems],
        skipped=len(broken.skipped),
        repeated=len(broken.repeated),
        calls=count_calls(purchases(folder, run_dir.name), recorded, killed_at),
        continued=continued,
        resampled=history.sampled - sum(history.tokens.values()),
        recorded=sum(history.tokens.values()),
    )


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """Add the runs up."""
    return {
        "runs": len(results),
        "skipped": sum(result.skipped for result in results),
        "repeated": sum(result.repeated for result in results),
        "broken": [problem for result in results for problem in result.broken],
        "kills": sum(result.kills for result in results),
        "killed_twice": sum(result.kills > 1 for result in results),
        **call_figures(result.calls for result in results if result.calls),
        **continued_figures(result.continued for result in results if result.continued),
        "resampled_share": round(
            sum(result.resampled for result in results) / max(1, sum(result.recorded for result in results)), 4
        ),
    }


def failures(figures: dict[str, Any]) -> list[str]:
    """Return the keys of what must be 0 or empty and is not."""
    return [key for key in _MUST_BE_NONE if figures.get(key)]


def _tail(run_dir: Path) -> str:
    console = run_dir / "console.txt"
    return console.read_text().strip(" -+|\n")[-200:] if console.exists() else "it said nothing"


if __name__ == "__main__":
    main()
