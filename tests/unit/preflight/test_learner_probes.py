"""What fd-check says of the learner: its hosts, and the memory of a rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fd_async.config.load import load_config
from fd_async.config.schema import RunConfig
from fd_async.preflight import Finding
from fd_async.preflight import learner as probes
from fd_async.preflight.nvidia import Driver, Gpu
from tests.fakes.node import QWEN35_9B

CHECKOUT = Path(__file__).parents[3]
GIB = 2**30


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny configuration names its model from there."""
    monkeypatch.chdir(CHECKOUT)


def config(**learner: Any) -> RunConfig:
    whole = load_config(Path("configs/tiny_fd.toml"), [], [])
    return replace(whole, learner=replace(whole.learner, **learner))


def findings(of: RunConfig) -> dict[str, Finding]:
    return {finding.name: finding for probe in probes.PROBES for finding in probe(of)}


def test_a_rank_that_fits_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it needs and what there is."""
    monkeypatch.setattr(probes, "available_bytes", lambda *_: 64 * GIB)
    found = findings(config())["learner memory"]
    assert found.state == "ok"
    assert found.found.endswith("of 64.0 GiB")


@pytest.mark.parametrize(("choice", "state"), [("refuse", "missing"), ("warn", "note")])
def test_a_rank_that_does_not_fit_is_refused_with_advice(
    monkeypatch: pytest.MonkeyPatch, choice: Any, state: str
) -> None:
    """The need in one part of the line, the remedy in the other; `off` says nothing."""
    monkeypatch.setattr(probes, "available_bytes", lambda *_: GIB // 2)
    found = findings(config(memory_check=choice))["learner memory"]
    assert found.state == state
    assert "has 0.5 GiB" in found.found
    assert found.advice
    assert "learner memory" not in findings(config(memory_check="off"))


def test_gpus_that_vllm_shares_count_for_what_it_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest of a rank's devices; none where one does not answer."""
    there = {index: Gpu(index, "GPU", size * GIB, 0, 9.0, False) for index, size in enumerate((80, 80, 40))}
    monkeypatch.setattr(probes, "driver", lambda: Driver(there, "580.95", ""))
    shape = probes.read_shape("examples/tiny/model")
    assert shape is not None
    made = config(ranks=2, gpus=[1, 2])
    made = replace(made, policy=replace(made.policy, gpus=[0, 1], gpu_memory_utilization=0.75))
    assert probes.available_bytes(made, shape) == 20 * GIB
    assert probes.available_bytes(config(ranks=1, gpus=[7]), shape) is None
    assert findings(config(ranks=1, gpus=[7]))["learner memory"].state == "note"


def test_ranks_of_a_cpu_share_what_the_engine_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory less cache and weights of the engine, over the ranks of this node."""
    monkeypatch.setattr(probes.psutil, "virtual_memory", lambda: type("Free", (), {"available": 20 * GIB}))
    shape = probes.read_shape("examples/tiny/model")
    assert shape is not None
    made = config(ranks=2)
    left = 20 * GIB - made.policy.kv_cache_gib * GIB - 4 * shape.num_params
    assert probes.available_bytes(made, shape) == int(left) // 2


def test_a_model_that_is_not_here_is_a_note() -> None:
    """Nothing is downloaded to look."""
    made = config()
    found = findings(replace(made, model=replace(made.model, path="nobody/nothing")))["learner memory"]
    assert found.state == "note"
    assert probes.memory_table(replace(made, model=replace(made.model, path="nobody/nothing")))[0].startswith(
        "not known"
    )


def test_hosts_are_named_or_refused_with_the_learners_own_words(tmp_path: Path) -> None:
    """Nothing without a hostfile."""
    path = tmp_path / "hostfile"
    path.write_text("localhost slots=2\n")
    assert "learner hosts" not in findings(config())
    assert findings(config(ranks=2, hostfile=str(path)))["learner hosts"].found == "localhost (2) through pdsh"
    refused = findings(config(ranks=1, hostfile=str(path)))["learner hosts"]
    assert refused.state == "missing"
    assert "learner.ranks = 1, but learner.hostfile has 2 slots" in refused.found


def test_the_table_of_a_dry_run_ends_with_the_sum() -> None:
    """Parameters first, with where they were counted."""
    lines = probes.memory_table(config())
    assert "read from its safetensors" in lines[0]
    assert any(line.startswith("a rank, at worst") for line in lines)


def test_gated_delta_layers_without_their_kernels_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On GPUs, where transformers' reference is slow; a model without such layers needs none."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN35_9B))
    whole = config(gpus=[0])
    qwen35 = replace(whole, model=replace(whole.model, path=str(tmp_path)))
    monkeypatch.setattr(probes, "find_spec", lambda name: None)
    found = findings(qwen35)["gated delta"]
    assert found.state == "note"
    assert "pip install flash-linear-attention" in found.advice
    assert "gated delta" not in findings(whole)
    assert "gated delta" not in findings(replace(qwen35, learner=config().learner))
    monkeypatch.setattr(probes, "find_spec", lambda name: object() if name == "fla" else None)
    assert "gated delta" not in findings(qwen35)
