"""One experiment, from its folder to its exit code."""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.to_thread

from fd_async.app import resuming
from fd_async.app.opening import load_renderer, open_lasting
from fd_async.config.load import dump_toml, flat
from fd_async.config.schema import RunConfig
from fd_async.data.ledger.files import only_writer
from fd_async.data.sources import Selection, read_selection
from fd_async.errors import CheckpointError, ConfigError, FdError, first_cause
from fd_async.learner.checkpoints import find_checkpoint, list_folders, read_manifest
from fd_async.learner.client import Learner, check_learner, start_learner
from fd_async.pipeline.lives import Lives
from fd_async.pipeline.observing import open_observers
from fd_async.pipeline.signals import Stop
from fd_async.pipeline.stopping import beside
from fd_async.pipeline.watchdog import Watchdog
from fd_async.policy.engine import Engine
from fd_async.rendering import Renderer
from fd_async.telemetry.garbage import calm_collector
from fd_async.telemetry.logs import setup_logging
from fd_async.telemetry.progress import Progress, is_live, make_progress
from fd_async.telemetry.sinks import replace_file

PROBE_TOKENS = 96


def run(config: RunConfig, run_dir: Path, resume: int | bool | None = None) -> int:
    """Run an experiment to its end.

    Args:
        config: resolved configuration.
        run_dir: `runs/NAME`; new, or an earlier run's when `resume` is given.
        resume: a step, True for the newest checkpoint, None or False for a fresh start.

    Returns:
        Exit code: 0, 7 when an alarm ended the run, or 130 when a signal did.

    Raises:
        FdError: with the exit code in `exit_code`; may come inside an ExceptionGroup.
    """
    # Many short jobs run in threads; at Python's default of 5 ms each hand-over would hold up the event loop.
    sys.setswitchinterval(0.0005)
    return anyio.run(_run_watched, config, run_dir, resume, backend_options={"use_uvloop": True})


async def _run_watched(config: RunConfig, run_dir: Path, resume: int | bool | None) -> int:
    """Run under a watchdog that ends this process if its loop is blocked, or if an end takes too long."""
    watchdog = Watchdog(run_dir, config.run.stall_abort_s)
    with watchdog.watching():
        async with beside(watchdog.beat):
            stop = Stop(shutdown_s=config.run.shutdown_s, limit=watchdog)
            return await run_experiment(config, run_dir, resume, stop=stop)


async def run_experiment(
    config: RunConfig,
    run_dir: Path,
    resume: int | bool | None = None,
    engine: Engine | None = None,
    stop: Stop | None = None,
) -> int:
    """Do what `run` does inside a running event loop.

    Args:
        config: as for `run`.
        run_dir: as for `run`.
        resume: as for `run`.
        engine: an open engine of the same model to use instead of a new one; the first push gives it the run's weights.
        stop: takes the signals and bounds the end.
    """
    stop = stop or Stop(shutdown_s=config.run.shutdown_s)
    return await stop.run(lambda: _run(config, run_dir, resume, engine, stop))


async def _run(config: RunConfig, run_dir: Path, resume: int | bool | None, engine: Engine | None, stop: Stop) -> int:
    resumes = resume is not None and resume is not False
    checkpoint, notes = _checkpoint_to_resume(run_dir, resume)
    step = read_manifest(checkpoint).step if checkpoint else 0
    if step > config.run.max_steps:
        raise ConfigError(
            f"run.max_steps = {config.run.max_steps} lies before step {step} of {checkpoint}: raise it, "
            f"or go back with --resume STEP"
        )
    past = await anyio.to_thread.run_sync(resuming.read_past, run_dir, checkpoint) if resumes else resuming.Past()
    resuming.refuse_changed_keys(config, past)
    config, moved = await anyio.to_thread.run_sync(resuming.keep_start, config, run_dir, past, checkpoint)
    data = await anyio.to_thread.run_sync(read_selection, config, abandon_on_cancel=True)  # bad data leave no folder
    notes += [*data.lines, *moved]
    for folder in ("logs", "checkpoints"):
        (run_dir / folder).mkdir(parents=True, exist_ok=True)
    with only_writer(run_dir / "ledger.db"):  # or the configuration of a run that goes on would be written over
        pass
    renderer = await anyio.to_thread.run_sync(load_renderer, config)
    identity = await anyio.to_thread.run_sync(resuming.recognise, config, data.train, renderer)
    resuming.refuse_other_contents(config, past, identity)
    await anyio.to_thread.run_sync(check_learner, config, checkpoint)
    setup_logging(run_dir, config.telemetry.log_level, live=is_live(config.telemetry.console))
    text = dump_toml(config)
    changes = await anyio.to_thread.run_sync(_keep_config, run_dir / "config.toml", text)
    await anyio.to_thread.run_sync(resuming.write_identity, run_dir, past, identity)
    if changes and resumes:
        notes.append(f"changed since the run was started: {', '.join(changes)}")
    config_hash = hashlib.sha256(text.encode()).hexdigest()[:16]
    progress = make_progress(config.telemetry.console, run=run_dir.name)
    stop.say = progress.message
    try:
        for note in notes:
            progress.message(note)
        async with AsyncExitStack() as stack:
            lives = await _open_lives(
                stack, config, run_dir, data, renderer, checkpoint, config_hash, stop, progress, engine, resumes
            )
            stack.enter_context(calm_collector())
            try:
                code = await lives.run(checkpoint, step)
            except Exception as error:
                cause = first_cause(error)
                stop.limit.leave_by(config.run.shutdown_s, cause.exit_code if isinstance(cause, FdError) else 1)
                raise
            stop.limit.leave_by(config.run.shutdown_s, code)
    finally:
        progress.close()
    return code


async def _open_lives(
    stack: AsyncExitStack,
    config: RunConfig,
    run_dir: Path,
    data: Selection,
    renderer: Renderer,
    checkpoint: Path | None,
    config_hash: str,
    stop: Stop,
    progress: Progress,
    engine: Engine | None,
    resumes: bool,
) -> Lives:
    """Open what outlives a learner, and say how learners start."""
    environment = dict(os.environ)  # while vLLM starts, that of this process is not fit for a learner
    step = read_manifest(checkpoint).step if checkpoint else 0
    observers = await stack.enter_async_context(open_observers(config, run_dir, step=step))
    progress.message(f"starting {'vLLM and ' if engine is None else ''}the learner (minutes for a large model)")
    engine_ready, assemble = await open_lasting(
        stack, config, run_dir, renderer, data.train, data.suites, progress, observers, engine
    )
    shares_gpu = not config.learner.hostfile and bool(set(config.learner.gpus) & set(config.policy.gpus))

    @asynccontextmanager
    async def start(checkpoint: Path | None) -> AsyncIterator[Learner]:
        if shares_gpu:
            await engine_ready()  # vLLM measures the memory that is free; a learner that grows beside it misleads it
        async with start_learner(config, run_dir=run_dir, resume_from=checkpoint, environment=environment) as learner:
            yield learner

    return Lives(
        config,
        run_dir,
        start_learner=start,
        assemble=assemble,
        probe_ids=(renderer.student_prompt(data.train[0]) * 4)[:PROBE_TOKENS],
        config_hash=config_hash,
        stop=stop,
        progress=progress,
        observers=observers,
        resumes=resumes,
    )


def _checkpoint_to_resume(run_dir: Path, resume: int | bool | None) -> tuple[Path | None, list[str]]:
    """Return the checkpoint to continue from, and what to say of newer ones that are damaged.

    None starts at step 0 (with the ledger's attempts, when resuming).
    """
    if resume is None or resume is False:
        return None, []
    root = run_dir / "checkpoints"
    try:
        found = find_checkpoint(root, None if resume is True else int(resume))
    except CheckpointError:
        if resume is True and not list_folders(root):
            return None, []
        raise
    damaged = []
    for folder in list_folders(root):
        if resume is True and folder.name > found.name:
            try:
                read_manifest(folder)
            except CheckpointError as error:
                damaged.append(f"{error}; continuing from {found.name}, the newest complete one")
    return found, damaged


def _keep_config(path: Path, text: str) -> list[str]:
    """Write the resolved configuration; return the keys whose values differ from what the folder had before.

    The earlier one stays beside it, as `config.before.toml`, when they differ.
    """
    old = path.read_text(encoding="utf-8") if path.is_file() else text
    if old != text:
        replace_file(path.with_name("config.before.toml"), old.encode())
    replace_file(path, text.encode())
    with suppress(ValueError):  # a file that was changed by hand, of a run that had not begun
        before, now = (flat(tomllib.loads(toml)) for toml in (old, text))
        return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return []
