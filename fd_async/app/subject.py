"""Which model an evaluation is of, and the folder that holds it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from fd_async.app.resuming import start_of
from fd_async.config.places import evaluated, suite_name
from fd_async.config.schema import RunConfig
from fd_async.data.ledger import is_empty
from fd_async.errors import CheckpointError, ConfigError
from fd_async.learner.checkpoints import checkpoint_name, find_checkpoint, model_folder, read_manifest

OWN_FILE = "evaluation.json"
"""What the attempts of an evaluation depend on; marks its folder."""
_LONGEST_NAME = 100


class Subject(Struct, frozen=True):
    """What is evaluated."""

    model: str
    """Folder or Hugging Face id."""
    step: int | None
    """Of the run that made it; None where nothing tells."""
    run_dir: Path | None


def find_subject(config: RunConfig, source: Path | None, step: int | None) -> Subject:
    """Find the model of a run folder (`step`, or its newest checkpoint), of a checkpoint or of a Hugging Face folder.

    Step 0 of a run is the model that it starts from. Without `source` it is `model.path`.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ConfigError: `step` goes with a run folder alone.
    """
    if source is not None and (source / "checkpoints").is_dir():
        if step == 0:
            start = str(model_folder(start_of(config, source))) if config.model.init_from else config.model.path
            return Subject(start, 0, source)
        return _of_checkpoint(find_checkpoint(source / "checkpoints", step))
    if step is not None:
        raise ConfigError(f"--step {step}: name a run folder with it, which has checkpoints/, or leave it out")
    if source is None:
        return Subject(config.model.path, None, None)
    checkpoint = source.parent if (source / "config.json").is_file() else source
    if (checkpoint / "manifest.json").is_file():
        return _of_checkpoint(checkpoint)
    if checkpoint != source:
        return Subject(str(source), None, None)
    raise CheckpointError(
        f"{source}: no run folder with checkpoints/, no checkpoint and no Hugging Face folder with config.json: "
        "name one of these"
    )


def _of_checkpoint(checkpoint: Path) -> Subject:
    step = read_manifest(checkpoint).step
    inside_run = checkpoint.resolve().parent.name == "checkpoints"
    return Subject(str(model_folder(checkpoint)), step, checkpoint.parent.parent if inside_run else None)


def evaluation_folder(config: RunConfig, subject: Subject, out: Path | None = None) -> Path:
    """Return `out`, or the folder whose name tells step, suites, temperature and tools.

    The number of samples is not in the name: more of them extend the same evaluation.

    Raises:
        ConfigError: the folder holds something else.
    """
    folder = out
    if folder is None:
        model = checkpoint_name(subject.step) if subject.step is not None else Path(subject.model).name
        suites = "+".join(suite_name(text) for text in evaluated(config.data))
        tools = "tools" if has_tools(config) else "no_tools"
        name = re.sub(r"[^\w.+-]+", "_", f"{model}-{suites[:_LONGEST_NAME]}-t{config.eval.temperature:g}-{tools}")
        folder = (subject.run_dir or Path(config.run.dir)) / "evals" / name
    foreign = [name for name in ("metrics.jsonl", "checkpoints") if (folder / name).exists()]
    ledger = folder / "ledger.db"
    if ledger.exists() and not (folder / OWN_FILE).exists() and not is_empty(ledger):
        foreign.append(ledger.name)
    if foreign or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder}: is no evaluation{_with(foreign)}; name another folder with --out")
    return folder


def _with(names: Sequence[str]) -> str:
    return f" ({', '.join(names)} there)" if names else ""


def has_tools(config: RunConfig) -> bool:
    """Say whether attempts may call tools."""
    return getattr(config.rollout, "tools", True)
