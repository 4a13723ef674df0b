"""The paper in miniature: which of its claims hold in the tiny world, and which do not.

`python -m bench.mini_paper` runs Feedback Distillation with a tutor, GRPO, GRPO over Feedback Distillation, ground
truth, Lean output, a sweep of the teacher's retention, the anchor, and constant feedback, three seeds
each, one after another on one vLLM engine; about 80 minutes on 2 cores. It prints the plan first and writes
`index.html` with figures and the table of claims into `--out`. Finished runs of `--out` are kept and killed ones go on
from their newest checkpoint, so the same command continues. `--quick` takes two steps of the first condition, to show
that the pieces fit; its claims are all null.

The tutor (`examples.tiny.tutor`) speaks Claude's protocol to the project's own client. It reads statement and attempt,
never a known proof, and names the right recipe in four of five answers. Every criterion is in `bench.mini.claims`.
"""

from __future__ import annotations

import fcntl
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from bench.common import emit, parser
from bench.experiments import configure, one_engine
from bench.mini.asking import ask_the_model
from bench.mini.claims import Runs, Scalings, claims
from bench.mini.conditions import FD, QUICK, Sizes, conditions, plan_text
from bench.mini.page import write_page
from bench.mini.running import (
    compare_scaling,
    free_checkpoints,
    is_compared,
    is_done,
    missing,
    rows_of,
    run_one,
    say,
    scaling_results,
    write_statements,
)
from examples.tiny.tutor.server import serve_tutor
from fd_async.errors import ConfigError, FdError, first_cause

MAX_SEEDS = 10


async def run(out: Path, sizes: Sizes, seeds: list[int], *, only_page: bool, to: Path | None = None) -> None:
    """Run what is missing in `out`, judge the claims, write the page into `to` or `out`, and print the result."""
    started = time.monotonic()
    say(plan_text(sizes, len(seeds)))
    if not only_page:
        with alone_in(out):
            await run_missing(out, sizes, seeds)
    runs, scalings = await anyio.to_thread.run_sync(collect, out, sizes, seeds)
    found = claims(runs, scalings, read_answers(out), sizes.ema_steps)
    minutes = round((time.monotonic() - started) / 60, 1)
    planned, finished = len(seeds) * len(conditions(sizes)), sum(map(len, runs.values()))
    about = f"The tiny world, seeds {', '.join(map(str, seeds))}: {finished} of {planned} planned runs are finished."
    page = await anyio.to_thread.run_sync(write_page, out, sizes, found, runs, scalings, about, to)
    say(f"wrote {page}")
    emit({"claims": found, "seeds": seeds, "minutes": minutes, "seconds_of_runs": seconds_of_runs(out)})


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold `out` until the end of the block, or of this process.

    Raises:
        ConfigError: another process holds it.
    """
    with (out / "lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another call is running in {out}: wait for it, or name another folder") from error
        yield


async def run_missing(out: Path, sizes: Sizes, seeds: list[int]) -> None:
    """Run what is not finished, seed by seed; the engine is only opened where something is left."""
    await anyio.to_thread.run_sync(write_statements, out, sizes)
    todo = missing(out, conditions(sizes), seeds)
    say(f"{len(todo)} runs to do, {len(seeds) * len(conditions(sizes)) - len(todo)} finished")
    if not todo and (out / "self.json").is_file() and all(is_compared(out, sizes, seed) for seed in seeds):
        return
    engine_config = configure(FD, {"policy.max_model_len": 1024})
    async with one_engine(engine_config) as (engine, renderer, _), serve_tutor() as tutor_url:
        await ask_the_model(out, sizes, engine, renderer)
        for seed in seeds:
            for condition in conditions(sizes):
                await run_one(out, condition, seed, engine, tutor_url)
            await compare_scaling(out, sizes, seed, engine)
            await anyio.to_thread.run_sync(free_checkpoints, out, sizes, seed)


def collect(out: Path, sizes: Sizes, seeds: list[int]) -> tuple[Runs, Scalings]:
    """Read the rows of all finished runs, and pass@k where it was measured.

    Raises:
        ConfigError: a run has other sizes.
    """
    runs: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for condition in conditions(sizes):
        rows = {seed: rows_of(out, condition.name, seed) for seed in seeds if is_done(out, condition, seed)}
        runs[condition.name] = {seed: found for seed, found in rows.items() if found}
    pairs = {seed: scaling_results(out, seed) for seed in seeds}
    return runs, {seed: found for seed, found in pairs.items() if found}


def read_answers(out: Path) -> dict[str, Any] | None:
    """Read what the model answered when it was asked for feedback."""
    path = out / "self.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def seconds_of_runs(out: Path) -> dict[str, float]:
    """Return how long each finished run took; of a resumed one, its last part."""
    return {
        marker.parent.name: json.loads(marker.read_text())["seconds"]
        for marker in sorted((out / "runs").glob("*/done.json"))
    }


def main() -> int:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("--out", type=Path, help="runs and page (default runs/mini_paper; --quick: a temporary one)")
    options.add_argument("--seeds", type=int, help="number of seeds (default 3, with --quick 1)")
    options.add_argument("--only-page", action="store_true", help="run nothing, judge what is finished")
    options.add_argument("--to", type=Path, help="folder of the page and its figures (default: that of --out)")
    given = options.parse_args()
    count = (1 if given.quick else 3) if given.seeds is None else given.seeds
    if not 1 <= count <= MAX_SEEDS:
        options.error(f"--seeds {given.seeds}: take 1 to {MAX_SEEDS}")
    sizes, seeds = QUICK if given.quick else Sizes(), list(range(1, count + 1))
    sys.setswitchinterval(0.0005)  # as `fd-run` does: hand-overs between threads must not hold up the event loop
    with tempfile.TemporaryDirectory(prefix="fd-mini-") as folder:
        out = given.out or (Path(folder) if given.quick else Path("runs/mini_paper"))
        for name, place in (("--out", out), ("--to", given.to or out)):
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                options.error(f"{name} {place}: {error.strerror}; name another folder")
        return guarded(out, sizes, seeds, only_page=given.only_page, to=given.to)


def guarded(out: Path, sizes: Sizes, seeds: list[int], *, only_page: bool, to: Path | None) -> int:
    """Run, with one line for what went wrong; return the exit code."""
    try:
        anyio.run(lambda: run(out, sizes, seeds, only_page=only_page, to=to), backend_options={"use_uvloop": True})
    except Exception as error:
        cause = first_cause(error)
        if not isinstance(cause, FdError):
            raise
        print(f"error: {cause}", file=sys.stderr)
        return cause.exit_code
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on in {out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
