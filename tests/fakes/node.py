"""A GPU node that `fd-check` takes for real: 8 H200, a 9-billion model, Lean, a provider, room everywhere.

Every part is where the true one would be: programs on PATH (`nvidia-smi`, `gcc`, `lake`, ...), folders, sockets. Only
what belongs to the machine as a whole is replaced in Python: free memory and disk, and the try of the sandbox.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fd_async.cli.main import main
from fd_async.preflight import disk, gpus, machine, nvidia

CHECKOUT = Path(__file__).parents[2]
GIB = 2**30
TOOLCHAIN = "leanprover/lean4:v4.33.1"
QWEN35_9B = {
    "model_type": "qwen3_5",
    "text_config": {
        "model_type": "qwen3_5_text",
        "vocab_size": 248320,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "full_attention_interval": 4,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "mamba_ssm_dtype": "float32",
        "tie_word_embeddings": False,
    },
}
TEMPLATE = "{% if tools %}<tool_call>\n<function=name>{% endif %}"
Usage = namedtuple("Usage", "total used free")


class Node:
    """The machine, and the arguments of fd-check; both may be spoilt."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
        self.folder, self.patch = folder, monkeypatch
        self.programs, self.model, self.lean = folder / "programs", folder / "model", folder / "lean"
        self.disk_gib: dict[str, float] = {"/dev/shm": 64.0}
        self.memory_gib = 1500.0
        self.cores = 96
        self.configs = ["qwen35_fd.toml"]
        self.vllm = "0.32.0"
        self.sets = {
            "model.path": str(self.model),
            "data.train": str(folder / "train.jsonl"),
            "data.source": '""',
            "data.eval": "[]",
            "run.dir": str(folder / "runs"),
            "verifier.project_dir": str(self.lean),
            "feedback.base_url": provider,
            "feedback.max_usd": "6000",
        }

    def program(self, name: str, text: str) -> None:
        """Put a shell script on PATH."""
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def gpus(
        self,
        count: int = 8,
        *,
        name: str = "NVIDIA H200",
        mib: int = 143771,
        used: int = 0,
        capability: str = "9.0",
        mig: str = "Disabled",
        driver: str = "580.95.05",
    ) -> None:
        """Have nvidia-smi show these."""
        rows = "\n".join(f"{index}, {name}, {mib}, {used}, {capability}, {mig}, {driver}" for index in range(count))
        self.program("nvidia-smi", f"/bin/cat <<'EOF'\n{rows}\nEOF")

    def arguments(self) -> list[str]:
        """Return the command line of fd-check."""
        files = [word for name in self.configs for word in ("--config", str(CHECKOUT / "configs" / name))]
        sets = [word for key, value in self.sets.items() for word in ("--set", f"{key}={value}")]
        return ["check", *files, "--quick", *sets]


def sets(**keys: str) -> Callable[[Node], None]:
    """Set keys of the configuration; `__` stands for the dot."""
    return lambda node: node.sets.update({key.replace("__", "."): value for key, value in keys.items()})


def check(node: Node, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Call fd-check; return exit code, stdout, stderr."""
    code = main(node.arguments())
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def open_node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """Set everything up; for a fixture."""
    with socket.create_server(("127.0.0.1", 0)) as provider:
        node = Node(folder, monkeypatch, f"http://127.0.0.1:{provider.getsockname()[1]}")
        node.programs.mkdir()
        node.gpus()
        for name in ("lake", "rg", "gcc", "g++"):
            node.program(name, "exit 0")
        _model(node.model)
        _lean(node.lean, folder / "home")
        (folder / "train.jsonl").write_text('{"name": "a", "formal_statement": "theorem a : True := by sorry"}\n')
        monkeypatch.setenv("PATH", str(node.programs))
        monkeypatch.setenv("HOME", str(folder / "home"))
        monkeypatch.setenv("ANTHROPIC_API_KEY", "a key")
        hub = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT")
        for variable in (*hub, "ELAN_HOME", "CUDA_VISIBLE_DEVICES", "http_proxy", "ANTHROPIC_BASE_URL"):
            monkeypatch.delenv(variable, raising=False)
        _measures(node)
        yield node


def _measures(node: Node) -> None:
    def usage(path: object) -> Usage:
        gib = next((size for start, size in node.disk_gib.items() if str(path).startswith(start)), 4000.0)
        return Usage(0, 0, int(gib * GIB))

    def version(name: str) -> str:
        return {"torch": "2.13.0", "vllm": node.vllm, "deepspeed": "0.19.8"}.get(name, "5.19.0")

    node.patch.setattr("os.sched_getaffinity", lambda pid: set(range(node.cores)))
    fake_memory = SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=int(node.memory_gib * GIB)))
    node.patch.setattr(machine, "psutil", fake_memory)
    node.patch.setattr(machine, "_version", version)
    node.patch.setattr(disk, "shutil", SimpleNamespace(disk_usage=usage))
    node.patch.setattr(gpus, "metadata", SimpleNamespace(version=lambda _: "13.0.96", PackageNotFoundError=LookupError))
    node.patch.setattr("fd_async.verifier.sandbox.probe.probe_sandbox", lambda room: None)
    node.patch.setattr("fd_async.preflight.learner.find_spec", lambda name: object())
    node.patch.setattr(nvidia, "_TIMEOUT_S", 1.0)


def _model(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN35_9B))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")


def _lean(project: Path, home: Path) -> None:
    packages = project / ".lake" / "packages"
    for file in (
        home / ".elan/toolchains/leanprover--lean4---v4.33.1/bin/lean",
        project / "lakefile.toml",
        packages / "REPL/.lake/build/bin/repl",
        packages / "mathlib/.lake/build/lib/lean/Mathlib.olean",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o755)
    for folder in (project, packages / "mathlib"):
        (folder / "lean-toolchain").write_text(TOOLCHAIN + "\n")


def copy_of_model(node: Node, to: Path, **changes: object) -> None:
    """Copy the model's folder with other values in the configuration of its text model."""
    shutil.copytree(node.model, to)
    config = {**QWEN35_9B["text_config"], **changes}  # type: ignore[dict-item]
    (to / "config.json").write_text(json.dumps(config))
