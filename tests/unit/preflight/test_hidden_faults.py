"""Set-ups that look right and cannot work, and odd ones that can: fd-check tells the two apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.node import QWEN35_9B, Node, check, open_node, sets

Change = Callable[[Node], object]
SELF = ["qwen35_fd.toml", "feedback/self.toml"]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 4900000000\n"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node on which the paper's configuration fits."""
    yield from open_node(tmp_path, monkeypatch)


def configs(*names: str, **keys: str) -> Change:
    """Take other configurations, which name their own source of feedback."""

    def change(node: Node) -> None:
        node.configs = list(names)
        for key in ("feedback.base_url", "feedback.max_usd"):
            node.sets.pop(key)
        sets(**keys)(node)

    return change


def both(*changes: Change) -> Change:
    return lambda node: [change(node) for change in changes]


def weights(data: bytes) -> Change:
    return lambda node: (node.model / "model.safetensors").write_bytes(data)


def header(**ends: int) -> bytes:
    text = json.dumps({name: {"shape": [1], "data_offsets": [0, end]} for name, end in ends.items()}).encode()
    return len(text).to_bytes(8, "little") + text


def key(text: str) -> Change:
    return lambda node: node.patch.setenv("ANTHROPIC_API_KEY", text)


def positions(count: int, **keys: object) -> Change:
    text = {**QWEN35_9B["text_config"], "max_position_embeddings": count, **keys}  # type: ignore[dict-item]
    return lambda node: (node.model / "config.json").write_text(json.dumps({"text_config": text}))


def lost_gpu(node: Node) -> None:
    rows = "0, NVIDIA H200, 143771, 0, 9.0, Disabled, 580.95\n1" + ", [Unknown Error]" * 5 + ", 580.95"
    node.program("nvidia-smi", f"/bin/cat <<'EOF'\n{rows}\nEOF")


def lake_of_elan(node: Node) -> None:
    program = node.folder / "home/.elan/bin/lake"
    program.parent.mkdir()
    (node.programs / "lake").rename(program)


WRONG: list[tuple[str, Change, str, str]] = [
    ("pointers of Git LFS", weights(LFS), "model", "lacks the data of model.safetensors"),
    ("a copy that broke off", weights(header(a=400) + bytes(399)), "model", "lacks the data of model.safetensors"),
    ("a broken config.json", lambda n: (n.model / "config.json").write_text("{"), "model", "a readable config.json"),
    ("a context beyond the model's", positions(8192), "context", "the model knows 8192 positions"),
    ("a key with a line break", key("sk-ant-1\n"), "feedback key", "ends with a space or a line break"),
    ("a blank key", key(" "), "feedback key", "a space or a line break"),
    ("all of a GPU", sets(policy__gpu_memory_utilization="1"), "GPU memory", "set it to 0.95 or less"),
    ("two halves of a GPU", configs(*SELF, policy__gpu_memory_utilization="0.5"), "second engine", "to 0.45 or less"),
    ("a file for a folder of runs", lambda n: (n.folder / "runs").touch(), "run folder", "runs is a file"),
    (
        "a REPL without its execute bit",
        lambda n: (n.lean / ".lake/packages/REPL/.lake/build/bin/repl").chmod(0o644),
        "Lean REPL",
        "cannot be executed",
    ),
    ("a GPU that fell off the bus", lost_gpu, "GPUs", "cannot read '1, [Unknown Error]"),
    ("Kimina not started", sets(verifier__backend="kimina", verifier__url="http://127.0.0.1:9"), "kimina", "refused"),
    ("no folder for pushes", sets(policy__push="file", policy__push_dir="/nowhere"), "/nowhere", "can be written"),
]
RIGHT: list[tuple[str, Change, list[str]]] = [
    ("the frozen copy as tutor", configs(*SELF, "experiments/self_tutor.toml"), ["KV cache"]),
    (
        "the frozen copy on 80 GB cards",
        both(configs(*SELF, "experiments/self_tutor.toml"), lambda n: n.gpus(name="NVIDIA H100 80GB HBM3", mib=81559)),
        ["KV cache"],
    ),
    ("a tutor cut short", configs(*SELF, policy__gpu_memory_utilization="0.42"), ["tutor"]),
    (
        "GRPO without a key",
        both(configs("qwen35_grpo.toml"), lambda n: n.patch.delenv("ANTHROPIC_API_KEY")),
        ["KV cache"],
    ),
    ("constant feedback", configs("qwen35_fd.toml", "experiments/be_concise.toml"), []),
    (
        "every checkpoint kept",
        configs("qwen35_fd.toml", "feedback/lean_output.toml", "experiments/starting_points.toml"),
        [],
    ),
    ("all cached, offline", lambda n: n.patch.setenv("HF_HUB_OFFLINE", "1"), []),
    ("a folder of runs with spaces", lambda n: n.sets.update({"run.dir": f"{n.folder}/my runs"}), []),
    ("two GPUs per engine", sets(policy__tensor_parallel_size="2", policy__data_parallel_size="2"), []),
    ("the learner's GPUs first", sets(policy__gpus="[4,5,6,7]", learner__gpus="[0,1,2,3]"), []),
    ("newer cards", lambda n: n.gpus(name="NVIDIA B200", mib=183359, capability="10.0", mig="[N/A]"), []),
    ("a context that the model stretches", positions(8192, rope_scaling={"rope_type": "yarn", "factor": 4.0}), []),
    ("whole weights", weights(header(a=400) + bytes(400)), []),
    ("few cores", lambda n: setattr(n, "cores", 16), ["cores"]),
    ("lake where elan puts it", lake_of_elan, []),
]


@pytest.mark.parametrize(("spoil", "name", "said"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_cannot_work_is_never_ready(
    node: Node, capsys: pytest.CaptureFixture[str], spoil: Change, name: str, said: str
) -> None:
    """That finding alone is missing, and says the cause."""
    spoil(node)
    code, out, err = check(node, capsys)
    assert (code, err) == (3, f"fd-check: missing: {name}\n"), out
    assert said in out


@pytest.mark.parametrize(("change", "notes"), [row[1:] for row in RIGHT], ids=[row[0] for row in RIGHT])
def test_what_works_is_ready(node: Node, capsys: pytest.CaptureFixture[str], change: Change, notes: list[str]) -> None:
    """Nothing is missing; what is worth knowing is said and no more."""
    change(node)
    code, out, err = check(node, capsys)
    assert (code, err) == (0, ""), out
    assert [line[8:].partition("  ")[0] for line in out.splitlines() if line.startswith("note")] == notes
