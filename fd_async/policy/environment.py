"""The environment variables that vLLM and its processes need, set only while an engine starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fd_async.config.schema import Policy

_MOST_SOCKET_FOLDER_CHARS = 107 - len("/") - 36
"""The system bounds the path of a socket; vLLM names it by a UUID."""


def engine_environment(model_path: str, config: Policy, logging_file: Path) -> dict[str, str]:
    """Return the variables of an engine's processes.

    Args:
        model_path: a local folder turns the Hugging Face hub off.
        config: `gpus` empty means the CPU build.
        logging_file: JSON file with vLLM's logging configuration; what vLLM leaves behind lies beside it.
    """
    scratch = logging_file.parent
    variables = {
        "VLLM_LOGGING_CONFIG_PATH": str(logging_file),
        "VLLM_ENGINE_READY_TIMEOUT_S": str(max(1, int(config.start_timeout_s))),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_HOST_IP": "127.0.0.1",
        # Its own choice on GPUs is a fork: of a process with threads, their locks and open sockets, and with vLLM
        # imported already, so that nothing would read the logging configuration and follow the rules of `child`.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
        "TMPDIR": str(scratch),
    }
    if len(str(scratch)) <= _MOST_SOCKET_FOLDER_CHARS:
        variables["VLLM_RPC_BASE_PATH"] = str(scratch)
    if Path(model_path).is_dir():
        variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if config.gpus:
        # Numbers as nvidia-smi counts; CUDA's own order begins with the fastest. FlashInfer's sampler, which nvcc
        # compiles, has no log-probs after temperature: vLLM would import it and never use it. The model runner is the
        # one that CPUs have too, with which all of this was tested; to try the newer one, set its variable.
        return variables | {
            "VLLM_USE_V2_MODEL_RUNNER": os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "0"),
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, config.gpus)),
        }
    variables["VLLM_TARGET_DEVICE"] = "cpu"
    if config.cpu_threads:
        # The learner shares the cores: bound threads cannot move away from it, and threads that spin while they wait
        # for one another make a busy machine ten times slower.
        variables |= {
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(config.cpu_threads),
            "GOMP_SPINCOUNT": "0",
        }
    return variables


@contextmanager
def temporary_environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables and put the whole environment back afterwards.

    vLLM adds variables of its own while it starts (LD_PRELOAD among them), which must not reach the learner's or the
    verifier's processes.
    """
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)
