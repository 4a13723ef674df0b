"""What a configuration will do, in two dozen lines: derived sizes and costs."""

from __future__ import annotations

from pathlib import Path

from fd_async.config.places import evaluated as suites_of
from fd_async.config.schema import RunConfig


def plan(config: RunConfig, run_dir: Path) -> list[str]:
    """Derive the figures that no key states."""
    from fd_async.preflight.costs import describe  # what the machine is asked about is not needed for --help

    run, model, policy, rollout = config.run, config.model, config.policy, config.rollout
    learner, algorithm, staleness = config.learner, config.algorithm, max_staleness(config)
    attempts = learner.prompts_per_step * rollout.samples_per_prompt
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    suites = suites_of(config.data)
    start = f", from {model.init_from}" if model.init_from else ""
    devices = f"GPUs {policy.gpus} vLLM, {learner.gpus} learner" if policy.gpus else "CPU"
    evaluated = f"{', '.join(suites)} {_every(config.eval.every_steps)}at start and end" if suites else "none"
    lines = [
        f"run         {run_dir}, {run.mode}, {run.max_steps} steps, seed {run.seed}",
        f"model       {model.path} in {model.dtype}{start}",
        f"devices     {devices}, {learner.ranks} learner rank(s)",
        f"data        train {config.data.train or config.data.source}; eval {evaluated}",
        f"algorithm   {_algorithm(config)}",
        f"step        {learner.prompts_per_step} prompts x {rollout.samples_per_prompt} = {attempts} attempts,"
        f" at most {attempts * longest:,} tokens",
        f"admission   staleness <= {staleness}: at most {(staleness + 1) * learner.prompts_per_step} prompts"
        f" outstanding, {rollout.concurrency} attempts at once",
        f"verifier    {config.verifier.backend}, {config.verifier.workers} workers",
        f"feedback    {describe(config)}" if algorithm.type == "fd" else "feedback    none (grpo)",
        f"checkpoints {_every(config.checkpoint.every_steps)}at the end, the last {config.checkpoint.keep_last} kept",
    ]
    from fd_async.preflight.learner import memory_table  # event loop and link are not needed for --help

    lines += [f"{'memory' if not index else '':<12}{line}" for index, line in enumerate(memory_table(config))]
    if run.mode == "sync" and config.admission.max_staleness > 0:
        lines.append("note        run.mode = sync trains on fresh attempts only: admission.max_staleness is not used")
    return lines


def _every(steps: int) -> str:
    return f"every {steps} steps and " if steps else ""


def max_staleness(config: RunConfig) -> int:
    """Weight versions between sampling and training; none in `sync` mode."""
    return 0 if config.run.mode == "sync" else config.admission.max_staleness


def _algorithm(config: RunConfig) -> str:
    table, lr = config.algorithm, f"lr {config.learner.lr:g} after {config.learner.warmup_steps} warm-up steps"
    if table.type == "grpo":
        return f"grpo, KL {table.kl_weight:g}, clip {table.clip_low:g}/{table.clip_high:g}, {lr}"
    anchor = f", anchor {table.anchor_weight:g} every {table.anchor_every} step(s)" if table.anchor_weight else ""
    return f"fd, top {table.top_k}, EMA {table.ema_retention:g} every {table.ema_every} steps{anchor}, {lr}"
