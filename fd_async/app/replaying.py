"""`--replay RUN`: the recorded batches of a run through a fresh learner, compared with what the run says of itself."""

from __future__ import annotations

import hashlib
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from fd_async.app.opening import load_renderer
from fd_async.app.resuming import start_of
from fd_async.app.running import PROBE_TOKENS
from fd_async.config.load import dump_toml
from fd_async.config.schema import RunConfig
from fd_async.data.ledger import open_ledger
from fd_async.data.ledger.recorded import read_events
from fd_async.data.sources import read_train
from fd_async.data.statements import StatementOrder
from fd_async.learner.client import start_learner
from fd_async.pipeline.replay import (
    Comparison,
    NobodyAsked,
    NobodyServes,
    Recorded,
    WatchedLearner,
    compare,
    replay_batches,
)
from fd_async.pipeline.replay_marks import fingerprint
from fd_async.pipeline.state import Parts, RunState
from fd_async.telemetry.logs import setup_logging
from fd_async.telemetry.progress import Progress, is_live, make_progress
from fd_async.telemetry.sinks import MetricsFile, read_rows, replace_file


def replay(config: RunConfig, recorded_dir: Path, run_dir: Path) -> Comparison:
    """Repeat a run from its ledger.

    Args:
        config: the run's own, but for its name.
        recorded_dir: the run.
        run_dir: a new folder for the replay.

    Raises:
        FdError: the run cannot be replayed, or the learner failed.
    """
    sys.setswitchinterval(0.0005)
    return anyio.run(_replay, config, recorded_dir, run_dir, backend_options={"use_uvloop": True})


async def _replay(config: RunConfig, recorded_dir: Path, run_dir: Path) -> Comparison:
    recorded = await anyio.to_thread.run_sync(Recorded, recorded_dir)
    for folder in ("logs", "checkpoints"):
        (run_dir / folder).mkdir(parents=True, exist_ok=True)
    setup_logging(run_dir, config.telemetry.log_level, live=is_live(config.telemetry.console))
    text = dump_toml(config)
    replace_file(run_dir / "config.toml", text.encode())
    progress = make_progress(config.telemetry.console, run=run_dir.name)
    try:
        progress.message(f"replaying {recorded_dir.name}: {len(recorded.batches)} steps, without vLLM and verifier")
        if config.learner.gpus:
            progress.message("learner.gpus: sums on GPUs may differ in their last bits; the CPU build repeats exactly")
        if (recorded_dir / "config.before.toml").exists():
            progress.message(
                "the run's configuration was changed at a resume (config.before.toml): the replay takes the last one,"
                " so steps from before may differ"
            )
        for other in recorded.fingerprints():
            if other != fingerprint(config):
                progress.message(f"the run computed with {other}; this is {fingerprint(config)}")
        columns = await _train_again(config, recorded, run_dir, progress, hashlib.sha256(text.encode()).hexdigest())
    finally:
        progress.close()
    rows, events = read_rows(run_dir / "metrics.jsonl"), read_events(run_dir / "ledger.db")
    return await anyio.to_thread.run_sync(compare, recorded, rows, events, columns)


async def _train_again(
    config: RunConfig, recorded: Recorded, run_dir: Path, progress: Progress, config_hash: str
) -> set[str]:
    """Open what a replay needs, train the recorded batches, and return the learner's columns."""
    if config.model.init_from:
        folder = str(start_of(config, recorded.run_dir))
        config = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, init_from=folder))
    train = await anyio.to_thread.run_sync(read_train, config, abandon_on_cancel=True)
    renderer = await anyio.to_thread.run_sync(load_renderer, config)
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(open_ledger(run_dir / "ledger.db"))
        metrics = MetricsFile(run_dir / "metrics.jsonl")
        await metrics.open()
        stack.push_async_callback(metrics.aclose)
        learner = WatchedLearner(await stack.enter_async_context(start_learner(config, run_dir=run_dir)))
        parts = Parts(
            config=config,
            run_dir=run_dir,
            engine=NobodyServes(),  # type: ignore[arg-type]
            learner=learner,  # type: ignore[arg-type]
            renderer=renderer,
            verifier=NobodyAsked(),  # type: ignore[arg-type]
            provider=NobodyAsked(),  # type: ignore[arg-type]
            ledger=ledger,
            runner=None,  # type: ignore[arg-type]
            order=StatementOrder(train, config.run.seed),
            suites={},
            progress=progress,
        )
        probe_ids = (renderer.student_prompt(train[0]) * 4)[:PROBE_TOKENS]
        await replay_batches(
            parts, RunState(config, 0), recorded, metrics=metrics, config_hash=config_hash[:16], probe_ids=probe_ids
        )
    return learner.columns
