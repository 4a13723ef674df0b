"""What outlives every learner of a run: ledger, verifier, feedback provider, engine.

Parts open in the order of how soon they can fail and close in reverse. The engine starts in a task of its own, so that
it gets ready beside the first learner and is there for the next one.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from fd_async.config.schema import FeedbackTable, RunConfig
from fd_async.data.ledger import Ledger, open_ledger
from fd_async.data.statements import StatementOrder
from fd_async.errors import FeedbackRejected
from fd_async.feedback.provider import GenerateText, OnEvent, Provider, TextAnswer, open_provider
from fd_async.learner.checkpoints import list_checkpoints
from fd_async.learner.client import Learner
from fd_async.pipeline.state import Parts
from fd_async.policy.engine import Engine
from fd_async.policy.opening import open_policy
from fd_async.rendering import Renderer
from fd_async.rollouts import RolloutRunner
from fd_async.telemetry.observers import Observers
from fd_async.telemetry.progress import Progress
from fd_async.telemetry.redact import redact
from fd_async.types import Statement
from fd_async.verifier.tools.schemas import TOOL_SCHEMAS
from fd_async.verifier.tools.search import open_search
from fd_async.verifier.verifier import Verifier, open_verifier

Value = TypeVar("Value")


async def open_lasting(
    stack: AsyncExitStack,
    config: RunConfig,
    run_dir: Path,
    renderer: Renderer,
    train: Sequence[Statement],
    suites: dict[str, list[Statement]],
    progress: Progress,
    observers: Observers,
    engine: Engine | None,
) -> tuple[Callable[[], Awaitable[Engine]], Callable[[Learner], Awaitable[Parts]]]:
    """Open all parts but the learner; the stack closes them.

    Returns:
        What waits for the engine, which is still starting, and what makes the parts of a learner's life.
    """

    def on_event(kind: str, text: str) -> None:
        text = redact(text)  # a provider's own words may hold the key that it was sent
        progress.message(f"{kind.replace('_', ' ')}: {text}")
        observers.event(kind, text)

    ledger = await stack.enter_async_context(
        open_ledger(
            run_dir / "ledger.db",
            max_gib=config.telemetry.ledger_max_gib,
            oldest_checkpoint=lambda: min(list_checkpoints(run_dir / "checkpoints"), default=0),
        )
    )
    verifier = await stack.enter_async_context(
        open_verifier(config.verifier, output_chars=config.rollout.tool_output_chars)
    )
    generate_text = await _frozen_copy(stack, config, renderer, run_dir)
    provider = await stack.enter_async_context(open_feedback(config, ledger, generate_text, on_event))
    serving = serve(config, renderer, run_dir / "logs", on_event=on_event) if engine is None else nullcontext(engine)
    engine_ready = await stack.enter_async_context(in_background(serving))
    order = StatementOrder(train, config.run.seed)
    runners: list[RolloutRunner] = []

    async def assemble(learner: Learner) -> Parts:
        engine = await engine_ready()
        if not runners:
            runners.append(make_runner(config, engine, renderer, verifier))
        return Parts(
            config=config,
            run_dir=run_dir,
            engine=engine,
            learner=learner,
            renderer=renderer,
            verifier=verifier,
            provider=provider,
            ledger=ledger,
            runner=runners[0],
            order=order,
            suites=suites,
            progress=progress,
            observers=observers,
        )

    return engine_ready, assemble


def open_feedback(
    config: RunConfig, ledger: Ledger, generate_text: GenerateText | None, on_event: OnEvent
) -> AbstractAsyncContextManager[Provider]:
    """Open the provider of feedback; what earlier processes of the run paid counts against each table's `max_usd`."""
    fallback_spent_usd = ledger.fallback_spent_usd() if config.feedback.outage == "fallback" else 0.0
    return open_provider(
        config.feedback if config.algorithm.type == "fd" else FeedbackTable(type="constant"),
        fallback=config.fallback,
        spent_usd=ledger.spent_usd() - fallback_spent_usd,
        fallback_spent_usd=fallback_spent_usd,
        on_event=on_event,
        generate_text=generate_text,
    )


@asynccontextmanager
async def in_background(
    context: AbstractAsyncContextManager[Value],
) -> AsyncIterator[Callable[[], Awaitable[Value]]]:
    """Enter a context in a task of its own and leave it after the block; yield what waits for its value."""
    entered: list[Value] = []
    ready = anyio.Event()

    async def hold() -> None:
        async with context as value:
            entered.append(value)
            ready.set()
            await anyio.sleep_forever()

    async def get() -> Value:
        await ready.wait()
        return entered[0]

    async with anyio.create_task_group() as group:
        group.start_soon(hold)
        yield get
        group.cancel_scope.cancel()


@asynccontextmanager
async def serve(
    config: RunConfig,
    renderer: Renderer,
    log_dir: Path,
    *,
    frozen: bool = False,
    on_event: Callable[[str, str], None] = lambda kind, text: None,
) -> AsyncIterator[Engine]:
    """Open the engine as `[policy]` says; `on_event` hears (kind, one line) of what happens to it."""
    stop_token_ids = renderer.stop_token_ids
    async with open_policy(
        config, stop_token_ids=stop_token_ids, log_dir=log_dir, frozen=frozen, on_event=on_event
    ) as engine:
        yield engine


async def _frozen_copy(
    stack: AsyncExitStack, config: RunConfig, renderer: Renderer, run_dir: Path
) -> GenerateText | None:
    """Serve the starting model a second time, never pushed to, where `[feedback]` or `[fallback]` is of type `self`."""
    tables = [config.feedback, *([config.fallback] if config.feedback.outage == "fallback" else [])]
    if config.algorithm.type != "fd" or all(table.type != "self" for table in tables):
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
                f"the question has {len(prompt_ids)} tokens: raise policy.max_model_len, or lower "
                "feedback.max_attempt_chars"
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


def make_runner(config: RunConfig, engine: Engine, renderer: Renderer, verifier: Verifier) -> RolloutRunner:
    """Make what runs attempts."""
    return RolloutRunner(
        engine=engine,
        renderer=renderer,
        verifier=verifier,
        search=open_search(config.verifier),
        config=config.rollout,
    )


def load_renderer(config: RunConfig) -> Renderer:
    """Load tokenizer and chat template of the run's model."""
    return Renderer.load(
        config.model.path,
        tools=TOOL_SCHEMAS if config.rollout.tools else [],
        tool_format=config.model.tool_format,
        thinking=config.model.thinking,
    )
