"""What vLLM's processes are started with, and what they do first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fd_async.config.schema import Policy
from fd_async.policy.child import logging_config
from fd_async.policy.environment import engine_environment, temporary_environment
from fd_async.policy.launch import engine_arguments

CHILD = """
import json, logging.config, sys, time
logging.config.dictConfig(json.loads(sys.argv[1]))
print("stray output", flush=True)
logging.getLogger("vllm").info("a record")
sys.__stderr__.flush()
time.sleep(60)
"""


def test_the_cpu_engine_gets_threads_that_can_move(tmp_path: Path) -> None:
    """`cpu_threads` sets their number; bound or spinning threads starve beside a learner."""
    variables = engine_environment(str(tmp_path), Policy(cpu_threads=2), tmp_path / "logging.json")
    assert variables["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["HF_HUB_OFFLINE"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in variables


def test_a_gpu_engine_sees_its_gpus_only(tmp_path: Path) -> None:
    """`gpus` decides between the CPU build and CUDA; an id of the hub may be downloaded."""
    variables = engine_environment("Qwen/Qwen3-8B", Policy(gpus=[0, 3]), tmp_path / "logging.json")
    assert variables["CUDA_VISIBLE_DEVICES"] == "0,3"
    assert variables["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID", "the order of nvidia-smi, which fd-check compares with"
    assert "VLLM_TARGET_DEVICE" not in variables
    assert "HF_HUB_OFFLINE" not in variables


def test_vllms_processes_are_never_forks(tmp_path: Path) -> None:
    """A fork would not read the logging configuration, nor end with the controller; vLLM would fork on GPUs."""
    for policy in (Policy(), Policy(gpus=[0])):
        assert engine_environment("m", policy, tmp_path / "logging.json")["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_a_gpu_engine_compiles_nothing_with_nvcc() -> None:
    """FlashInfer's kernel for gated delta layers, vLLM's choice on Hopper, hung there and may ask for nvcc."""
    arguments = [
        engine_arguments("m", policy, dtype="bfloat16", seed=0, frozen=False) for policy in (Policy(gpus=[0]), Policy())
    ]
    assert [one.get("gdn_prefill_backend") for one in arguments] == ["triton", None]
    assert {one["logprobs_mode"] for one in arguments} == {"processed_logprobs"}, "which FlashInfer's sampler lacks"
    variables = engine_environment("m", Policy(gpus=[0]), Path("/scratch/logging.json"))
    assert variables["VLLM_USE_FLASHINFER_SAMPLER"] == "0"


def test_a_gpu_engine_has_the_model_runner_that_was_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs have no other; who wants vLLM's newer one says so."""
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    assert engine_environment("m", Policy(gpus=[0]), Path("/s"))["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    assert engine_environment("m", Policy(gpus=[0]), Path("/s"))["VLLM_USE_V2_MODEL_RUNNER"] == "1"


@pytest.mark.parametrize(
    ("changes", "model", "chunked"),
    [
        ({}, {}, False),
        ({"max_num_batched_tokens": 64}, {}, None),
        ({"max_num_batched_tokens": 64, "gpus": [0]}, {}, None),
        ({}, {"text_config": {"linear_num_value_heads": 4}}, None),
        ({"prefix_caching": False}, {"linear_num_value_heads": 4}, False),
        ({}, None, None),
    ],
    ids=["attention", "short batch", "gpu", "recurrent", "recurrent without cache", "not here"],
)
def test_a_cpu_engine_prefills_prompts_whole_where_it_can(
    changes: dict[str, Any], model: dict[str, Any] | None, chunked: bool | None, tmp_path: Path
) -> None:
    """Then requests may bring seeds; vLLM's prefix cache of recurrent layers forbids it."""
    if model is not None:
        (tmp_path / "config.json").write_text(json.dumps(model))
    policy = Policy(max_model_len=512, **changes)
    arguments = engine_arguments(str(tmp_path), policy, dtype="float32", seed=0, frozen=True)
    assert arguments.get("enable_chunked_prefill") is chunked


def test_a_frozen_engine_takes_no_weights() -> None:
    """What receives pushes is there for pushes only, and vLLM's own transfer for NCCL only."""
    for frozen in (False, True):
        for push in ("shm", "file", "nccl"):
            arguments = engine_arguments("m", Policy(push=push), dtype="float32", seed=0, frozen=frozen)
            assert ("worker_extension_cls" in arguments) is not frozen
            assert ("weight_transfer_config" in arguments) is (push == "nccl" and not frozen)


def test_the_environment_is_put_back() -> None:
    """Nothing that vLLM sets on its way reaches other processes."""
    before = dict(os.environ)
    with temporary_environment({"FD_TEST_ONE": "1", "PATH": "/nowhere"}):
        os.environ["FD_TEST_TWO"] = "2"
        assert os.environ["PATH"] == "/nowhere"
    assert dict(os.environ) == before


def test_a_child_logs_to_the_file_and_ends_with_the_controller(tmp_path: Path) -> None:
    """Its stray output goes to the log, it leaves the terminal's group, and it does not outlive its owner."""
    log = tmp_path / "vllm.log"
    owner = subprocess.Popen(["sleep", "60"])
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, logging_config(log, owner.pid)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 20
        while not (log.exists() and "a record" in log.read_text()):
            assert time.monotonic() < deadline, "the child wrote nothing"
            time.sleep(0.02)
        assert "stray output" in log.read_text()
        assert os.getsid(child.pid) == child.pid
        owner.kill()
        owner.wait()
        assert child.wait(timeout=20) == -9
        assert child.communicate() == (b"", b"")
    finally:
        for process in (owner, child):
            process.kill()
            process.communicate()


def test_the_logging_configuration_is_json_for_vllm(tmp_path: Path) -> None:
    """vLLM reads it from the file that VLLM_LOGGING_CONFIG_PATH names."""
    config = json.loads(logging_config(tmp_path / "vllm.log", 1))
    assert config["loggers"]["vllm"]["propagate"] is False


def test_what_vllm_leaves_behind_lies_in_the_folder_that_goes() -> None:
    """Its sockets too, unless their path would be too long for the system."""
    variables = engine_environment("m", Policy(), Path("/scratch/logging.json"))
    assert variables["TMPDIR"] == variables["VLLM_RPC_BASE_PATH"] == "/scratch"
    deep = Path("/" + "d" * 80)
    assert "VLLM_RPC_BASE_PATH" not in engine_environment("m", Policy(), deep / "logging.json")
