"""What is done with a model that is there: evaluate it on every suite, copy it for other tools."""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from fd_async.app.opening import load_renderer, make_runner, read_suites, serve
from fd_async.config.schema import RunConfig
from fd_async.errors import CheckpointError, PreflightError
from fd_async.evaluation import SuiteResult, evaluate_suite
from fd_async.learner.checkpoints import check_model_folder, find_checkpoint, model_folder, resolve_init_from
from fd_async.pipeline.signals import Stop
from fd_async.types import Rollout
from fd_async.verifier.verifier import open_verifier


def evaluate(config: RunConfig, source: Path | None, *, log_dir: Path) -> list[SuiteResult]:
    """Evaluate a model on every suite of the configuration, without a learner.

    Args:
        config: `data.eval`, `eval`, `policy`, `rollout` and `verifier` are used.
        source: a run folder (newest checkpoint), a checkpoint folder or an export; None evaluates `model.path`.
        log_dir: for the logs of engine and verifier.

    Raises:
        KeyboardInterrupt: a signal ended it.
    """
    results = anyio.run(_evaluate_until_signal, config, source, log_dir, backend_options={"use_uvloop": True})
    if results is None:
        raise KeyboardInterrupt
    return results


async def _evaluate_until_signal(config: RunConfig, source: Path | None, log_dir: Path) -> list[SuiteResult] | None:
    results: list[SuiteResult] = []

    async def work() -> int:
        results.extend(await _evaluate(config, source, log_dir))
        return 0

    return None if await Stop().run(work) else results


async def _evaluate(config: RunConfig, source: Path | None, log_dir: Path) -> list[SuiteResult]:
    await anyio.to_thread.run_sync(lambda: log_dir.mkdir(parents=True, exist_ok=True))
    renderer = await anyio.to_thread.run_sync(load_renderer, config)
    suites = read_suites(config)
    if not suites:
        raise PreflightError("data.eval is empty: name a JSONL file of statements, e.g. --set data.eval=FILE")
    if source is not None:
        path = source if (source / "config.json").is_file() else model_folder(resolve_init_from(str(source)))
        config = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, path=str(path)))

    async def ignore(_: Rollout) -> None:
        return None

    results = []
    async with AsyncExitStack() as stack:
        verifier = await stack.enter_async_context(
            open_verifier(config.verifier, output_chars=config.rollout.tool_output_chars)
        )
        engine = await stack.enter_async_context(serve(config, renderer, log_dir))
        runner = make_runner(config, engine, renderer, verifier)
        for suite, statements in suites.items():
            results.append(
                await evaluate_suite(
                    suite,
                    statements,
                    runner=runner,
                    k=config.eval.k,
                    samples=config.eval.samples,
                    temperature=config.eval.temperature,
                    concurrency=config.rollout.concurrency,
                    record=ignore,
                )
            )
    return results


def export(run_dir: Path, step: int | None, to: Path) -> Path:
    """Copy the weights of a checkpoint as a Hugging Face folder and load it once as proof.

    Raises:
        CheckpointError: no such checkpoint, `to` is no empty folder or cannot be written, or the result does not load.
    """
    checkpoint = find_checkpoint(run_dir / "checkpoints", step)
    try:
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise CheckpointError(f"{to}: is no empty folder; name a new one with --to")
        shutil.copytree(model_folder(checkpoint), to, dirs_exist_ok=True)
    except OSError as error:
        # `copytree` gathers what failed: (from, to, why) of each file.
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        raise CheckpointError(f"{to}: cannot write the export: {reason}; name another folder with --to") from error
    check_model_folder(to)
    return to
