"""What a run keeps from its first life to its last: a resume that would change it is refused before anything starts.

    config.toml     values: some decide what the recorded attempts and the checkpoint are (`FIXED`)
    identity.json   what the names in it stood for when the run began: weights, start, statements, prompts. Files may
                    move, so these are compared by what is in them

Everything else may change: it holds from the next step on, or it says how, where and how fast, not what. A run without
an attempt and a checkpoint has nothing to keep. One that began under a version without identity.json gets it at its
next resume.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from fd_async.config.load import flat
from fd_async.config.schema import RunConfig
from fd_async.data.ledger import is_empty
from fd_async.errors import CheckpointError, ConfigError
from fd_async.evaluation.identity import template_hash
from fd_async.learner.checkpoints import checkpoint_id, find_again, is_start, resolve_init_from
from fd_async.learner.client import has_reference
from fd_async.policy.contract import fingerprint
from fd_async.rendering import Renderer
from fd_async.telemetry.sinks import replace_file
from fd_async.types import Statement

FIXED = {
    "run.seed": "it orders the statements, and some would be trained twice and others never",
    "model.dtype": "the checkpoint holds weights and moments of one type",
    "model.thinking": "it is part of every prompt, and recorded attempts saw another one",
    "rollout.tools": "it is part of every prompt, and recorded attempts saw another one",
    "rollout.temperature": "the log-probs of recorded attempts are of one temperature",
    "algorithm.type": "the checkpoint and the recorded attempts are those of one algorithm",
}
"""Key -> why a resume may not change it."""
_START = "model.init_from"
_DATA = ("source", "train", "num_train", "num_test", "max_train", "columns", "headers")
_CURE = "set it back, or start a new run with --run NAME"
Identity = dict[str, str]


class Past(Struct, frozen=True):
    """What an earlier life wrote down; empty for a run that has nothing to keep."""

    keys: dict[str, Any] = {}
    """`table.key` of config.toml -> value."""
    found: Identity = {}
    """identity.json."""

    def change(self, key: str, now: object) -> str:
        """Say from what to what a key has changed; empty where it has not, or nobody knows."""
        before = self.keys.get(key, now)
        return "" if before == now else f"{key} was {_shown(before)} and is {_shown(now)}"


def read_past(run_dir: Path, checkpoint: Path | None) -> Past:
    """Read what the run was when it had its last life.

    Raises:
        ConfigError: it cannot be read.
    """
    ledger = run_dir / "ledger.db"
    if checkpoint is None and (not ledger.is_file() or is_empty(ledger)):
        return Past()
    paths = run_dir / "config.toml", run_dir / "identity.json"
    config, identity = (path.read_bytes() if path.is_file() else b"" for path in paths)
    try:
        keys = flat(tomllib.loads(config.decode()))
    except ValueError as error:
        raise ConfigError(f"{paths[0]}: cannot be read ({error}): put back a copy, e.g. config.before.toml") from error
    try:
        return Past(keys, msgspec.json.decode(identity or b"{}", type=Identity))
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{paths[1]}: cannot be read ({error}): put back a copy, or delete it if model and data are those of before"
        ) from error


def refuse_changed_keys(config: RunConfig, past: Past) -> None:
    """Refuse a value that may not change.

    Raises:
        ConfigError: one line per key.
    """
    now = flat(msgspec.to_builtins(config))
    changed = [(key, past.change(key, now[key]), why) for key, why in FIXED.items()]
    if lines := [f"{text}: a resume may not change it, {why}; {_CURE}" for _, text, why in changed if text]:
        raise ConfigError("\n".join(lines))


def keep_start(config: RunConfig, run_dir: Path, past: Past, checkpoint: Path | None) -> tuple[RunConfig, list[str]]:
    """Have `model.init_from` name the checkpoint folder that the run began with, wherever it lies now.

    A fresh start takes what it names today. Where a run folder is named, the run may have newer checkpoints by now.

    Returns:
        The configuration, and what to say of it.

    Raises:
        ConfigError: the run began with another one.
        CheckpointError: it is needed, and gone.
    """
    named, began = config.model.init_from, past.keys.get(_START, "")
    if not past.keys or not (named or began):
        return (_starting_from(config, str(resolve_init_from(named))) if named else config), []
    if not began:
        raise ConfigError(f"{_START} = {_shown(named)}: the run began with model.path; {_CURE}")
    if not named:
        raise ConfigError(f"{_START} is not set: the run began with {began}; {_CURE}")
    try:
        found = find_again(began, past.found.get(_START, ""), run_dir=run_dir, named=named)
    except CheckpointError:
        if checkpoint is None or has_reference(config) or not is_start(named, began):
            raise
        return _starting_from(config, began), [f"{_START}: {began} is gone; the run needs it no more"]
    if not (
        is_start(named, began) or is_start(named, str(found)) or checkpoint_id(Path(named)) == checkpoint_id(found)
    ):
        raise ConfigError(f"{_START} = {_shown(named)}: the run began with {found}; {_CURE}")
    moved = [f"{_START}: {began} lies at {found} now"] if str(found) != began else []
    return _starting_from(config, str(found)), moved


def _starting_from(config: RunConfig, folder: str) -> RunConfig:
    return msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, init_from=folder))


def start_of(config: RunConfig, run_dir: Path) -> Path:
    """Return the checkpoint that a run with a `model.init_from` began with, wherever it lies now.

    Raises:
        CheckpointError: it is gone.
    """
    try:
        return resolve_init_from(config.model.init_from)
    except CheckpointError:
        return find_again(config.model.init_from, "", run_dir=run_dir)


def recognise(config: RunConfig, train: Iterable[Statement], renderer: Renderer) -> Identity:
    """Look at what the configuration names. Blocking: reads some MiB of weights.

    Args:
        config: whose `model.init_from` is a checkpoint folder or empty.
        train: in the order in which they were read.
        renderer: of the configuration.
    """
    statements = hashlib.sha256()
    for statement in train:
        statements.update(msgspec.msgpack.encode((statement.name, statement.formal_statement, statement.header)))
    found = {"data.train": statements.hexdigest()[:16], "prompts": template_hash(renderer)[:16]}
    with suppress(OSError, ValueError):  # an id of the hub whose weights come with the engine
        found["model.path"] = fingerprint(config.model.path)
    if start := checkpoint_id(Path(config.model.init_from)) if config.model.init_from else "":
        found[_START] = start
    return found


def refuse_other_contents(config: RunConfig, past: Past, found: Identity) -> None:
    """Refuse files that are not those of before.

    Raises:
        ConfigError: one line per kind.
    """
    data, now = config.data, flat(msgspec.to_builtins(config))
    model, train = f"model.path = {_shown(config.model.path)}", f"data.train = {_shown(data.train or data.source)}"
    said = {
        "model.path": f"{model}: other weights than those",
        "prompts": f"{model}: tokenizer or chat template, or this version of fd_async, make other prompts than those",
        "data.train": f"{train}: other statements, or another order of them, than those",
        _START: f"{_START} = {_shown(config.model.init_from)}: another checkpoint than the one",
    }
    lines = []
    for kind, text in said.items():
        if kind in found and found[kind] != past.found.get(kind, found[kind]):
            keys = [f"data.{key}" for key in _DATA] if kind == "data.train" else ["model.path"]
            changes = ", ".join(filter(None, (past.change(key, now[key]) for key in keys)))
            lines.append(f"{text} that the run began with{f' ({changes})' if changes else ''}; {_CURE}")
    if lines:
        raise ConfigError("\n".join(lines))


def write_identity(run_dir: Path, past: Past, found: Identity) -> None:
    """Write down what was found, below what is known already."""
    replace_file(run_dir / "identity.json", msgspec.json.format(msgspec.json.encode(found | past.found)) + b"\n")


def _shown(value: object) -> str:
    text = msgspec.json.encode(value, enc_hook=str).decode()
    return text if len(text) <= 120 else f"{text[:117]}..."
