"""What the attempts of an evaluation depend on: two calls that agree in it sample the same attempts.

Left out is what changes their number (samples, k) or their speed (engine, workers, concurrency).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fd_async.config.schema import RunConfig
from fd_async.data.sources.canonical import statements_hash
from fd_async.rendering import Renderer
from fd_async.types import Statement

Identity = dict[str, Any]
"""Key, as people know it -> value."""

TOOLCHAIN = "toolchain"
"""Key of what judges, which is known once the verifier is open: a call that only prints has none."""
COMPARED = (
    "run.seed",
    "model.dtype",
    "model.tool_format",
    "model.thinking",
    "eval.temperature",
    "rollout.tools",
    "rollout.max_prompt_tokens",
    "rollout.max_response_tokens",
    "rollout.max_turns",
    "rollout.timeout_s",
    "rollout.tool_output_chars",
    "verifier.backend",
    "verifier.header",
    "verifier.check_timeout_s",
    "verifier.memory_limit_gib",
    "verifier.resident_limit_gib",
    "verifier.search_timeout_s",
    "verifier.allowed_axioms",
    "verifier.audit",
    "verifier.audit_share",
)
_PROBE = Statement(name="probe", formal_statement="theorem probe (p : Prop) (h : p) : p :=")


def identity(
    config: RunConfig, *, model_hash: str, renderer: Renderer, suites: Mapping[str, Sequence[Statement]]
) -> Identity:
    """Collect it; hashes the statements, so call it in a thread."""
    found: Identity = {"model": f"sha256 {model_hash}", "template": f"sha256 {template_hash(renderer)}"}
    for suite, statements in suites.items():
        found[f"statements of {suite}"] = f"sha256 {statements_hash(statements)}"
        found[f"order of {suite}"] = _hash_of(statement.name for statement in statements)
        found[f"headers of {suite}"] = _hash_of(statement.header for statement in statements)  # as prompts show them
    return found | {key: _value(config, key) for key in COMPARED}


def differences(before: Identity, now: Identity) -> list[str]:
    """Say in what they differ, one short text per key; a toolchain that one side does not know is no difference."""
    judged_by = {TOOLCHAIN: before.get(TOOLCHAIN, now.get(TOOLCHAIN))}
    before, now = judged_by | before, judged_by | now
    keys = dict.fromkeys([*now, *before])
    return [
        f"{key} was {_shown(before, key)} and is {_shown(now, key)}" for key in keys if before.get(key) != now.get(key)
    ]


def _hash_of(texts: Iterable[str]) -> str:
    digest = hashlib.sha256("\0".join(texts).encode())
    return f"sha256 {digest.hexdigest()}"


def _value(config: RunConfig, key: str) -> Any:
    table, _, name = key.partition(".")
    return getattr(getattr(config, table), name, None)


def _shown(identity: Identity, key: str) -> str:
    if key not in identity:
        return "not there"
    text = str(identity[key])
    return f"{text[:19]}..." if text.startswith("sha256 ") else repr(identity[key])[:80]


def template_hash(renderer: Renderer) -> str:
    """Hash what the template makes of a prompt and of a tool's answer, ids and stop tokens."""
    seen = [
        renderer.student_prompt(_PROBE),
        renderer.tool_result_ids(["probe"], closed=True),
        renderer.tool_result_ids(["probe"], closed=False),
        renderer.stop_token_ids,
    ]
    return hashlib.sha256(repr(seen).encode()).hexdigest()
