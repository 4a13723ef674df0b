"""The composition root: a configuration becomes open parts and a controller; the only file that knows every room.

Parts open in the order of how soon they can fail and close in reverse: ledger, verifier, feedback, learner, engine.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import shutil
import sys
import tempfile
import tomllib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import structlog

from fd_async.config.load import dump_toml
from fd_async.config.schema import FeedbackTable, RunConfig
from fd_async.data.ledger import open_ledger
from fd_async.data.statements import StatementOrder, limit_by_hash, read_statements
from fd_async.errors import CheckpointError, ConfigError, FeedbackRejected, PreflightError
from fd_async.evaluation import SuiteResult, evaluate_suite
from fd_async.feedback.provider import GenerateText, TextAnswer, open_provider
from fd_async.learner.checkpoints import (
    check_model_folder,
    find_checkpoint,
    list_folders,
    model_folder,
    read_manifest,
    resolve_init_from,
)
from fd_async.learner.client import start_learner
from fd_async.pipeline.checkpoints import forget_after
from fd_async.pipeline.controller import Controller
from fd_async.pipeline.state import Parts, RunState
from fd_async.policy.engine import Engine
from fd_async.policy.opening import open_policy
from fd_async.rendering import Renderer
from fd_async.rollouts import RolloutRunner
from fd_async.telemetry.logs import setup_logging
from fd_async.telemetry.progress import Progress, is_live, make_progress
from fd_async.telemetry.sinks import MetricsFile, replace_file
from fd_async.types import Rollout, Statement
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS
from fd_async.verifier.tools.search import open_search
from fd_async.verifier.verifier import open_verifier

log = structlog.get_logger(__name__)

PROBE_TOKENS = 96


def run(config: RunConfig, run_dir: Path, resume: int | bool | None = None) -> int:
    """Run an experiment to its end.

    Args:
        config: resolved configuration.
        run_dir: `runs/NAME`; new, or an earlier run's when `resume` is given.
        resume: a step, True for the newest checkpoint, None or False for a fresh start.

    Returns:
        Exit code: 0, 7 when an alarm ended the run, or 130 when interrupted with a checkpoint written.

    Raises:
        FdError: with the exit code in `exit_code`; may come inside an ExceptionGroup.
        KeyboardInterrupt: a second signal; nothing was written for it.
    """
    # Many short jobs run in threads; at Python's default of 5 ms each hand-over would hold up the event loop.
    sys.setswitchinterval(0.0005)
    try:
        return anyio.run(run_experiment, config, run_dir, resume, backend_options={"use_uvloop": True})
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from group
        raise


async def run_experiment(
    config: RunConfig, run_dir: Path, resume: int | bool | None = None, engine: Engine | None = None
) -> int:
    """Do what `run` does inside a running event loop.

    Args:
        config: as for `run`.
        run_dir: as for `run`.
        resume: as for `run`.
        engine: an open engine of the same model to use instead of a new one; the first push gives it the run's weights.
    """
    for folder in ("logs", "checkpoints"):
        (run_dir / folder).mkdir(parents=True, exist_ok=True)
    setup_logging(run_dir, config.telemetry.log_level, live=is_live(config.telemetry.console))
    checkpoint = _checkpoint_to_resume(run_dir, resume)
    step = read_manifest(checkpoint).step if checkpoint else 0
    if step > config.run.max_steps:
        raise ConfigError(
            f"run.max_steps = {config.run.max_steps} lies before step {step} of {checkpoint}: raise it, "
            f"or go back with --resume STEP"
        )
    text = dump_toml(config)
    changes = await anyio.to_thread.run_sync(_keep_config, run_dir / "config.toml", text)
    config_hash = hashlib.sha256(text.encode()).hexdigest()[:16]
    if config.model.init_from:
        config = _with_init_from(config)
    train = limit_by_hash(read_statements(Path(config.data.train)), config.data.max_train)
    suites = read_suites(config)
    progress = make_progress(config.telemetry.console, run=run_dir.name)
    try:
        if changes and resume is not None and resume is not False:
            progress.message(f"changed since the run was started: {', '.join(changes)}")
        async with AsyncExitStack() as stack:
            state = RunState(config, step)
            parts = await _open_parts(stack, config, run_dir, checkpoint, train, suites, progress, engine)
            # In this order: a kill in between leaves a checkpoint whose batches the ledger still has.
            await anyio.to_thread.run_sync(forget_after, run_dir / "checkpoints", step)
            await anyio.to_thread.run_sync(parts.ledger.rewind, step)
            metrics = MetricsFile(run_dir / "metrics.jsonl")
            await metrics.open(resume_step=step if resume is not None and resume is not False else None)
            stack.push_async_callback(metrics.aclose)
            progress.message(f"running {run_dir.name}: step {step} of {config.run.max_steps}")
            probe_ids = (parts.renderer.student_prompt(train[0]) * 4)[:PROBE_TOKENS]
            gc.collect()
            gc.freeze()  # torch, vLLM and the data stay for good; walking them again and again would block the loop
            controller = Controller(parts, state, metrics=metrics, config_hash=config_hash, probe_ids=probe_ids)
            code = await controller.run()
    finally:
        gc.unfreeze()  # a process that runs several experiments keeps nothing of the one before
        progress.close()
    return code


async def _open_parts(
    stack: AsyncExitStack,
    config: RunConfig,
    run_dir: Path,
    checkpoint: Path | None,
    train: Sequence[Statement],
    suites: dict[str, list[Statement]],
    progress: Progress,
    engine: Engine | None,
) -> Parts:
    """Open every part; the stack closes them."""
    renderer = await anyio.to_thread.run_sync(load_renderer, config)
    ledger = await stack.enter_async_context(open_ledger(run_dir / "ledger.db"))
    verifier = await stack.enter_async_context(
        open_verifier(config.verifier, output_chars=config.rollout.tool_output_chars)
    )
    provider = await stack.enter_async_context(
        open_provider(
            config.feedback if config.algorithm.type == "fd" else FeedbackTable(type="constant"),
            spent_usd=ledger.spent_usd(),
            generate_text=await _frozen_copy(stack, config, renderer, run_dir),
        )
    )
    progress.message("starting the learner")
    learner = await stack.enter_async_context(start_learner(config, run_dir=run_dir, resume_from=checkpoint))
    if engine is None:
        progress.message("starting vLLM (20 to 30 s on a CPU, minutes for a large model)")
        engine = await stack.enter_async_context(serve(config, renderer, run_dir / "logs"))
    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="fd-rollouts-"))
    runner = RolloutRunner(
        engine=engine,
        renderer=renderer,
        verifier=verifier,
        search=open_search(config.verifier),
        config=config.rollout,
        scratch=Path(scratch),
    )
    return Parts(
        config=config,
        run_dir=run_dir,
        engine=engine,
        learner=learner,
        renderer=renderer,
        verifier=verifier,
        provider=provider,
        ledger=ledger,
        runner=runner,
        order=StatementOrder(train, config.run.seed),
        suites=suites,
        progress=progress,
    )


@asynccontextmanager
async def serve(config: RunConfig, renderer: Renderer, log_dir: Path, *, frozen: bool = False) -> AsyncIterator[Engine]:
    """Open vLLM as `[policy]` says."""
    async with open_policy(config, stop_token_ids=renderer.stop_token_ids, log_dir=log_dir, frozen=frozen) as engine:
        yield engine


async def _frozen_copy(
    stack: AsyncExitStack, config: RunConfig, renderer: Renderer, run_dir: Path
) -> GenerateText | None:
    """Serve the starting model a second time, never pushed to, for `feedback.type = "self"`."""
    if config.algorithm.type != "fd" or config.feedback.type != "self":
        return None
    log_dir = run_dir / "logs" / "feedback"
    log_dir.mkdir(exist_ok=True)
    engine = await stack.enter_async_context(serve(config, renderer, log_dir, frozen=True))
    numbers = itertools.count()

    async def generate_text(system: str, user: str, max_tokens: int) -> TextAnswer:
        prompt_ids = await anyio.to_thread.run_sync(renderer.chat_prompt, system, user)
        room = config.policy.max_model_len - len(prompt_ids)
        if room <= 0:
            raise FeedbackRejected(
                f"the question has {len(prompt_ids)} tokens, policy.max_model_len is too short for it"
            )
        completion = await engine.generate(
            prompt_ids,
            max_tokens=min(max_tokens, room),
            temperature=1.0,
            top_p=1.0,
            request_id=f"feedback-{next(numbers)}",
        )
        return TextAnswer(
            text=renderer.answer_text(completion.token_ids),
            input_tokens=len(prompt_ids),
            output_tokens=len(completion.token_ids),
            model=config.model.path,
            stop_reason="end_turn" if completion.finish_reason == "stop" else "max_tokens",
        )

    return generate_text


def load_renderer(config: RunConfig) -> Renderer:
    return Renderer.load(
        config.model.path,
        tools=TOOL_SCHEMAS,
        tool_format=config.model.tool_format,
        thinking=config.model.thinking,
    )


def _checkpoint_to_resume(run_dir: Path, resume: int | bool | None) -> Path | None:
    """Return the checkpoint to continue from; None starts at step 0 (with the ledger's attempts, when resuming)."""
    if resume is None or resume is False:
        return None
    try:
        return find_checkpoint(run_dir / "checkpoints", None if resume is True else int(resume))
    except CheckpointError:
        if resume is True and not list_folders(run_dir / "checkpoints"):
            return None
        raise


def _keep_config(path: Path, text: str) -> list[str]:
    """Write the resolved configuration; return the keys whose values differ from what the folder had before.

    The earlier one stays beside it, as `config.before.toml`, when they differ.
    """
    old = path.read_text(encoding="utf-8") if path.is_file() else text
    if old != text:
        replace_file(path.with_name("config.before.toml"), old.encode())
    replace_file(path, text.encode())
    before, now = (
        {(table, key): value for table, keys in tomllib.loads(toml).items() for key, value in keys.items()}
        for toml in (old, text)
    )
    return sorted(".".join(key) for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def _with_init_from(config: RunConfig) -> RunConfig:
    """Replace `model.init_from` by the checkpoint folder it names."""
    folder = resolve_init_from(config.model.init_from)
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, init_from=str(folder)))


def read_suites(config: RunConfig) -> dict[str, list[Statement]]:
    """Read the evaluation suites; a file's stem names its suite."""
    paths = [config.data.eval] if isinstance(config.data.eval, str) else config.data.eval
    suites: dict[str, list[Statement]] = {}
    for path in map(Path, paths):
        if path.stem in suites:
            raise PreflightError(f"data.eval: two files are called {path.stem}; the stem names the suite")
        suites[path.stem] = read_statements(path)
    return suites


def evaluate(config: RunConfig, source: Path | None, *, log_dir: Path) -> list[SuiteResult]:
    """Evaluate a model on every suite of the configuration, without a learner.

    Args:
        config: `data.eval`, `eval`, `policy`, `rollout` and `verifier` are used.
        source: a run folder (newest checkpoint), a checkpoint folder or an export; None evaluates `model.path`.
        log_dir: for the logs of engine and verifier.
    """
    return anyio.run(_evaluate, config, source, log_dir, backend_options={"use_uvloop": True})


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
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="fd-rollouts-"))
        runner = RolloutRunner(
            engine=engine,
            renderer=renderer,
            verifier=verifier,
            search=open_search(config.verifier),
            config=config.rollout,
            scratch=Path(scratch),
        )
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
        CheckpointError: no such checkpoint, `to` is not empty, or the result does not load.
    """
    checkpoint = find_checkpoint(run_dir / "checkpoints", step)
    if to.exists() and any(to.iterdir()):
        raise CheckpointError(f"{to}: is not empty; name a new folder with --to")
    shutil.copytree(model_folder(checkpoint), to, dirs_exist_ok=True)
    check_model_folder(to)
    return to
