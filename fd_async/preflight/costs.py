"""What a step costs: dollars of feedback from the configuration's prices, and GPU-hours where somebody measured them.

The dollars are an upper estimate: every attempt is taken to be as long as it may be, every answer too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fd_async.config.schema import FeedbackTable, RunConfig
from fd_async.preflight.findings import Finding

CHARS_PER_TOKEN = 3.5
"""For the estimate of feedback costs only; English with Lean."""
INSTRUCTION_TOKENS = 1500
"""Tutor prompt and statement, for the estimate only."""
_PAPER_STEP_S = {("fd", 1): 300.0, ("grpo", 5): 550.0}
"""Seconds of a step in the paper: 8 H200, 128 prompts, responses of up to 8,192 tokens, models of 8 and 9 billion."""
_PAPER_GPUS = 8


def attempts_per_step(config: RunConfig) -> int:
    """Return the attempts that a step trains on, each with one call of the provider."""
    return config.learner.prompts_per_step * config.rollout.samples_per_prompt


def usd_per_step(config: RunConfig) -> float | None:
    """Return what feedback for one step costs at most, about; None where the prices are not known, 0 without a bill."""
    table = config.feedback
    if config.algorithm.type != "fd" or not _is_bought(table):
        return 0.0
    prices = (table.usd_per_million_input_tokens, table.usd_per_million_output_tokens)
    if not any(prices):
        return None
    tokens_in = longest_question(table, config.rollout.max_response_tokens)
    return attempts_per_step(config) * (tokens_in * prices[0] + table.max_output_tokens * prices[1]) / 1e6


def longest_question(table: FeedbackTable, response_tokens: int) -> int:
    """Return the tokens of the longest question, about: the instruction, and an attempt as long as it may be."""
    return INSTRUCTION_TOKENS + int(min(table.max_attempt_chars / CHARS_PER_TOKEN, response_tokens))


def _is_bought(table: FeedbackTable) -> bool:
    return table.type in ("anthropic", "openai")


def describe(config: RunConfig) -> str:
    """Say in one line who gives feedback and what it costs."""
    table = config.feedback
    if not _is_bought(table):
        return f"{table.type}, no cost"
    name = f"{table.type} {table.model}, {attempts_per_step(config)} calls per step"
    limit = f", ends at ${table.max_usd:,.2f}" if table.max_usd else ", no limit (feedback.max_usd)"
    usd = usd_per_step(config)
    if usd is None:
        return f"{name}, price unknown (feedback.usd_per_million_*_tokens){limit}"
    return f"{name}, at most about ${usd:,.2f} per step, ${usd * config.run.max_steps:,.0f} in all{limit}"


def _feedback(config: RunConfig) -> Iterator[Finding]:
    table, usd = config.feedback, usd_per_step(config)
    if config.algorithm.type != "fd":
        return
    if usd is None and (table.type == "anthropic" or not table.base_url):
        advice = "set feedback.usd_per_million_input_tokens and _output_tokens, and feedback.max_usd to end in time"
        yield Finding("note", "cost", describe(config), advice)
    elif usd and not table.max_usd:
        yield Finding("note", "cost", describe(config), "set feedback.max_usd, the spend that ends the run")
    elif usd and usd * config.run.max_steps > table.max_usd:
        found = f"{describe(config)}: step {int(table.max_usd / usd)} of {config.run.max_steps} if every one is as dear"
        advice = "raise feedback.max_usd, or lower run.max_steps or learner.prompts_per_step; --resume goes on"
        yield Finding("note", "cost", found, advice)
    else:
        yield Finding("ok", "cost", describe(config))
    if _is_bought(table) and table.requests_per_minute:
        minutes = attempts_per_step(config) / table.requests_per_minute
        found = (
            f"a step takes {minutes:.1f} minutes or more: feedback.requests_per_minute = {table.requests_per_minute}"
        )
        yield Finding("ok", "feedback pace", found)


def _gpu_hours(config: RunConfig) -> Iterator[Finding]:
    """Say what the paper's settings took in the paper; nothing for other settings, which nobody has measured."""
    kind = (config.algorithm.type, config.rollout.samples_per_prompt)
    gpus = len({*config.policy.gpus, *config.learner.gpus})
    is_papers = (
        kind in _PAPER_STEP_S
        and gpus == _PAPER_GPUS
        and config.learner.prompts_per_step == 128
        and config.rollout.max_response_tokens == 8192
        and config.policy.engine == "local"
    )
    if is_papers:
        seconds, steps = _PAPER_STEP_S[kind], config.run.max_steps
        hours = seconds * steps / 3600
        found = f"the paper's step took about {seconds:.0f} s on 8 H200: {steps} steps are {hours:.0f} h"
        yield Finding("ok", "GPU-hours", f"{found}, {hours * gpus:.0f} GPU-hours; not measured with this program")


PROBES: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (_feedback, _gpu_hours)
"""In the order of the report."""
