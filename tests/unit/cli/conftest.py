"""A small configuration, and the commands without what they start."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A correct configuration in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}")
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "train.jsonl").write_text('{"name": "one", "formal_statement": "theorem one : True := by sorry"}\n')
    file = tmp_path / "small.toml"
    file.write_text(
        f'[model]\npath = "{model}"\ndtype = "float32"\n[data]\ntrain = "train.jsonl"\n[feedback]\ntype = "constant"\n'
        '[verifier]\nbackend = "minilean"\nsandbox = "bubblewrap_if_it_works"\n'
        "[checkpoint]\nmin_free_gib = 0.0\n[policy]\nkv_cache_gib = 0.1\n"
        "[telemetry]\nreport = false\n"
    )
    return file


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace the composition root: these tests are about the commands around it."""

    def install(**functions: Callable[..., object]) -> None:
        module = ModuleType("fd_async.app")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, "fd_async.app", module)
        monkeypatch.setattr("fd_async.app", module, raising=False)

    return install
