"""What does the tiny model say when it is asked for feedback itself? `feedback.type = "self"` on a few attempts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from bench.experiments import configure
from bench.mini.conditions import FD, Sizes
from fd_async.app.opening import make_runner
from fd_async.data.statements import read_statements
from fd_async.errors import FeedbackError, FeedbackRejected
from fd_async.feedback.answers import clean, violations
from fd_async.feedback.provider import open_provider
from fd_async.feedback.remote import TextAnswer
from fd_async.policy.engine import Engine
from fd_async.rendering import Renderer
from fd_async.telemetry.sinks import replace_file
from fd_async.types import Rollout, Ticket
from fd_async.verifier.verifier import open_verifier

MAX_ANSWER_TOKENS = 128
SHOWN_CHARS = 400
PROMPT = 2
"""The shortest of the paper's prompts that sets a form; (4) and an attempt exceed the model's 1,024 positions."""
_SETS: dict[str, Any] = {
    "feedback.type": "self",
    "feedback.prompt": PROMPT,
    "feedback.max_output_tokens": MAX_ANSWER_TOKENS,
    "feedback.concurrency": 8,
    "policy.max_model_len": 1024,
}


async def ask_the_model(out: Path, sizes: Sizes, engine: Engine, renderer: Renderer) -> None:
    """Write `self.json`, unless it is there.

    Args:
        out: folder of the benchmark.
        sizes: how many attempts.
        engine: serves the starting model, nothing was pushed yet: what a frozen copy would serve.
        renderer: of the same model.
    """
    path = out / "self.json"
    if path.is_file():
        return
    config = configure(FD, _SETS)
    statements = read_statements(Path(config.data.train))[: sizes.self_attempts]
    numbers = itertools.count()
    answers: list[str] = []

    async def generate_text(system: str, user: str, max_tokens: int) -> TextAnswer:
        prompt_ids = await anyio.to_thread.run_sync(renderer.chat_prompt, system, user)
        room = config.policy.max_model_len - len(prompt_ids)
        if room <= 0:
            raise FeedbackRejected(f"the question has {len(prompt_ids)} tokens")
        name, limit = f"self-{next(numbers)}", min(max_tokens, room)
        completion = await engine.generate(prompt_ids, max_tokens=limit, temperature=1.0, top_p=1.0, request_id=name)
        text = renderer.answer_text(completion.token_ids)
        answers.append(text)
        stop = "end_turn" if completion.finish_reason == "stop" else "max_tokens"
        return TextAnswer(
            text=text, input_tokens=len(prompt_ids), output_tokens=len(completion.token_ids), stop_reason=stop
        )

    refused: dict[str, int] = {}
    async with (
        open_verifier(config.verifier, output_chars=config.rollout.tool_output_chars) as verifier,
        open_provider(config.feedback, generate_text=generate_text) as provider,
    ):
        runner = make_runner(config, engine, renderer, verifier)

        async def ask(index: int) -> None:
            ticket = Ticket(ordinal=index, sample=0, purpose="train", suite="", statement=statements[index])
            rollout: Rollout = await runner.run(ticket, temperature=1.0)
            try:
                await provider.feedback(rollout)
            except FeedbackError as error:
                refused[error.cause] = refused.get(error.cause, 0) + 1

        async with anyio.create_task_group() as tasks:
            for index in range(len(statements)):
                tasks.start_soon(ask, index)
    result = {
        "prompt": PROMPT,
        "attempts": len(statements),
        "usable": len(statements) - sum(refused.values()),
        "refused": refused,
        "answers": len(answers),
        "answers_like_tool_calls": sum("tool_call" in answer or "lean_write_file" in answer for answer in answers),
        "answers_that_pass_the_check": sum(bool(clean(a)) and not violations(clean(a), PROMPT) for a in answers),
        "examples": [answer[:SHOWN_CHARS] for answer in answers[:3]],
    }
    replace_file(path, json.dumps(result, ensure_ascii=False, indent=1).encode())
