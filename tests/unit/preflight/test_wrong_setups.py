"""Set-ups that users get wrong, one by one, on an otherwise right node: fd-check names each cause and the key."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from fd_async.learner.checkpoints import Manifest
from fd_async.preflight.model import is_offline
from fd_async.verifier.sandbox import probe
from tests.fakes.node import TOOLCHAIN, Node, check, copy_of_model, open_node, sets

SANDBOX = probe.probe_sandbox


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node on which the paper's configuration fits."""
    yield from open_node(tmp_path, monkeypatch)


def no_driver(node: Node) -> None:
    (node.programs / "nvidia-smi").unlink()


def driver_hangs(node: Node) -> None:
    node.program("nvidia-smi", "exec /bin/sleep 30")


def driver_broken(node: Node) -> None:
    node.program("nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")


def one_gpu_busy(node: Node) -> None:
    node.gpus()
    text = (node.programs / "nvidia-smi").read_text()
    node.program("nvidia-smi", text.removeprefix("#!/bin/sh\n").replace("143771, 0,", "143771, 100000,", 1).strip())


def shard_missing(node: Node) -> None:
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (node.model / "model.safetensors").rename(node.model / names["a"])
    (node.model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def no_key(node: Node) -> None:
    node.patch.delenv("ANTHROPIC_API_KEY")
    node.sets["feedback.api_key_env"] = "ANTHROPIC_API_KEY"  # named, or a server of one's own may need none


def toolchain_missing(node: Node) -> None:
    (node.folder / "home/.elan/toolchains/leanprover--lean4---v4.33.1").rename(node.folder / "gone")


def other_toolchain_of_mathlib(node: Node) -> None:
    (node.lean / ".lake/packages/mathlib/lean-toolchain").write_text("leanprover/lean4:v4.30.0\n")


def bubblewrap_forbidden(node: Node) -> None:
    for name in ("nice", "env"):
        (node.programs / name).symlink_to(f"/usr/bin/{name}")
    node.program("bwrap", "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1")
    node.patch.setattr(probe, "probe_sandbox", SANDBOX)


def no_ripgrep(node: Node) -> None:
    (node.programs / "rg").unlink()
    node.patch.setattr(sys, "executable", str(node.folder / "bin" / "python"))


def hosts(answer: str) -> Callable[[Node], None]:
    def spoil(node: Node) -> None:
        (node.folder / "hostfile").write_text("localhost slots=4\nfd-node-2 slots=4\n")
        node.program("ssh", answer)
        learner = {"learner.hostfile": str(node.folder / "hostfile"), "learner.launcher": "ssh", "learner.ranks": "8"}
        node.sets |= learner | {
            "learner.gpus": "[4,5,6,7,4,5,6,7]",
            "learner.controller_address": "localhost",
        }

    return spoil


def broken_row(node: Node) -> None:
    with (node.folder / "train.jsonl").open("a") as file:
        file.write('{"name": "b", "statement": "theorem b : True := by sorry"}\n')


def repeated_name(node: Node) -> None:
    file = node.folder / "train.jsonl"
    file.write_text(file.read_text() * 2)


def checkpoint_of_another_model(node: Node) -> None:
    checkpoint = node.folder / "other" / "checkpoints" / "step_000200"
    checkpoint.mkdir(parents=True)
    copy_of_model(node, checkpoint / "model", hidden_size=2560, num_hidden_layers=36)
    manifest = Manifest(step=200, algorithm="fd", ranks=1, config_hash="", written=0.0, files={})
    (checkpoint / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    node.sets["model.init_from"] = str(checkpoint)


def base_model(node: Node) -> None:
    (node.model / "chat_template.jinja").write_text("{{ messages }}")


def offline(node: Node) -> None:
    node.sets["model.path"] = "Qwen/Qwen3.5-9B"
    node.patch.setenv("HF_HUB_OFFLINE", "1")
    assert is_offline()


def statements_not_cached(node: Node) -> None:
    node.sets["data.train"] = "leanworkbook"
    node.patch.setenv("HF_HUB_OFFLINE", "1")


def slow_disk_full(node: Node) -> None:
    node.disk_gib[str(node.folder)] = 600.0
    node.sets["checkpoint.keep_last"] = "5"


def taken_port(node: Node) -> None:
    node.sets["telemetry.prometheus_port"] = node.sets["feedback.base_url"].rpartition(":")[2]


def earlier_run(node: Node) -> None:
    folder = node.folder / "runs" / "qwen35_fd"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("{}\n")


# What is wrong, what to spoil, the findings that must be `missing` (or the one `note`, marked so), what must be said.
TABLE: list[tuple[str, Callable[[Node], None], list[str], list[str]]] = [
    (
        "too few GPUs",
        lambda n: n.gpus(4),
        ["learner.gpus"],
        ["no GPU 4, 5, 6, 7", "shows 4 GPU(s)", "change learner.gpus"],
    ),
    ("no driver", no_driver, ["GPUs"], ["nvidia-smi is not on PATH", "policy.gpus = [0, 1, 2, 3]", "--gpus all"]),
    ("a driver that hangs", driver_hangs, ["GPUs"], ["did not answer within 1 s: the driver hangs"]),
    ("a driver that was updated under way", driver_broken, ["GPUs"], ["Driver/library version mismatch"]),
    ("an old driver", lambda n: n.gpus(driver="535.104.05"), ["driver"], ["535.104.05, CUDA 13", "needs driver 580"]),
    (
        "MIG",
        lambda n: n.gpus(mig="Enabled"),
        ["MIG"],
        ["GPU 0, 1, 2, 3, 4, 5, 6, 7 is split by MIG", "-mig 0`", "policy.gpus"],
    ),
    ("GPUs without bfloat16", lambda n: n.gpus(capability="7.0"), ["bfloat16"], ["capability 7.0", "model.dtype"]),
    (
        "another program on a GPU",
        one_gpu_busy,
        ["GPU in use"],
        ["GPU 0 has 42.7 GiB of 140.4 GiB free", "nvidia-smi names"],
    ),
    (
        "24 GB cards",
        lambda n: n.gpus(mib=24564),
        ["learner memory"],
        ["room for 1 x 10240 tokens", "a learner rank needs about 74.0 GiB and has 24.0 GiB", "learner.zero_stage = 3"],
    ),
    (
        "one set of GPUs for both roles",
        sets(learner__gpus="[0,1,2,3]"),
        ["learner memory"],
        ["GPU 0, 1, 2, 3 for vLLM and learner", "leaves the learner 15%"],
    ),
    (
        "tensor parallelism that does not divide the heads",
        sets(policy__gpus="[0,1,2]", policy__tensor_parallel_size="3", policy__data_parallel_size="1"),
        ["tensor parallel"],
        ["tensor_parallel_size = 3 does not divide the model's 16 num_attention_heads", "take 1, 2, 4, 8"],
    ),
    (
        "more engines than GPUs",
        sets(policy__tensor_parallel_size="2"),
        ["config"],
        ["4 GPUs for policy.tensor_parallel_size x policy.data_parallel_size = 8"],
    ),
    (
        "a cache too small for one sequence",
        sets(policy__gpu_memory_utilization="0.142"),
        ["KV cache"],
        ["one sequence of policy.max_model_len = 10240 takes 0.4 GiB", "raise policy.gpu_memory_utilization"],
    ),
    (
        "self-feedback beside a full engine",
        sets(feedback__type="self", feedback__base_url=""),
        ["second engine"],
        ["twice 0.85", "policy.gpu_memory_utilization to 0.45"],
    ),
    (
        "a disk too small for the checkpoints",
        slow_disk_full,
        ["disk"],
        ["6 checkpoints (checkpoint.keep_last + 1) of 150.1 GiB", "lower checkpoint.keep_last"],
    ),
    (
        "Docker's own /dev/shm",
        lambda n: n.disk_gib.update({"/dev/shm": 0.0625}),
        ["/dev/shm"],
        ["64.0 MiB free, 33.4 GiB needed", "--shm-size"],
    ),
    (
        "too little host memory",
        lambda n: setattr(n, "memory_gib", 100.0),
        ["memory"],
        ["100.0 GiB free", "checkpoint.background = false"],
    ),
    ("no key", no_key, ["feedback key"], ["ANTHROPIC_API_KEY is not set", "feedback.api_key_env"]),
    (
        "the CPU build of vLLM",
        lambda n: setattr(n, "vllm", "0.32.0+cpu"),
        ["vllm build"],
        ["0.32.0+cpu", "FD_DEVICE=gpu"],
    ),
    ("another version of vLLM", lambda n: setattr(n, "vllm", "0.11.2"), ["vllm"], ["0.11.2", "locked requirements"]),
    (
        "no tokenizer",
        lambda n: (n.model / "tokenizer.json").unlink(),
        ["model"],
        ["lacks tokenizer.json", "set model.path"],
    ),
    ("a download that broke off", shard_missing, ["model"], ["lacks model-00002-of-00002.safetensors"]),
    (
        "a model that is not cached, offline",
        offline,
        ["model"],
        ["Qwen/Qwen3.5-9B is not in the cache, and HF_HUB_OFFLINE"],
    ),
    (
        "the other family's tool calls",
        sets(model__tool_format='"qwen3"'),
        ["chat template"],
        ["writes XML calls, model.tool_format = 'qwen3'", 'set model.tool_format = "qwen3_5"'],
    ),
    ("a base model", base_model, ["chat template"], ["knows no tools"]),
    (
        "a checkpoint of another model",
        checkpoint_of_another_model,
        ["model.init_from"],
        ["hidden_size 2560, not 4096; num_hidden_layers 36, not 32", "model.path"],
    ),
    (
        "no Lean project",
        lambda n: (n.lean / "lakefile.toml").unlink(),
        ["Lake project"],
        ["run lean/setup", "verifier.project_dir"],
    ),
    (
        "a toolchain that is not installed",
        toolchain_missing,
        ["toolchain"],
        [f"{TOOLCHAIN} is not installed", "run lean/setup"],
    ),
    (
        "Mathlib of another toolchain",
        other_toolchain_of_mathlib,
        ["toolchain"],
        ["made for leanprover/lean4:v4.30.0", "lake-manifest.json"],
    ),
    ("bubblewrap forbidden", bubblewrap_forbidden, ["sandbox"], ["uid map: Permission denied", "seccomp=unconfined"]),
    ("no ripgrep", no_ripgrep, ["rg"], ["not on PATH", "pip install ripgrep"]),
    ("a port that is taken", taken_port, ["/metrics"], ["Address already in use", "telemetry.prometheus_port"]),
    (
        "no server answers",
        sets(
            policy__engine="servers",
            policy__servers='["http://127.0.0.1:9"]',
            policy__gpus="[]",
            policy__data_parallel_size="1",
        ),
        ["servers"],
        ["none answers; http://127.0.0.1:9: connection refused", "bin/fd-serve"],
    ),
    (
        "a provider behind a firewall",
        sets(feedback__base_url="http://127.0.0.1:9"),
        ["feedback provider"],
        ["http://127.0.0.1:9: connection refused", "https_proxy"],
    ),
    (
        "a host that is down",
        hosts("echo 'ssh: connect to host fd-node-2 port 22: No route to host' >&2; exit 255"),
        ["hosts"],
        ["fd-node-2: ssh: connect to host fd-node-2 port 22: No route to host", "learner.hostfile"],
    ),
    ("a broken row", broken_row, ["data.train"], ["train.jsonl:2: not a statement", "`formal_statement`"]),
    (
        "statements that are not cached, offline",
        statements_not_cached,
        ["data.train"],
        ["Lean-workbook-proofs is not in the cache", "HF_HUB_OFFLINE", "bin/fd-data"],
    ),
    ("a name that stands twice", repeated_name, ["data.train"], ["train.jsonl:2: name 'a' stands in line 1 too"]),
    (
        "ground truth without proofs",
        sets(feedback__type="ground_truth", feedback__base_url=""),
        ["data.train"],
        ["1 of 1 statements have no `proof`"],
    ),
    (
        "a suite that is not there",
        sets(data__eval='["no/such.jsonl"]'),
        ["config"],
        ["data.eval", "there is no file or folder no/such.jsonl"],
    ),
    (
        "a run folder that cannot be written",
        sets(run__dir="/proc/runs"),
        ["run folder"],
        ["cannot write to /proc", "set run.dir"],
    ),
    ("clocks apart", hosts("echo $(( $(/bin/date +%s) - 100 ))"), ["note: clocks"], ["fd-node-2 is -10", "NTP"]),
    (
        "unknown prices",
        sets(
            feedback__max_usd="0",
            feedback__usd_per_million_input_tokens="0",
            feedback__usd_per_million_output_tokens="0",
        ),
        ["note: cost"],
        ["price unknown", "feedback.usd_per_million_input_tokens"],
    ),
    (
        "a budget that ends the run",
        sets(feedback__max_usd="1000"),
        ["note: cost"],
        ["step 78 of 400", "feedback.max_usd"],
    ),
    ("no limit of spending", sets(feedback__max_usd="0"), ["note: cost"], ["no limit", "set feedback.max_usd"]),
    ("a run that is there already", earlier_run, ["note: run folder"], ["holds a run", "--resume"]),
    (
        "more rollouts than vLLM batches",
        sets(policy__max_num_seqs="16"),
        ["note: KV cache"],
        ["policy.max_num_seqs = 16 holds back rollout.concurrency = 256"],
    ),
]


def test_the_right_node_is_ready(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is missing, and the figures are those of the paper's configuration."""
    code, out, err = check(node, capsys)
    assert (code, err) == (0, ""), out
    assert "missing" not in out
    assert not [line for line in out.splitlines() if line.startswith("note")]
    assert "policy.gpus        4 x NVIDIA H200, 140.4 GiB (0, 1, 2, 3)" in out
    assert "a rank needs about 74.0 GiB of 140.4 GiB" in out
    assert "at most about $12.76 per step, $5,103 in all, ends at $6,000.00" in out
    assert "400 steps are 33 h, 267 GPU-hours; not measured with this program" in out


@pytest.mark.parametrize(("spoil", "names", "words"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_each_wrong_setup_is_named_with_its_cause(
    node: Node,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Node], None],
    names: list[str],
    words: list[str],
) -> None:
    """That finding and no other is missing; the cause and the key stand beside it; exit 2 or 3, or 0 with a note."""
    spoil(node)
    code, out, err = check(node, capsys)
    missing = [line for line in out.splitlines() if line.startswith("missing")]
    if names == ["config"]:
        assert (code, out) == (2, "")
    elif names[0].startswith("note: "):
        assert (code, missing) == (0, []), out
        assert any(line.startswith(f"note    {names[0].removeprefix('note: ')} ") for line in out.splitlines()), out
    else:
        assert (code, err) == (3, f"fd-check: missing: {', '.join(names)}\n"), out
        assert len(missing) == len(names)
    for word in words:
        assert word in out + err, out + err
