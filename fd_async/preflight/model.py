"""The starting model: its files, its chat template, and a checkpoint to start from. No transformers, no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from fd_async.config.files import is_hub_id
from fd_async.config.schema import RunConfig
from fd_async.errors import CheckpointError
from fd_async.learner.checkpoints import model_folder, resolve_init_from
from fd_async.learner.model_shape import model_here, text_config
from fd_async.preflight.findings import Finding, needed
from fd_async.preflight.reaching import reach

HUB = "https://huggingface.co"
_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
"""What two models must share for the weights of one to fit into the other."""
_NOTE = "__metadata__"
"""The entry of a safetensors header that is no tensor."""
_MAX_HEADER_BYTES = 100 << 20
_MARKS = {"qwen3": '"arguments"', "qwen3_5": "<function="}
"""What the chat template of each `model.tool_format` writes inside a tool call."""


def _files(config: RunConfig) -> Iterator[Finding]:
    path, folder = config.model.path, model_here(config.model.path)
    if is_hub_id(path) and folder is None:
        yield _download(path)
        return
    lacking = _lacking(folder or Path(path))
    if is_hub_id(path):
        advice = f"fetch the rest where the internet is: hf download {path}"
        yield needed(not lacking, "model", f"{path} in the cache{_without(lacking)}", advice)
    else:
        advice = "set model.path to a whole folder in Hugging Face format"
        yield needed(not lacking, "model", f"{path}{_without(lacking)}", advice)


def _without(lacking: list[str]) -> str:
    more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
    return f" lacks {', '.join(lacking[:4])}{more}" if lacking else ""


def _lacking(folder: Path) -> list[str]:
    lacking = [name for name in ("config.json", "tokenizer.json") if not _there(folder / name)]
    if not lacking and text_config(str(folder)) is None:
        lacking.append("a readable config.json")
    index = folder / "model.safetensors.index.json"
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else []
    except (OSError, ValueError, KeyError, AttributeError):
        return [*lacking, f"a readable {index.name}"]
    files = [folder / name for name in shards] or sorted(folder.glob("*.safetensors"))
    lacking += [file.name for file in files if not _there(file)] if files else ["*.safetensors"]
    return lacking + [
        f"the data of {file.name} (a broken copy, or a pointer of Git LFS)" for file in files if _is_cut(file)
    ]


def _there(file: Path) -> bool:
    """A link of the cache may lead nowhere, and a broken download may leave nothing."""
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def _is_cut(file: Path) -> bool:
    """Compare a file's size with what its header announces; a pointer of Git LFS announces anything."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(size - 8, _MAX_HEADER_BYTES):
                return size > 0
            header = json.loads(opened.read(length))
        ends = (tensor["data_offsets"][1] for name, tensor in header.items() if name != _NOTE)
        return size < 8 + length + max(ends, default=0)
    except OSError:
        return False  # not there, which is said elsewhere
    except (ValueError, KeyError, TypeError, AttributeError):
        return True


def hub_cache() -> Path:
    """Return the folder in which Hugging Face's library keeps what it has fetched."""
    home = Path(os.environ.get("HF_HOME", "") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", "") or home / "hub")


def is_offline() -> bool:
    """Whether the variables of Hugging Face forbid the hub."""
    words = (os.environ.get(name, "").upper() for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(word in ("1", "ON", "YES", "TRUE") for word in words)


def _download(path: str) -> Finding:
    cure = f"hf download {path} on a machine with internet and mount its HF_HOME, or set model.path to a folder"
    if is_offline():
        return Finding("missing", "model", f"{path} is not in the cache, and HF_HUB_OFFLINE forbids the hub", cure)
    endpoint = os.environ.get("HF_ENDPOINT") or HUB
    problem = reach([endpoint])[endpoint]
    if problem:
        return Finding(
            "missing", "model", f"{path} is not in the cache; {urlsplit(endpoint).hostname}: {problem}", cure
        )
    return Finding("note", "model", f"{path} is not in the cache", "downloaded from the hub at the first start")


def _template(config: RunConfig) -> Iterator[Finding]:
    """Compare the way the chat template writes tool calls with `model.tool_format`."""
    folder = model_here(config.model.path)
    template = _read_template(folder) if folder else None
    if folder is None or template is None:
        return
    if not config.rollout.tools:
        opens = "add_generation_prompt" in template and "<|im_start|>" in template
        advice = "take a Qwen chat model: base models and other families do not take turns like this"
        yield needed(opens, "chat template", "takes a question without tools" if opens else "knows no turns", advice)
        return
    wanted = config.model.tool_format
    if "tools" not in template or "<tool_call>" not in template:
        advice = "take a Qwen chat model: base models and other families write no <tool_call>"
        yield Finding("missing", "chat template", f"that of {config.model.path} knows no tools", advice)
        return
    written = "qwen3_5" if _MARKS["qwen3_5"] in template else "qwen3"
    found = f"writes {'XML' if written == 'qwen3_5' else 'JSON'} calls, model.tool_format = {wanted!r}"
    yield needed(written == wanted, "chat template", found, f'set model.tool_format = "{written}"')


def _read_template(folder: Path) -> str | None:
    """Return the chat template; empty where the tokenizer has none, None where there is no tokenizer."""
    try:
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text()
        found = json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template") or ""
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else json.dumps(found)


def _start(config: RunConfig) -> Iterator[Finding]:
    if not config.model.init_from:
        return
    try:
        folder = resolve_init_from(config.model.init_from)
    except CheckpointError as error:
        yield Finding("missing", "model.init_from", str(error), "docs/learner.md, checkpoints")
        return
    ours, theirs = text_config(config.model.path), text_config(str(model_folder(folder)))
    differ = [key for key in _SHAPE if ours and theirs and _family(ours.get(key)) != _family(theirs.get(key))]
    if differ and ours and theirs:
        found = "; ".join(f"{key} {theirs.get(key)}, not {ours.get(key)}" for key in differ)
        advice = f"{folder} is a checkpoint of another model than model.path: change one of the two"
        yield Finding("missing", "model.init_from", found, advice)
    else:
        yield Finding("ok", "model.init_from", str(folder))


def _length(config: RunConfig) -> Iterator[Finding]:
    """Compare the context with the model's own, as vLLM does."""
    text, wanted = text_config(config.model.path) or {}, config.policy.max_model_len
    longest, rope = text.get("max_position_embeddings"), text.get("rope_parameters") or text.get("rope_scaling") or {}
    if isinstance(longest, int) and longest < wanted and "factor" not in rope:
        found = f"policy.max_model_len = {wanted}, the model knows {longest} positions (max_position_embeddings)"
        yield Finding("missing", "context", found, "lower policy.max_model_len, or take a model of longer contexts")


def _family(value: object) -> object:
    """A checkpoint holds the text model alone, which a multimodal family calls by another name."""
    return value.removesuffix("_text") if isinstance(value, str) else value


PROBES: tuple[Callable[[RunConfig], Iterator[Finding]], ...] = (_files, _template, _length, _start)
"""In the order of the report."""
