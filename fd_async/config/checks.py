"""Rules between keys. Each returns every combination that cannot work, with what to change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from fd_async.config.places import COLUMNS, evaluated, parse_place, suite_name
from fd_async.config.schema import FeedbackTable, RunConfig
from fd_async.errors import ConfigError


class Problem(Struct, frozen=True):
    """One thing that cannot work."""

    config: RunConfig
    keys: tuple[str, ...]
    """The keys it is about, as `table.key`; the message shows the first one that was set."""
    text: str


def check(config: RunConfig) -> list[Problem]:
    """Apply every rule."""
    return [Problem(config, keys, text) for rule in _RULES for keys, text in rule(config)]


Found = Iterator[tuple[tuple[str, ...], str]]


def _names(config: RunConfig) -> Found:
    name = config.run.name
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
        yield ("run.name",), "must be a plain folder name: letters, digits, `_`, `.`, `+`, `-`"
    if not config.run.dir:
        yield ("run.dir",), "must name a folder"


def _lengths(config: RunConfig) -> Found:
    rollout, policy, learner = config.rollout, config.policy, config.learner
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    if longest > policy.max_model_len:
        yield (
            ("rollout.max_response_tokens", "rollout.max_prompt_tokens", "policy.max_model_len"),
            f"rollout.max_prompt_tokens + rollout.max_response_tokens = {longest} do not fit"
            f" policy.max_model_len = {policy.max_model_len}",
        )
    sample = longest + (config.feedback.max_feedback_tokens if config.algorithm.type == "fd" else 0)
    if sample > learner.micro_batch_tokens:
        yield (
            ("learner.micro_batch_tokens", "rollout.max_response_tokens", "rollout.max_prompt_tokens"),
            f"one attempt may take {sample} tokens (prompt, response and, for fd, feedback):"
            f" learner.micro_batch_tokens = {learner.micro_batch_tokens} must hold it",
        )
    if 0 < policy.max_num_batched_tokens < policy.max_num_seqs:
        yield (
            ("policy.max_num_batched_tokens", "policy.max_num_seqs"),
            f"must be 0 or at least policy.max_num_seqs = {policy.max_num_seqs}",
        )


def _algorithm(config: RunConfig) -> Found:
    algorithm, samples = config.algorithm, config.rollout.samples_per_prompt
    if algorithm.type == "grpo" and samples < 2:
        yield (
            ("rollout.samples_per_prompt", "algorithm.type"),
            "grpo compares the attempts of one statement: at least 2 are needed (the paper takes 5)",
        )
    if algorithm.type == "grpo" and 0 < algorithm.importance_cap <= 1 + algorithm.clip_high:
        yield (
            ("algorithm.importance_cap", "algorithm.clip_high"),
            f"must be 0 or above 1 + algorithm.clip_high = {1 + algorithm.clip_high:g}: under it the clip takes away"
            " the gradient that the cap is to bound",
        )
    if algorithm.type == "grpo" and algorithm.causality_every:
        yield (
            ("algorithm.causality_every", "algorithm.type"),
            'asks what the teacher makes of feedback, and only algorithm.type = "fd" has a teacher: set it to 0',
        )
    if algorithm.type == "fd" and algorithm.top_k > 4096:
        yield ("algorithm.top_k",), "at most 4096 (the paper takes 25); the teacher keeps this many per token"


def _sources(config: RunConfig) -> dict[str, FeedbackTable]:
    """Name the tables of feedback that are read."""
    tables: dict[str, FeedbackTable] = {"feedback": config.feedback}
    return tables | ({"fallback": config.fallback} if config.feedback.outage == "fallback" else {})


def _feedback(config: RunConfig) -> Found:
    for name, table in _sources(config).items():
        if config.algorithm.type == "fd" and table.type in ("anthropic", "openai") and not table.model:
            example = f", e.g. --config configs/feedback/{table.type}.toml" if name == "feedback" else ""
            yield (f"{name}.model", f"{name}.type"), f'{name}.type = "{table.type}" needs a model{example}'
        if table.text and table.type != "constant":
            yield (f"{name}.text", f"{name}.type"), f'is read only where {name}.type = "constant"'
        prices = (table.usd_per_million_input_tokens, table.usd_per_million_output_tokens)
        if table.type in ("anthropic", "openai") and table.max_usd and not all(prices):
            yield (
                (f"{name}.max_usd",),
                f"cannot be watched without both prices: set {name}.usd_per_million_input_tokens"
                f" and {name}.usd_per_million_output_tokens",
            )


def _addresses(config: RunConfig) -> Found:
    addresses = {f"{name}.base_url": table.base_url for name, table in _sources(config).items()}
    if config.verifier.backend == "kimina":
        addresses["verifier.url"] = config.verifier.url
    for key, url in addresses.items():
        if url and not re.match(r"https?://[^/\s]+", url):
            yield (key,), "must start with http:// or https:// and a host"


def _sandbox(config: RunConfig) -> Found:
    table = config.verifier
    if any(not Path(folder).is_absolute() for folder in table.sandbox_read):
        yield ("verifier.sandbox_read",), "must list absolute paths"


def _secrets(config: RunConfig) -> Found:
    names = {
        "policy.servers_key_env": config.policy.servers_key_env,
        "feedback.api_key_env": config.feedback.api_key_env,
        "fallback.api_key_env": config.fallback.api_key_env,
        "verifier.api_key_env": config.verifier.api_key_env,
    }
    for key, name in names.items():
        if name and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield (key,), "takes the NAME of an environment variable, never the key itself"


def _learner(config: RunConfig) -> Found:
    learner = config.learner
    attempts = learner.prompts_per_step * config.rollout.samples_per_prompt
    if attempts < learner.ranks:
        yield ("learner.ranks", "learner.prompts_per_step"), f"more ranks than the {attempts} attempts of a step"
    is_split = learner.zero_stage > 0 or config.model.dtype == "bfloat16"
    if learner.offload != "none" and not is_split:
        yield ("learner.offload", "learner.zero_stage"), "needs learner.zero_stage 1 or higher"
    if learner.offload == "optimizer_and_parameters" and learner.zero_stage < 3:
        yield ("learner.offload", "learner.zero_stage"), '"optimizer_and_parameters" needs learner.zero_stage = 3'
    if not all(0 <= beta < 1 for beta in learner.betas):
        yield ("learner.betas",), "expected two numbers >= 0 and < 1"


def _gpus(config: RunConfig) -> Found:
    policy, learner = config.policy, config.learner
    engines = policy.tensor_parallel_size * policy.data_parallel_size
    for key, gpus, needed, source in (
        ("policy.gpus", policy.gpus, engines, "policy.tensor_parallel_size x policy.data_parallel_size"),
        ("learner.gpus", learner.gpus, learner.ranks, "learner.ranks"),
    ):
        if gpus and len(gpus) != needed:
            yield (key,), f"{len(gpus)} GPUs for {source} = {needed}; give one index each"
        is_one_machine = key == "policy.gpus" or not learner.hostfile
        if (is_one_machine and len(set(gpus)) < len(gpus)) or any(gpu < 0 for gpu in gpus):
            yield (key,), "must be different indices >= 0"
    if policy.engine == "local" and bool(policy.gpus) != bool(learner.gpus):
        yield ("policy.gpus", "learner.gpus"), "name GPUs for both, policy.gpus and learner.gpus, or for neither (CPU)"
    if (policy.push == "file") != bool(policy.push_dir):
        yield (
            ("policy.push_dir", "policy.push"),
            'policy.push = "file" needs it, a folder that learner and engine both see; nothing else reads it',
        )
    if policy.push == "nccl" and policy.engine == "local" and not policy.gpus:
        yield ("policy.push",), '"nccl" needs policy.gpus and learner.gpus; on CPU take "shm"'
    if policy.push == "nccl" and not learner.hostfile and set(policy.gpus) & set(learner.gpus):
        yield ("policy.push", "policy.gpus", "learner.gpus"), '"nccl" cannot join two processes on one GPU; take "shm"'


def _evaluation(config: RunConfig) -> Found:
    table = config.eval
    if not table.k or min(table.k) < 1:
        yield ("eval.k",), "must list at least one k, each >= 1"
    elif max(table.k) > table.samples:
        yield ("eval.samples", "eval.k"), f"pass@{max(table.k)} (eval.k) needs at least {max(table.k)} attempts"
    if table.temperature == 0 and table.samples > 1:
        yield ("eval.temperature", "eval.samples"), "at temperature 0 all eval.samples attempts are the same; take 1"


def columns_problem(columns: Iterable[str]) -> str:
    """Say what is wrong with `data.columns`, or nothing."""
    for column in columns:
        ours, _, theirs = column.partition("=")
        if ours not in COLUMNS or not theirs:
            return f"{column!r} is not OURS=THEIRS with OURS one of {', '.join(COLUMNS)}"
    return ""


def _data(config: RunConfig) -> Found:
    data = config.data
    if not data.source and not data.train:
        yield (
            ("data.train", "data.source"),
            "name the training statements: set data.train, or data.source for one source that is split",
        )
    problem = columns_problem(data.columns)
    if problem:
        yield ("data.columns",), problem
    listed = [data.eval] if isinstance(data.eval, str) else data.eval
    for key, text in (("data.source", data.source), ("data.train", data.train), *(("data.eval", x) for x in listed)):
        if text or key == "data.eval":
            try:
                place = parse_place(text)
            except ConfigError as error:
                yield (key,), str(error)
            else:
                if key == "data.source" and place.part:
                    yield (key,), f"takes a whole source: #{place.part} belongs into data.train or data.eval"
    names = [suite_name(suite) for suite in evaluated(data)]
    if len(set(names)) < len(names):
        yield ("data.eval", "data.source"), "two sources have the same stem, which names the suite"


def _engine(config: RunConfig) -> Found:
    policy = config.policy
    if policy.engine == "servers" and not policy.servers:
        yield ("policy.servers", "policy.engine"), 'must list at least one address where policy.engine = "servers"'
    if policy.servers and policy.engine != "servers":
        yield ("policy.servers", "policy.engine"), 'is read only where policy.engine = "servers"'
    if len(set(policy.servers)) < len(policy.servers):
        yield ("policy.servers",), "lists an address twice"
    if any(not re.fullmatch(r"https?://[^/\s@?#]+/?", url) for url in policy.servers):
        yield ("policy.servers",), "every address must be http:// or https://, a host and a port, and nothing else"


def _pushes_to_servers(config: RunConfig) -> Found:
    policy = config.policy
    if policy.engine != "servers":
        return
    if policy.push == "nccl":
        yield ("policy.push", "policy.engine"), 'servers take weights from files: "file", or "shm" on one machine'
    away = [url for url in policy.servers if urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1")]
    if policy.push == "shm" and away:
        yield (
            ("policy.push", "policy.servers"),
            f'"shm" reaches only servers on this machine, {away[0]} is none: take "file" and set policy.push_dir to'
            " a folder that all see",
        )
    if policy.data_parallel_size > 1:
        yield (
            ("policy.data_parallel_size", "policy.engine"),
            "start one server for each engine and list all in policy.servers",
        )


def _times(config: RunConfig) -> Found:
    run = config.run
    if run.stall_warn_s > run.stall_abort_s:
        yield ("run.stall_warn_s", "run.stall_abort_s"), f"must not exceed run.stall_abort_s = {run.stall_abort_s:g}"
    for name, table in _sources(config).items():
        if table.request_timeout_s > table.deadline_s:
            yield (
                (f"{name}.request_timeout_s", f"{name}.deadline_s"),
                f"must not exceed {name}.deadline_s = {table.deadline_s:g}, which covers all retries",
            )


def _alarms(config: RunConfig) -> Found:
    if config.alarms.action == "rollback" and not config.checkpoint.every_steps:
        yield (
            ("alarms.action", "checkpoint.every_steps"),
            "rollback needs checkpoints to go back to: set checkpoint.every_steps",
        )


_RULES = (
    _data,
    _names,
    _lengths,
    _algorithm,
    _feedback,
    _addresses,
    _sandbox,
    _secrets,
    _learner,
    _gpus,
    _evaluation,
    _engine,
    _pushes_to_servers,
    _times,
    _alarms,
)
