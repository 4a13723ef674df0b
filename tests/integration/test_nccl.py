"""The NCCL group of a push, between two processes on two GPUs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fd_async.learner.ranks import free_port

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]
MAKE = """
import sys, torch
torch.cuda.set_device(int(sys.argv[1]))
host, port = "127.0.0.1", int(sys.argv[2])
generator = torch.Generator().manual_seed(0)
shapes = {"a": (1000, 300), "b": (7,), "c": (3, 5, 11)}
made = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
"""
SEND = """
from fd_async.policy.nccl import Broadcaster
sender = Broadcaster(f"nccl://{host}:{port}", 1)
for scale in (1, 2):
    sender.send((name, tensor.cuda() * scale) for name, tensor in made.items())
"""
RECEIVE = """
from vllm.distributed.weight_transfer.nccl_common import trainer_init
from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_consumer
group = trainer_init({"master_address": host, "master_port": port, "world_size": 2}, rank=1)
for scale in (1, 2):
    got = {}
    packed_nccl_broadcast_consumer(
        iterator=iter([(name, (list(shape), torch.bfloat16)) for name, shape in shapes.items()]),
        group=group, src=0, device=f"cuda:{sys.argv[1]}",
        post_unpack_func=lambda pairs: got.update({name: tensor.cpu() for name, tensor in pairs}),
    )
    for name, tensor in made.items():
        assert torch.equal(got[name], tensor * scale), name
"""


def test_the_broadcaster_reaches_vllms_receiver() -> None:
    """Two transfers over one group arrive bit for bit."""
    port = str(free_port())
    processes = [
        subprocess.Popen([sys.executable, "-c", MAKE + code, device, port])
        for device, code in (("0", SEND), ("1", RECEIVE))
    ]
    try:
        assert [process.wait(300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
